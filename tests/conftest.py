"""What every test stands on: nothing outside its temporary folder is touched, no network, one torch thread, a browser that is really there.

Not a place for fakes of LoopHIL's own parts: those live beside the tests that use them.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import visitor


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home folder of its own and none of the caller's settings, for the whole session and every child process."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.upper().startswith(("LOOPHIL_", "SPACE_", "XDG_", "GRADIO_SERVER"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("LOOPHIL_RUNS", str(home / "runs"))
        patch.setenv("GRADIO_TEMP_DIR", str(home / "gradio"))
        yield


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own runs folder, also in LOOPHIL_RUNS; not there yet."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("LOOPHIL_RUNS", str(folder))
    return folder


LONGEST = ("test_trainer.py", "test_browser.py", "test_build.py", "test_families.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: a process that began one of them last would keep the others waiting for minutes."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def find_chromium() -> str:
    """The path of a Chromium. Where there is none: a failure under CI, a skip with its reason elsewhere."""
    if path := visitor.find_chromium():
        return path
    missing = f"no browser: install one of {', '.join(visitor.BROWSERS[:3])}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def chromium() -> str:
    """For playwright: `launch(executable_path=chromium, args=["--no-sandbox"])`; as root Chromium starts only without its sandbox."""
    return find_chromium()


@pytest.fixture
def free_port() -> int:
    """A port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
