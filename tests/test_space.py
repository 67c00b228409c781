"""What is special about a Space: a disk that forgets is said, and a GPU that is only lent is said and left alone."""

import os
from pathlib import Path
from typing import Any

import pytest

import app
from loophil import space
from loophil.config import Settings


@pytest.fixture
def on_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", *space.OAUTH):
        monkeypatch.setenv(name, "ann/loop")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == Path("/"))


def test_a_space_whose_disk_forgets_says_so_and_what_helps(on_space: None, runs: Path) -> None:
    (said,) = space.notes(Settings(runs=runs))
    assert said == space.EPHEMERAL
    assert [word for word in ("ephemeral", "Export", "History", "LOOPHIL_SNAPSHOTS") if word not in said] == []
    assert app.welcome(Settings(runs=runs), "first", 7860).endswith(said)


def test_nothing_is_said_with_snapshots_on_a_volume_or_at_home(on_space: None, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert space.notes(Settings(runs=runs, snapshots="hf://buckets/ann/kept")) == ()
    with monkeypatch.context() as volume:
        volume.setattr(os.path, "ismount", lambda path: Path(path) in (Path("/"), runs.parent))
        assert space.notes(Settings(runs=runs)) == ()
    monkeypatch.delenv("SPACE_ID")
    assert space.notes(Settings(runs=runs)) == ()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_is_only_lent_is_left_alone_and_that_is_said(on_space: None, runs: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(runs=runs, device=device, snapshots="hf://buckets/ann/kept")
    assert app.for_space(settings).device == device
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert app.for_space(settings).device == "cpu"
    (said,) = space.notes(settings)
    assert [word for word in ("ZeroGPU", "CPU basic", "dedicated GPU") if word not in said] == []
    monkeypatch.setenv("SPACES_ZERO_GPU", "false")
    assert not space.on_zero_gpu()


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, True), ({"auth": "eve"}, True), ({"auth": "eve:open-barley"}, False), ({"public": True}, False)],
)
def test_a_space_where_nobody_can_sign_in_says_so(on_space: None, given: dict[str, Any], said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(snapshots="hf://buckets/ann/kept", **given)
    assert space.notes(settings) == ()
    monkeypatch.delenv("OAUTH_CLIENT_ID")
    assert space.notes(settings) == ((space.NO_SIGN_IN,) if said else ())
    monkeypatch.delenv("SPACE_ID")
    assert space.notes(settings) == ()
