"""The page served by a real uvicorn in a thread, for tests that come in over HTTP or with a browser."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from loophil.config import Settings
from loophil.ui import hang_up, mount


@contextmanager
def serving(session: Any, settings: Settings) -> Iterator[str]:
    """Serves the session's page on a free port of 127.0.0.1 and gives its address; closes the session at the end, as app.py does."""
    app = mount(session, settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5))
    started = threading.Event()
    startup = server.startup

    async def startup_and_tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = startup_and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        hang_up(app)
        server.should_exit = True
        thread.join(20)


def run(url: str, name: str, *data: Any, content: str | None = None, auth: tuple[str, str] | None = None, **more: Any) -> tuple[int, Any]:
    """Plain HTTP to a handler that passes the queue by: (status, body)."""
    request: dict[str, Any] = (
        {"content": content, "headers": {"content-type": "application/json"}} if content else {"json": {"data": list(data), **more}}
    )
    answer = httpx.post(f"{url}/gradio_api/run/{name}", auth=auth, timeout=60, **request)
    return answer.status_code, answer.json()


def call(url: str, name: str, *data: Any, content: str | None = None, auth: tuple[str, str] | None = None) -> tuple[str, str]:
    """Plain HTTP as Gradio documents it, queue and all: (the last event's name, its data as JSON text)."""
    body = content or httpx.Request("POST", url, json={"data": list(data)}).content
    with httpx.Client(auth=auth, timeout=60) as client:
        sent = client.post(f"{url}/gradio_api/call/{name}", content=body, headers={"content-type": "application/json"})
        assert sent.status_code == 200, sent.text
        lines = client.get(f"{url}/gradio_api/call/{name}/{sent.json()['event_id']}").text.strip().splitlines()
    return lines[-2].removeprefix("event: "), lines[-1].removeprefix("data: ")
