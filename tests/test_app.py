"""The front door: what it says when something cannot work, that the page is there before torch, and that it stops well, also as a Space."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import app
from loophil.config import Settings, knobs
from loophil.store import open_run
from tests.serving import run

ROOT = Path(__file__).resolve().parents[1]
SLOW_MACHINE = 300  # seconds


def start(*flags: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "app.py", *flags], cwd=ROOT, env=os.environ | variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs an app that cannot start, in this process: (exit code, what it said)."""
    before = signal.getsignal(signal.SIGTERM)

    def refused(*flags: str) -> tuple[int, str]:
        code = app.main(list(flags))
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    yield refused
    signal.signal(signal.SIGTERM, before)


@contextmanager
def running(*flags: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The app once it has said what it has to say; killed at the end if it is still there."""
    process = start(*flags, **variables)
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(3)]
        assert process.poll() is None, process.communicate()
        yield process, said
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], how: signal.Signals) -> tuple[int, str]:
    process.send_signal(how)
    out, err = process.communicate(timeout=10)  # RELIABILITY P11
    return process.returncode, out + err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def test_help_lists_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        app.main(["--help"])
    out = capsys.readouterr().out
    assert [flag for flag, _, _ in knobs() if flag not in out] == []


def test_each_fault_of_the_settings_is_a_line() -> None:
    process = start("--port", "99999", "--draw.num-images-per-prompt", "1", LOOPHIL_REWARD="jpeg=1")
    out, err = process.communicate(timeout=SLOW_MACHINE)
    assert (process.returncode, out) == (78, "")
    lines = err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("loophil: ") and line.endswith(".") for line in lines)
    assert [name for name in ("port", "num_images_per_prompt", "LOOPHIL_REWARD") if name not in err] == []


def test_a_sign_in_that_cannot_work_ends_the_start(tiny: str, refused: Callable[..., tuple[int, str]]) -> None:
    assert refused("--model", tiny, "--auth", "ann:short", "--port", "0") == (
        78,
        "loophil: auth: 'ann' needs name:password with at least 8 characters in the password.\n",
    )


def test_a_taken_port_is_said_in_one_sentence(free_port: int, refused: Callable[..., tuple[int, str]]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        code, err = refused("--port", str(free_port))
    assert code == 69
    assert re.fullmatch(rf"loophil: Cannot listen on 127\.0\.0\.1 port {free_port} \(.+\); .+ choose another with --port\.\n", err)


def test_a_run_that_another_process_holds_is_said_in_one_sentence(tiny: str, runs: Path, refused: Callable[..., tuple[int, str]]) -> None:
    with closing(open_run(runs, "held", base_model=tiny, revision=None)):
        code, err = refused("--model", tiny, "--runs", str(runs), "--run", "held", "--port", "0")
    assert code == 73
    assert err.startswith("loophil: ")
    assert len(err.splitlines()) == 1


def test_a_space_listens_to_everybody_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.for_space(Settings.read(None)).host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "ann/loop")
    assert (app.for_space(Settings.read(None)).host, Settings.read(None).port) == ("0.0.0.0", 7860)
    assert app.for_space(Settings.read(None, host="127.0.0.1")).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "address", "lines"),
    [
        ({}, "Open http://127.0.0.1:7860", 3),
        ({"host": "::1"}, "Open http://[::1]:7860", 3),
        ({"host": "0.0.0.0", "public": True}, "Open http://127.0.0.1:7860", 3),
        ({"host": "0.0.0.0", "auth": "ann:open-sesame"}, "Open http://127.0.0.1:7860", 3),
        ({"host": "0.0.0.0"}, "Open http://127.0.0.1:7860", 4),
    ],
)
def test_the_welcome_says_where_and_who_may_teach(given: dict[str, Any], address: str, lines: int) -> None:
    said = app.welcome(Settings.read(None, **given), "first", 7860).splitlines()
    assert (said[1], len(said)) == (address, lines)
    assert lines == 3 or "nobody can sign in" in said[3]


def test_it_serves_at_once_and_stops_on_ctrl_c(tiny: str, runs: Path) -> None:
    with running("--model", tiny, "--runs", str(runs), "--port", "0") as (process, said):
        url = said[1].removeprefix("Open ").strip()
        status, answer = run(url, "status")
        assert (status, answer["data"][0]["run"]) == (200, "first")
        assert httpx.get(f"{url}/config").json()["title"] == "LoopHIL"
        # A page that is open holds two streams; they must not hold up the end.
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/somebody", timeout=30) as stream:
            next(stream.iter_raw())
            code, rest = stop(process, signal.SIGINT)
    assert (code, "Traceback" in rest) == (0, False), rest
    assert not (runs / "first" / "run.sqlite-wal").exists() or (runs / "first" / "run.sqlite-wal").stat().st_size == 0


def test_as_a_space_strangers_look_and_sigterm_stops(tiny: str, runs: Path, free_port: int) -> None:
    space = {"SPACE_ID": "ann/loop", "SPACE_AUTHOR_NAME": "ann", "SPACE_HOST": "ann-loop.hf.space", "LOOPHIL_PORT": str(free_port)}
    with running("--model", tiny, "--runs", str(runs), **space) as (process, said):
        url = f"http://127.0.0.1:{free_port}"
        assert said[1] == f"Open {url}\n"
        assert run(url, "status")[0] == 200
        status, answer = run(url, "pause")
        assert status >= 400
        assert "sign in" in answer["error"]
        assert httpx.get(f"{url}/config", headers={"host": "ann-loop.hf.space"}).json()["title"] == "LoopHIL"
        code, rest = stop(process, signal.SIGTERM)
    assert (code, "Traceback" in rest) == (0, False), rest
