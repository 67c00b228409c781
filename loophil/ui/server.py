"""The web server around the page: one FastAPI app with Gradio mounted at its root, and what Gradio leaves open closed.

- Only the paths that the page and Gradio's clients use are answered; uploads, proxies, telemetry and tools for developers are not.
- A post from another site's page is refused (Gradio reflects any Origin with credentials). On loopback, so is a name other than this machine's.
- A body larger than a long prompt can be is refused; a body that Gradio cannot read gets a sentence instead of its own echo (which fails on NaN).
- /sign-in asks for a name and password by HTTP Basic, where --auth gave some; the handlers read it (loophil/ui/access.py).
- When the server stops, the run is closed: worker stopped, store closed, lock released.
"""

import ipaddress
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio.to_thread
import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loophil.config import Settings, is_public
from loophil.ui.access import Access
from loophil.ui.layout import ASSETS, page, theme

if TYPE_CHECKING:
    from loophil.runs import Runs

LARGEST_BODY = 1 << 20  # bytes; a prompt of 100,000 characters still gets its own sentence
OPEN_PATHS = (
    *("/sign-in", "/config", "/info", "/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *("/login/huggingface", "/login/callback", "/logout"),
    *(f"/gradio_api/{name}" for name in ("info", "openapi.json", "config", "run/", "call/", "queue/join", "queue/data", "cancel", "reset")),
    *(f"/gradio_api/{name}" for name in ("heartbeat/", "startup-events", "login_check", "app_id", "theme.css", "file=")),
)
ELSEWHERE = "/gradio_api/file=http"  # Gradio would send the browser to any address
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]
UNREADABLE = 'The body must be JSON of the form {"data": [...]}, one entry for each input; /gradio_api/info lists them.'


def mount(runs: "Runs", settings: Settings) -> FastAPI:
    """The whole app, ready for uvicorn. Raises ConfigError for an --auth that cannot work."""
    access = Access.of(settings)
    # Where matplotlib is installed Gradio asks for its backend at every event; left to choose, it would import its windows for seconds first.
    os.environ.setdefault("MPLBACKEND", "agg")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(runs.close)

    app = FastAPI(lifespan=lifespan, max_body_size=LARGEST_BODY, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Door, local=not is_public(settings))
    _add_sign_in(app, access)
    gr.set_static_paths([runs.session.images])
    gr.mount_gradio_app(
        app,
        page(runs, access),
        path="/",
        theme=theme(),
        css_paths=[ASSETS / "page.css"],
        footer_links=["api"],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
    )
    _answer_unreadable_bodies(app)
    return app


class Door:
    """ASGI middleware: what may come in at all. `local`: the server listens to this machine only."""

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        self.app = app
        self.local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        refusal = self.refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that may not pass; None lets it through."""
        if self.local and not names_this_machine(request.url.hostname):
            return PlainTextResponse("LoopHIL listens to this machine only: open http://127.0.0.1, or start it with --host.", status_code=421)
        if request.method == "POST" and from_another_site(request):
            return PlainTextResponse("This came from another site's page and was not done.", status_code=403)
        path = request.url.path
        if path.startswith(ELSEWHERE) or (path != "/" and not path.startswith(OPEN_PATHS)):
            return PlainTextResponse("There is nothing here.", status_code=404)
        return None


def names_this_machine(host: str | None) -> bool:
    """Whether a Host header names loopback; any other name there is a web page that points its own name at this machine."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost" or (host or "").endswith(".localhost")


def from_another_site(request: Request) -> bool:
    """Whether a browser sent this from a page of another site. Programs send neither header."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched == "cross-site"
    origin = request.headers.get("origin")
    hosts = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
    return origin is not None and urlsplit(origin).netloc not in hosts


def _add_sign_in(app: FastAPI, access: Access) -> None:
    @app.get("/sign-in")
    def sign_in(request: Request) -> Response:
        """Asks the browser for a name and a password, until they are right; then back to the page."""
        if access.may_teach(request) or not access.passwords:
            return RedirectResponse("./")
        return PlainTextResponse("Wrong name or password.", status_code=401, headers={"WWW-Authenticate": 'Basic realm="LoopHIL", charset="UTF-8"'})


def _answer_unreadable_bodies(app: FastAPI) -> None:
    """FastAPI's own answer to a body that it cannot read repeats that body, and fails if it holds NaN or half a character."""

    def unreadable(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": UNREADABLE}, status_code=422)

    _gradio_in(app).add_exception_handler(RequestValidationError, unreadable)


def hang_up(app: FastAPI) -> None:
    """Ends the streams by which Gradio watches open pages; else a stopping server waits for them as long as it waits for anything."""
    _gradio_in(app).stop_event.set()


def _gradio_in(app: FastAPI) -> Any:
    return next(route.app for route in app.routes if isinstance(route, Mount))
