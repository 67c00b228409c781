"""Snapshots: what comes back is the run, whole, as it was; half of one is passed over; nobody waits for them, and what fails is said and tried again.

On a folder, and through the real huggingface_hub against a stand-in on loopback.
"""

import json
import logging
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from loophil import snapshots as module
from loophil.config import Settings
from loophil.errors import ConfigError, LoopHILError, RunError
from loophil.session import Session
from loophil.snapshots import EVERY_RATINGS, KEPT, PAUSE_SECONDS, Snapshots, bring_back, restore
from loophil.snapshots.places import Bucket, Dataset, Folder, place_of
from loophil.store import list_runs, open_run
from loophil.types import Act, Group
from tests.fake_engine import Clock, FakeEngine, fake_loop, fake_session, no_export
from tests.stand_in_hub import GOOD, StandInHub

ON_HUB = ["hf://buckets/ann/kept/loop", "hf://datasets/ann/kept/loop"]
SOON = 60.0  # seconds; reached only by a test that fails


class Noting(Folder):
    """`sent`: the names of each sending; `fault`: what goes wrong in the next one; `hold`: called in each."""

    fault: Exception | None = None

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.sent: list[list[str]] = []
        self.hold: Callable[[], None] = lambda: None

    def send(self, files: Mapping[str, Path], seal: tuple[str, Path], gone: Sequence[str]) -> None:
        self.hold()
        if self.fault:
            raise self.fault
        super().send(files, seal, gone)
        self.sent.append([*files, seal[0]])


class Kept:
    """A run that works inside its calls, and its snapshots at a place, taken when `look` is called."""

    def __init__(self, runs: Path, place: Folder | Bucket | Dataset) -> None:
        self.loop, self.clock = fake_loop(runs, FakeEngine(), threaded=False), Clock()
        self.loop.start()
        self.place = place
        self.snapshots = Snapshots(place, self.loop.store, lambda: self.loop.status, clock=self.clock)
        self.session = Session(self.loop, no_export, snapshots=self.snapshots, notes=("A note.",))

    def rate(self, rater: str = "ann") -> Group:
        """One group, which is learned from at once."""
        group = self.session.new_group()
        self.session.rate(Act(group.id, rater, (1.0, 2.0, 4.0, 5.0)))
        return group

    def look(self) -> None:
        """A minute later."""
        self.clock.work(PAUSE_SECONDS)
        self.snapshots.look()

    def sets(self) -> list[str]:
        return sorted(name for name in self.place.listed("first") if "/sets/" in name and name.endswith(".json"))


@pytest.fixture
def place(tmp_path: Path) -> Noting:
    (tmp_path / "kept").mkdir()
    return Noting(tmp_path / "kept")


@pytest.fixture
def kept(runs: Path, place: Noting) -> Iterator[Kept]:
    made = Kept(runs, place)
    with closing(made.session):
        yield made


def content(folder: Path) -> dict[str, bytes]:
    """What of a run is in a snapshot, beside the database."""
    files = [file for top in ("images", "transitions", "versions") for file in (folder / top).rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def drawn(session: Session) -> list[bytes]:
    """The pictures of the next group."""
    return [(session.images / image.file).read_bytes() for image in session.new_group().images]


# what comes back


def test_the_run_comes_back_as_it_was_and_goes_on_as_it_would_have(kept: Kept, runs: Path, tmp_path: Path) -> None:
    for _ in range(2):
        kept.rate()
    kept.look()
    files, acts, status = content(runs / "first"), kept.session.ratings_file("csv"), kept.session.status()
    assert restore(kept.place, tmp_path / "new") == "first"
    assert content(tmp_path / "new" / "first") == files
    assert sorted(path.name for path in (tmp_path / "new" / "first").iterdir()) == [".lock", "images", "run.sqlite", "transitions", "versions"]
    with closing(fake_session(tmp_path / "new", FakeEngine(), threaded=False)) as again:
        assert again.ratings_file("csv") == acts
        assert (again.status().policy_version, again.status().ratings) == (status.policy_version, status.ratings) == (2, 8)
        assert drawn(again) == drawn(kept.session)
        assert again.status().last_error is None


def test_a_run_s_own_list_comes_back_and_what_is_being_written_does_not(kept: Kept, runs: Path, tmp_path: Path) -> None:
    kept.rate()
    (runs / "first" / "prompts.txt").write_text("a dog")
    (runs / "first" / "images" / "strip-1-0.tmp").write_bytes(b"half")
    (runs / "first" / "versions" / ".staging-2").mkdir()
    (runs / "first" / "versions" / ".staging-2" / "adapter.safetensors").write_bytes(b"half")
    kept.look()
    restore(kept.place, tmp_path / "new")
    assert (tmp_path / "new" / "first" / "prompts.txt").read_text() == "a dog"
    assert b"half" not in content(tmp_path / "new" / "first").values()


def test_only_what_is_new_is_sent(kept: Kept, place: Noting) -> None:
    kept.rate()
    kept.look()
    kept.rate()
    kept.look()
    first, second = ({name for name in sent if "/files/" in name} for sent in place.sent)
    assert first
    assert second
    assert first & second == set()
    again = Snapshots(place, kept.loop.store, lambda: kept.loop.status)  # as after another start: the place is asked what it has
    again.look()
    assert [name for name in place.sent[2] if "/files/" in name] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda seal: seal.write_bytes(seal.read_bytes()[:-9]),
        lambda seal: seal.write_text("[]"),
        lambda seal: seal.with_suffix(".sqlite").unlink(),
        lambda seal: seal.with_suffix(".sqlite").write_bytes(seal.with_suffix(".sqlite").read_bytes()[:-1] + b"\1"),
        lambda seal: newest_file(seal).write_bytes(newest_file(seal).read_bytes()[:-1]),
        lambda seal: newest_file(seal).write_bytes(bytes(newest_file(seal).stat().st_size)),
        lambda seal: seal.write_text(seal.read_text().replace('"images/', '"../images/', 1)),
        lambda seal: seal.write_text(seal.read_text().replace('"images/', '"/images/', 1)),
    ],
    ids=["list cut off", "no list", "no database", "database damaged", "file cut off", "file damaged", "path outside", "path at the root"],
)
def test_a_set_that_is_not_whole_is_passed_over(kept: Kept, place: Noting, tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    kept.rate()
    kept.look()
    acts = kept.session.ratings_file("csv")
    kept.rate()
    kept.look()
    spoil(tmp_path / "kept" / kept.sets()[-1])
    assert restore(place, tmp_path / "new") == "first"
    with closing(open_run(tmp_path / "new", "first", base_model="fake", revision=None)) as store:
        assert (store.current_version().number, len(store.ratings_rows())) == (1, len(acts.splitlines()) - 1)
    assert not (tmp_path / "images").exists()


def newest_file(seal: Path) -> Path:
    """A file that this set has and the one before has not."""
    newest, before = (json.loads(path.read_text())["files"].values() for path in sorted(seal.parent.glob("*.json"))[:-3:-1])
    digest = next(digest for digest, size in newest if [digest, size] not in before)
    (file,) = (seal.parent.parent / "files").rglob(f"{digest}*")
    return file


def test_where_no_set_is_whole_no_run_is_opened_in_its_place(kept: Kept, place: Noting, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    (tmp_path / "kept" / kept.sets()[0]).write_text("")
    with pytest.raises(RunError, match=r"No snapshot of the run 'first' is complete, so no run was opened: name another run with --run, or empty"):
        bring_back(Settings(runs=tmp_path / "new", snapshots=str(tmp_path / "kept")))
    assert list_runs(tmp_path / "new") == []
    assert restore(place, tmp_path / "new", "second") is None  # of that name nothing was kept


def test_what_has_gone_from_the_place_is_sent_again(kept: Kept, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    shutil.rmtree(tmp_path / "kept" / "first")
    kept.rate()
    kept.snapshots.look(last=True)  # at once: a folder is asked each time
    assert kept.session.status().note == "A note."
    assert restore(kept.place, tmp_path / "new") == "first"
    with closing(open_run(tmp_path / "new", "first", base_model="fake", revision=None)) as store:
        assert store.counts().rated_groups == 2


def test_a_folder_that_has_gone_is_said_and_not_made_again(kept: Kept, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    (tmp_path / "kept").rename(tmp_path / "away")
    kept.rate()
    kept.look()
    assert re.match(r"The run could not be kept elsewhere: The folder .*kept is not there any more: mount it", kept.session.status().note or "")
    assert not (tmp_path / "kept").exists()
    (tmp_path / "away").rename(tmp_path / "kept")
    kept.look()
    assert kept.session.status().note == "A note."
    assert restore(kept.place, tmp_path / "new") == "first"


def test_a_file_that_was_cut_off_is_sent_again(kept: Kept, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    file = next((tmp_path / "kept" / "first" / "files").rglob("*.png"))
    file.write_bytes(b"half")
    again = Snapshots(kept.place, kept.loop.store, lambda: kept.loop.status)
    again.look()
    assert file.read_bytes() != b"half"
    assert restore(kept.place, tmp_path / "new") == "first"


# when


def test_a_snapshot_follows_each_version_and_many_ratings_but_at_most_one_a_minute(kept: Kept, place: Noting) -> None:
    kept.look()
    assert place.sent == []  # nothing of a run that nobody has rated: it would hide an older one
    kept.rate()
    kept.look()
    assert len(place.sent) == 1
    kept.rate()
    kept.snapshots.look()  # in the same minute
    assert len(place.sent) == 1
    kept.look()
    assert len(place.sent) == 2
    kept.look()
    assert len(place.sent) == 2
    kept.session.pause()  # no versions from here on
    groups = EVERY_RATINGS // 4
    for _ in range(groups - 1):
        kept.rate()
    kept.look()
    assert len(place.sent) == 2
    kept.rate()
    kept.look()
    assert len(place.sent) == 3


def test_closing_keeps_what_is_new_and_nothing_else(runs: Path, place: Noting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSING", SOON)
    for ratings in (1, 2):
        made = Kept(runs, place)
        made.snapshots.start()
        made.session.pause()
        made.rate()
        made.session.close()
        assert len(place.sent) == ratings
    restore(place, tmp_path / "new")
    with closing(open_run(tmp_path / "new", "first", base_model="fake", revision=None)) as store:
        assert store.counts().rated_groups == 2


def test_the_newest_sets_stay_and_older_ones_go(kept: Kept) -> None:
    for _ in range(KEPT + 2):
        kept.rate()
        kept.look()
    assert len(kept.sets()) == KEPT
    assert sum(name.endswith(".sqlite") for name in kept.place.listed()) == KEPT
    assert restore(kept.place, kept.loop.store.path.parent.parent / "new") == "first"


def test_deleted_ratings_go_from_the_older_sets_too(kept: Kept, tmp_path: Path) -> None:
    kept.rate("ann")
    kept.look()
    kept.rate("bob")
    kept.look()
    kept.session.pause()
    kept.session.forget("ann")
    kept.look()
    assert len(kept.sets()) == 1
    assert b"ann" not in b"".join(file.read_bytes() for file in (tmp_path / "kept").rglob("*.sqlite"))


def test_another_run_of_the_same_name_takes_no_older_sets_away(kept: Kept, place: Noting, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    other = Kept(tmp_path / "other", place)
    with closing(other.session):
        for _ in range(KEPT + 1):
            other.rate()
            other.look()
    assert len(kept.sets()) == 1 + KEPT


# what goes wrong


def test_what_fails_stands_on_the_page_and_is_tried_again(kept: Kept, place: Noting, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.rate()
    place.fault = LoopHILError("The disk is full.")
    kept.look()
    assert kept.session.status().note == "The run could not be kept elsewhere: The disk is full. It is tried again every minute. A note."
    assert "The disk is full." in caplog.text
    kept.rate()
    place.fault = ZeroDivisionError()  # whatever it is
    kept.look()
    assert "ZeroDivisionError" in (kept.session.status().note or "")
    place.fault = None
    kept.look()
    assert kept.session.status().note == "A note."
    assert restore(place, tmp_path / "new") == "first"


def test_nobody_waits_for_a_snapshot(kept: Kept, place: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    sending, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        sending.set()
        assert go_on.wait(SOON)

    place.hold = hold
    kept.rate()
    kept.snapshots.start()
    assert sending.wait(SOON)
    kept.rate()  # drawn, rated and learned from while a snapshot hangs
    assert kept.session.status().policy_version == 2
    go_on.set()


def test_a_database_that_is_gone_or_damaged_is_not_kept(kept: Kept, runs: Path, tmp_path: Path) -> None:
    kept.rate()
    store = kept.loop.store
    with pytest.raises(RunError, match="cannot be copied"):
        store.copy_database(tmp_path / "no" / "folder.sqlite")
    store.close()
    file = runs / "first" / "run.sqlite"
    with closing(sqlite3.connect(file)) as db:
        sql = "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'acts_of_group'"
        page, size = db.execute(sql).fetchone()
    database = bytearray(file.read_bytes())
    database[size * (page - 1) : size * (page - 1) + 100] = b"\xff" * 100
    file.write_bytes(database)
    with pytest.raises(RunError, match="The database of the run 'first' is damaged"):
        store.copy_database(tmp_path / "copy.sqlite")


# at the start


def test_the_run_that_is_to_be_opened_is_brought_back_where_it_is_gone(kept: Kept, runs: Path, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    new, where = tmp_path / "new", str(tmp_path / "kept")
    assert bring_back(Settings(runs=new)).run is None
    assert bring_back(Settings(runs=new, snapshots=where, run="second")).run == "second"  # none of that name was kept
    assert list_runs(new) == []
    assert bring_back(Settings(runs=runs, snapshots=where)).run is None  # it is there
    assert bring_back(Settings(runs=new, snapshots=where)).run == "first"
    assert list_runs(new) == ["first"]
    before = (new / "first" / "run.sqlite").stat().st_mtime_ns
    assert bring_back(Settings(runs=new, snapshots=where)).run == "first"
    assert (new / "first" / "run.sqlite").stat().st_mtime_ns == before  # it is not written over


@pytest.mark.parametrize("address", ON_HUB)
@pytest.mark.parametrize("fault", [{"/tree": 500}, {"/tree": 401}, {"/resolve": 0, "/paths-info": 0}], ids=["broken", "no rights", "no answer"])
def test_a_place_that_cannot_be_read_opens_no_run_in_its_place(
    address: str, fault: dict[str, int], hub: StandInHub, runs: Path, tmp_path: Path
) -> None:
    kept = Kept(runs, place_of(address))  # type: ignore[arg-type]
    with closing(kept.session):
        kept.rate()
        kept.look()
    hub.faults = fault
    with pytest.raises(RunError, match=rf"snapshots cannot be read, so no run was opened: .*{address}.* Start again later, or without --snapshots"):
        bring_back(Settings(runs=tmp_path / "new", snapshots=address))
    assert list_runs(tmp_path / "new") == []


def test_a_disk_that_cannot_take_the_run_is_said(kept: Kept, tmp_path: Path) -> None:
    kept.rate()
    kept.look()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="cannot be brought back to"):
        bring_back(Settings(runs=tmp_path / "file" / "runs", snapshots=str(tmp_path / "kept"), run="first"))


@pytest.mark.parametrize("address", ["hf://models/ann/kept", "hf://buckets/ann", "hf://datasets/ann/kept/../other/ ", "hf:kept", "no-such-folder"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is no place on the Hub: write hf://buckets/|There is no folder .*no-such-folder to keep snapshots in"):
        place_of(address)


def test_an_address_says_what_kind_of_place_it_is(tmp_path: Path) -> None:
    kinds = [type(place_of(address)) for address in ("hf://buckets/ann/kept", "hf://datasets/ann/kept/", str(tmp_path))]
    assert kinds == [Bucket, Dataset, Folder]


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("no folder")
    with pytest.raises(LoopHILError, match=r"The folder .* cannot be used \("):
        Folder(tmp_path).send({"first/a": tmp_path / "first"}, ("first/b", tmp_path / "first"), [])


# the Hub


@pytest.mark.parametrize("address", ON_HUB)
def test_the_hub_keeps_a_run_and_gives_it_back(address: str, hub: StandInHub, runs: Path, tmp_path: Path) -> None:
    kept = Kept(runs, place_of(address))  # type: ignore[arg-type]
    repository = address.removeprefix("hf://").removesuffix("/loop")
    with closing(kept.session):
        assert bring_back(Settings(runs=tmp_path / "new", snapshots=address)).run is None  # nothing is there yet
        for _ in range(KEPT + 1):
            kept.rate()
            kept.look()
            assert kept.session.status().note == "A note."
        files = content(runs / "first")
    assert hub.repositories == {repository: True}  # private
    assert len(kept.sets()) == KEPT
    hub.files[repository] |= {"loop2first/sets/9999999999999-1-0.json": b"of somebody else", "README.md": b"what this is"}
    assert [name for name in kept.place.listed() if not name.startswith("first/") or "9999999999999" in name] == []
    assert bring_back(Settings(runs=tmp_path / "new", snapshots=address)).run == "first"
    assert content(tmp_path / "new" / "first") == files
    if "datasets" in address:
        assert len(hub.commits) == KEPT + 1


@pytest.mark.parametrize("address", ON_HUB)
@pytest.mark.parametrize(("status", "sentence"), [(403, r"\(the Hub answered 403\): set HF_TOKEN"), (0, "cannot be reached"), (500, "answered 500")])
def test_what_the_hub_refuses_is_a_sentence_without_the_token(
    address: str, status: int, sentence: str, hub: StandInHub, runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "loophil")
    hub.said = f"no, {GOOD}"
    kept = Kept(runs, place_of(address))  # type: ignore[arg-type]
    with closing(kept.session):
        kept.rate()
        hub.faults = {"/batch": status, "/commit/main": status}
        kept.look()
        said = kept.session.status().note or ""
        hub.faults = {}
        kept.look()
        assert kept.session.status().note == "A note."
    assert re.match(rf"The run could not be kept elsewhere: .*{sentence}.* It is tried again every minute\.", said)
    assert GOOD not in said + caplog.text


@pytest.mark.parametrize("address", ON_HUB)
def test_what_has_gone_from_the_hub_is_sent_again_and_it_is_asked_once_a_minute(
    address: str, hub: StandInHub, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(runs, place_of(address))  # type: ignore[arg-type]
    asked, ask = [], kept.place.listed

    def listed(under: str = "") -> dict[str, int]:
        asked.append(under)
        return ask(under)

    monkeypatch.setattr(kept.place, "listed", listed)
    with closing(kept.session):
        kept.rate()
        kept.look()
        hub.files[address.removeprefix("hf://").removesuffix("/loop")].clear()
        kept.rate()
        kept.look()
        kept.rate()
        kept.snapshots.look(last=True)  # in the same minute
    assert asked == ["first", "first"]
    assert bring_back(Settings(runs=tmp_path / "new", snapshots=address)).run == "first"
