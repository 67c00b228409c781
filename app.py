"""The front door: reads the settings, opens the run and serves the page. The same file is what a Hugging Face Space runs.

`python app.py --help` lists the knobs. Exit codes: 0 stopped on request, 69 port taken, 73 run cannot be opened, 78 settings cannot work.

The page is served before torch is imported (the worker does that), because torch and diffusers take seconds that a person would look at nothing.
LoopHIL has its own uvicorn: `launch()` of Gradio dies on SIGTERM without closing anything.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import closing
from types import FrameType

from loophil import __version__
from loophil.config import Settings, is_public
from loophil.errors import ConfigError, RunError
from loophil.process import prepare_process
from loophil.space import notes, on_space, on_zero_gpu

log = logging.getLogger("loophil")

TAKEN, RUN, CONFIG = 69, 73, 78  # exit codes of sysexits.h
GRACE = 5  # seconds that open connections get when the server stops
LEARN_MORE = "Press the number of the best picture, then of the worst; after a dozen groups look at Compare. Ctrl+C stops, and nothing is lost."


def main(argv: list[str]) -> int:
    """Serves until SIGINT or SIGTERM; the exit code."""
    signal.signal(signal.SIGTERM, stop_now)
    prepare_process()
    try:
        settings = for_space(Settings.read(argv))
        door = listen(settings.host, settings.port)
    except ConfigError as error:
        return complain(CONFIG, str(error))
    except OSError as error:
        return complain(TAKEN, str(error))
    try:
        with closing(door):
            serve(settings, door)
    except ConfigError as error:
        return complain(CONFIG, str(error))
    except RunError as error:
        return complain(RUN, str(error))
    except KeyboardInterrupt:
        log.info("stopped on request")
    return 0


def stop_now(_: int, __: FrameType | None) -> None:
    """SIGTERM while nothing is served yet, or once more after the server has stopped (uvicorn sends it on): leave through every `finally`."""
    raise KeyboardInterrupt


def complain(code: int, faults: str) -> int:
    """Says each fault on a line of its own."""
    for fault in faults.splitlines():
        print(f"loophil: {fault}", file=sys.stderr)
    return code


def for_space(settings: Settings) -> Settings:
    """On a Space the page has to be on all addresses, unless somebody said otherwise; where its GPU is only lent, the CPU does the work."""
    changes: dict[str, str] = {"device": "cpu"} if on_zero_gpu() else {}
    if on_space() and "host" not in settings.model_fields_set:
        changes["host"] = "0.0.0.0"
    return settings.model_copy(update=changes)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, taken before anything else is done, so that a taken port is said at once. OSError with one sentence."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        door = socket.socket(family, kind, protocol)
        if os.name == "posix":
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
    except OSError as error:
        raise OSError(f"Cannot listen on {host} port {port} ({error.strerror}); stop what is there, or choose another with --port.") from error
    return door


def serve(settings: Settings, door: socket.socket) -> None:
    """Opens the run and serves the page on `door` until a signal comes. Raises ConfigError or RunError."""
    import uvicorn

    from loophil.build import build
    from loophil.runs import Runs
    from loophil.snapshots import bring_back
    from loophil.ui import hang_up, mount

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(welcome(runs.session.settings, runs.session.status().run, door.getsockname()[1]), flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            hang_up(app)
            await super().shutdown(sockets)

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    runs = Runs(bring_back(settings), build)
    server = None
    try:
        app = mount(runs, settings)
        server = Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE, limit_concurrency=400))
        asyncio.run(server.serve([door]))
    finally:
        if server is None or not server.started:  # else the app has closed it when the server stopped
            runs.close()


def welcome(settings: Settings, run: str, port: int) -> str:
    """What to do next, and, where strangers may come, who may teach."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [f"LoopHIL {__version__}, run '{run}', model {settings.model}", f"Open http://{host}:{port}", LEARN_MORE]
    if is_public(settings) and not settings.public and not settings.auth and not on_space():
        lines.append("Strangers may look, but nobody can sign in to rate: start with --auth name:password, or with --public to let everybody rate.")
    return "\n".join([*lines, *notes(settings)])


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed by now. A drawing that nobody waits for may still run, and Python's own exit would wait for it inside torch.
    os._exit(exit_code)
