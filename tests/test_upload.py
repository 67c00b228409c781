"""A dataset brought to the page in parts: whole and in order or not at all, by the run's owner, and gone from the disk afterwards."""

import base64
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loophil.errors import InvalidInput
from loophil.ui import events, history, upload
from loophil.ui.access import Access
from loophil.ui.upload import Upload
from tests.fake_session import FakeSession
from tests.test_ui import OWNER, request

HERE = Access(everybody=True, several=False)  # a machine of one's own


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files lie while they come."""
    made = tmp_path / "coming"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


def part(number: int, key: str, content: bytes, **given: Any) -> dict[str, Any]:
    return {"file": "groups.parquet", "key": key, "part": number, "data": base64.b64encode(content).decode()} | given


def bring(session: FakeSession, sent: list[dict[str, Any]], access: Access, **who: Any) -> list[dict[str, Any]]:
    """The answers, each part with the key that the one before was answered with."""
    tab, said = history.History(session, access), list[dict[str, Any]]()  # type: ignore[arg-type]
    for each in sent:
        said.append(tab.bring(request(**who), SimpleNamespace(_data=each | {"key": said[-1].get("key", "") if said else ""})))
    return said


def test_parts_become_the_file_that_is_imported(tmp_path: Path, folder: Path) -> None:
    session = FakeSession(tmp_path / "run")
    said = bring(session, [part(0, "", b"one "), part(1, "", b"two "), part(2, "", b"three", last=True)], HERE)
    assert [(answer.get("part"), answer.get("imported"), answer.get("passed_over")) for answer in said] == [
        (1, None, None),
        (2, None, None),
        (None, 1, "1 changed since, kept as before"),
    ]
    assert session.imported == [(".parquet", b"one two three")]
    assert list(folder.iterdir()) == []


def test_file_that_cannot_be_imported_is_gone_too(tmp_path: Path, folder: Path) -> None:
    session = FakeSession(tmp_path / "run")
    session.fault = InvalidInput("Row 1 is wrong.")
    said = bring(session, [part(0, "", b"one", last=True)], HERE)
    assert said[0]["error"] == "Row 1 is wrong."
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("wrap", [events.answering, events.reporting])
def test_machine_that_cannot_go_on_is_said_without_its_paths(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "/home/ann/runs")

    def steps(*_: Any) -> Iterator[dict[str, Any]]:
        yield full()

    said = wrap(full if wrap is events.answering else steps)(None, request(), SimpleNamespace(_data={}))
    answer = said if isinstance(said, dict) else next(said)
    assert answer["error"] == "This machine could not do it: No space left on device."
    assert "/home/ann/runs" in caplog.text


def test_strangers_and_raters_bring_nothing(tmp_path: Path, folder: Path) -> None:
    passwords = {**dict([OWNER]), "bob": "open-barley"}
    session, access = FakeSession(tmp_path / "run"), Access(everybody=False, passwords=passwords, owners=frozenset([OWNER[0]]))
    sent = part(0, "", b"one", last=True)
    for who in (None, "bob:open-barley"):
        assert "sign in as the owner" in bring(session, [sent], access, password=who)[0]["error"]
    assert (session.imported, list(folder.iterdir())) == ([], [])
    assert bring(session, [sent], access, password=":".join(OWNER))[0]["imported"] == 1


def test_dataset_that_is_taken_leaves_no_copy_but_the_one_to_fetch(tmp_path: Path, folder: Path) -> None:
    tab = history.History(FakeSession(tmp_path / "run"), Access(everybody=True))  # type: ignore[arg-type]
    said = tab.take(request(), SimpleNamespace(_data={"format": "parquet"}))
    assert (said["file"], said["bytes"]) == ("first-groups.parquet", 4)
    assert Path(said["url"].removeprefix("gradio_api/file=")).read_bytes() == b"PAR1"
    assert list(folder.iterdir()) == []


def test_who_begins_anew_takes_the_place_of_who_was_at_it(folder: Path) -> None:
    at = Upload()
    first, _ = at.take(part(0, "", b"one"))
    second, _ = at.take(part(0, "", b"two", file="pairs.jsonl"))
    with pytest.raises(InvalidInput, match="Another file was begun meanwhile, or a part was lost"):
        at.take(part(1, first, b"one"))
    with pytest.raises(InvalidInput, match="Another file was begun meanwhile: bring"), at.whole(first):
        pass
    at.take(part(1, second, b"!"))
    with at.whole(second) as file:
        assert (file.name, file.read_bytes()) == ("dataset.jsonl", b"two!")
    assert list(folder.iterdir()) == []
    with pytest.raises(InvalidInput, match="Another file"), at.whole(""):
        pass


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (part(2, "KEY", b"x"), "a part was lost"),
        (part(0, "", b"x", file="run.sqlite"), r"'run\.sqlite' is no dataset: bring a file that ends with \.parquet or \.jsonl"),
        (part(0, "", b"x", file=["a"]), "file must be text"),
        (part(1, "KEY", b"x", data=5), "A part of a file is base64 of at most 1,000,000 characters"),
        (part(1, "KEY", b"x", data="x" * 1_000_001), "A part of a file is base64 of at most 1,000,000 characters"),
        (part(1, "KEY", b"x", data="?"), "A part of a file is base64, but this one is not"),
        (part(1, "KEY", b"x", part=-1), "part must be a whole number"),
    ],
)
def test_part_that_cannot_be_is_said(sent: dict[str, Any], sentence: str) -> None:
    at = Upload()
    key, _ = at.take(part(0, "", b"one"))
    with pytest.raises(InvalidInput, match=sentence):
        at.take(sent | {"key": key if sent["key"] else ""})
    at.take(part(1, key, b""))


def test_file_that_is_too_large_is_thrown_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "LARGEST", 5)
    at = Upload()
    key, _ = at.take(part(0, "", b"12345"))
    with pytest.raises(InvalidInput, match="more than 5 bytes is imported on the command line"):
        at.take(part(1, key, b"6"))
    assert list(folder.iterdir()) == []


def test_parts_of_the_page_fit_into_what_is_taken() -> None:
    """600,000 bytes are 800,000 characters, and the server takes a body of 1 MiB."""
    script = (Path(history.__file__).parent / "static" / "history.js").read_text()
    assert "const PART = 600000;" in script
    assert 4 * 600_000 / 3 < upload.LARGEST_PART < (1 << 20) - 1000
