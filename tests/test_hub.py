"""Pushing to the Hub: what arrives is the very export, by one commit; what goes wrong is a sentence; a token is never seen again.

Against a stand-in on loopback, with the real huggingface_hub as the client.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import OIDCError
from PIL import Image

import loophil.session
from loophil.errors import InvalidInput, LoopHILError
from loophil.export import FORMATS, export
from loophil.hub import PushStep, Repository, exported_files
from loophil.jobs import LORA, Engine
from loophil.model_card import Adapter, BeforeAfter
from loophil.session import Session
from loophil.types import Label, Licence
from tests.fake_engine import FakeEngine, fake_loop
from tests.stand_in_hub import GOOD, StandInHub

CARD = {"README.md": b"---\nlicense: mit\n---\n# warm\n"}
FILES = CARD | {"lora.safetensors": b"123", "images/tuned_0.png": b"45"}
OTHER = "hf_another"


@pytest.fixture
def adapter() -> Adapter:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    facts: dict[str, Any] = {"base_model": "base/tiny", "revision": "abc123", "version": 7, "ratings": 128, "run": "first", "licence": "openrail++"}
    return Adapter(weights=weights, rank=2, alpha=4.0, targets=("to_q",), win_rate=(0.65, 0.43, 0.82), **facts)


@pytest.fixture
def pictures() -> list[BeforeAfter]:
    return [BeforeAfter("two stars", 42, Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue"))]


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# what arrives


@pytest.mark.parametrize("format", FORMATS)
def test_what_arrives_is_the_export_by_one_commit(
    format: str, hub: StandInHub, adapter: Adapter, pictures: list[BeforeAfter], tmp_path: Path
) -> None:
    name, files = exported_files(export(adapter, format, tmp_path, pictures=pictures))
    repository = Repository("ann/warm")
    repository.sign_in()
    assert repository.push(files, "first push") == f"{hub.url}/ann/warm"
    assert name == f"first-v7-{format}"
    assert hub.commits == [("ann/warm", "first push", on_disk(tmp_path / name))]
    assert len(files) == {"diffusers": 4, "peft": 5, "kohya": 4}[format]
    assert hub.repositories == {"ann/warm": False}
    assert hub.tokens == {GOOD}


def test_the_card_that_arrives_has_what_the_hub_shows(hub: StandInHub, adapter: Adapter, pictures: list[BeforeAfter], tmp_path: Path) -> None:
    _, files = exported_files(export(adapter, "diffusers", tmp_path, pictures=pictures))
    Repository("ann/warm").push(files, "push")
    (_, _, arrived) = hub.commits[0]
    _, front, body = arrived["README.md"].decode().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["base_model"], matter["license"], matter["pipeline_tag"]) == ("base/tiny", "openrail++", "text-to-image")
    assert {"template:sd-lora", "lora", "text-to-image", "diffusers"} <= set(matter["tags"])
    assert [(shown["text"], shown["output"]["url"] in arrived) for shown in matter["widget"]] == [("two stars", True)]
    assert "| two stars | 42 | ![base](images/base_0.png) | ![tuned](images/tuned_0.png) |" in body
    assert "128 rated images" in body
    assert "65% of blind pairs (43% to 82%)" in body


def test_a_second_push_is_a_second_commit_and_sends_only_what_is_new(hub: StandInHub) -> None:
    repository = Repository("ann/warm")
    repository.push(FILES, "one")
    repository.push(FILES | {"lora.safetensors": b"678"}, "two")
    assert [(message, files["lora.safetensors"]) for _, message, files in hub.commits] == [("one", b"123"), ("two", b"678")]
    assert sum(request.startswith("PUT ") for request in hub.requests) == 3


def test_a_push_takes_away_what_earlier_ones_left_and_nothing_else(
    hub: StandInHub, adapter: Adapter, pictures: list[BeforeAfter], tmp_path: Path
) -> None:
    repository = Repository("ann/warm")
    repository.push({"README.md": CARD["README.md"], "adapter_config.json": b"{}"}, "by another program")
    others = {
        ".gitattributes": b"",
        "notes.md": b"mine",
        "images/tuned_x.png": b"1",
        "old/adapter_model.safetensors": b"2",
        "sketch-kohya.safetensors": b"3",
    }
    pushed = []
    for format, version, shown in (("diffusers", 7, pictures * 2), ("peft", 7, pictures), ("kohya", 7, pictures), ("kohya", 8, [])):
        made = export(dataclasses.replace(adapter, version=version), format, tmp_path, pictures=shown)
        pushed.append(exported_files(made)[1])
        repository.push(pushed[-1], f"{format} {version}")
        if format == "diffusers":
            assert hub.files["ann/warm"] == pushed[0] | {"adapter_config.json": b"{}"}  # its card was not LoopHIL's
            hub.files["ann/warm"] |= others
        assert hub.files["ann/warm"] == (pushed[-1] | others | ({"adapter_config.json": b"{}"} if format == "diffusers" else {}))
    assert len(hub.commits) == 5


def test_private_is_private(hub: StandInHub) -> None:
    Repository("ann/warm").push(FILES, "push", private=True)
    assert hub.repositories == {"ann/warm": True}
    assert len(hub.commits) == 1


def test_what_shall_be_private_never_goes_to_a_public_repository(hub: StandInHub) -> None:
    hub.repositories["ann/warm"] = False
    with pytest.raises(InvalidInput, match=r"ann/warm is there already, and public: make it private at http.+/ann/warm/settings, or"):
        Repository("ann/warm").push(FILES, "push", private=True)
    assert hub.commits == []


# what goes wrong


@pytest.mark.parametrize("name", ["warm", "", "ann/", "/warm", "a/b/c", "ann/wa rm", "ann/--", "ann/w..m", "ann/warm.git", "ann/" + "x" * 97, GOOD])
def test_a_name_that_is_none_is_refused_and_not_quoted(name: str, hub: StandInHub) -> None:
    with pytest.raises(InvalidInput, match=r"^A repository is named USER/REPO, .+: correct its name\.$") as caught:
        Repository(name)
    assert not name or name not in str(caught.value)


def test_without_a_token_it_is_said_where_to_get_one(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InvalidInput, match=r"no Hugging Face token: make one .+/settings/tokens, then set HF_TOKEN or run `hf auth login`"):
        Repository("ann/warm")


def test_the_token_given_counts_then_hf_token_then_the_stored_one(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(GOOD)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    Repository("ann/warm", f" {GOOD}\n").sign_in()
    with pytest.raises(InvalidInput, match="refused the token"):
        Repository("ann/warm").sign_in()
    monkeypatch.delenv("HF_TOKEN")
    Repository("ann/warm").sign_in()
    assert hub.tokens == {GOOD, OTHER}


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nb", "hf_ä", "x" * 501])
def test_a_token_that_cannot_be_one_is_refused_and_not_quoted(token: str, hub: StandInHub) -> None:
    with pytest.raises(InvalidInput, match=r"^What was given as the token is none: copy it anew from https://\S+$") as caught:
        Repository("ann/warm", token)
    assert token not in str(caught.value)


def test_a_stored_sign_in_that_cannot_be_renewed_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OIDCError(f"no exchange for {GOOD}")

    monkeypatch.setattr("loophil.hub.get_token", fail)
    with pytest.raises(InvalidInput, match="cannot be read: run `hf auth login` again, or set HF_TOKEN"):
        Repository("ann/warm")


REFUSED = "The Hub refused the token: make one with the right to write at https://huggingface.co/settings/tokens."
NO_RIGHT = (
    "This token may not write to ann/warm: choose a name under your own account, or make a token with the right to write "
    "at https://huggingface.co/settings/tokens."
)
BROKEN = "The connection broke off during the upload: the repository holds all of this push or nothing of it, so push again."
LATER = "The Hub answered {} (not now): the repository holds all of this push or nothing of it, so push again later."
UNREACHED = "The Hub cannot be reached at {url}: check the network, then push again."


@pytest.mark.parametrize(
    ("part", "status", "sentence"),
    [
        ("/whoami", 0, UNREACHED),
        ("/whoami", 401, REFUSED),
        ("/whoami", 403, REFUSED),
        ("/whoami", 503, LATER.format(503)),
        ("/validate-yaml", 0, BROKEN),
        ("/validate-yaml", 500, LATER.format(500)),
        ("/repos/create", 0, BROKEN),
        ("/repos/create", 401, REFUSED),
        ("/repos/create", 403, NO_RIGHT),
        ("GET /api/models/ann/warm", 0, BROKEN),
        ("/preupload", 404, NO_RIGHT),
        ("/preupload", 503, LATER.format(503)),
        ("/batch", 403, NO_RIGHT),
        ("PUT /lfs", 0, BROKEN),
        ("PUT /lfs", 403, BROKEN),
        ("PUT /lfs", 500, BROKEN),
        ("/commit", 0, BROKEN),
        ("/commit", 401, REFUSED),
        ("/commit", 403, NO_RIGHT),
        ("/commit", 413, LATER.format(413)),
    ],
)
def test_whatever_goes_wrong_is_one_sentence_and_nothing_half_is_there(
    part: str, status: int, sentence: str, hub: StandInHub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults = {part: status}
    with pytest.raises(LoopHILError) as caught:
        pushed("ann/warm")
    assert str(caught.value) == sentence.format(url=hub.url)
    assert isinstance(caught.value, InvalidInput) == (sentence in (REFUSED, NO_RIGHT))
    assert hub.commits == []
    assert GOOD not in caplog.text + "".join(capfd.readouterr())
    hub.faults = {}
    pushed("ann/warm")
    assert [files for _, _, files in hub.commits] == [FILES]


def pushed(name: str) -> None:
    repository = Repository(name)
    repository.sign_in()
    repository.push(FILES, "push")


def test_a_name_under_another_account_is_not_for_this_token(hub: StandInHub) -> None:
    with pytest.raises(InvalidInput, match="may not write to bob/warm: choose a name under your own account"):
        pushed("bob/warm")
    assert hub.repositories == {}


def test_no_network_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port}")
    with pytest.raises(LoopHILError, match=f"^The Hub cannot be reached at http://127.0.0.1:{free_port}: check the network"):
        Repository("ann/warm").sign_in()


def test_offline_by_order_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LoopHILError, match="unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, then push again"):
        Repository("ann/warm").sign_in()


def test_a_card_that_the_hub_does_not_take_is_known_before_anything_is_made(hub: StandInHub) -> None:
    repository = Repository("ann/warm")
    with pytest.raises(InvalidInput, match=r'does not take this card \("license" my own is none\): correct the licence'):
        repository.push({"README.md": b"---\nlicense: my own\n---\n"}, "push")
    hub.faults = {"/validate-yaml": 400}
    with pytest.raises(InvalidInput, match=r"does not take this card \(.*not now"):
        repository.push(FILES, "push")
    assert hub.repositories == {}


def test_a_token_that_the_hub_sends_back_goes_no_further(hub: StandInHub) -> None:
    hub.faults, hub.said = {"/commit": 500}, f"no\n room for {GOOD} " + "x" * 400
    with pytest.raises(LoopHILError, match=r"answered 500 \(no room for \.\.\. x+ \.\.\.\)") as caught:
        pushed("ann/warm")
    assert GOOD not in str(caught.value)


# the licence of the base


def test_the_licence_is_what_the_hub_states_of_the_base(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.licences = {"base/free": "openrail++", "base/silent": None, "base/odd": ["mit"], "base/mine": "mit"}
    repository = Repository("ann/warm")
    (tmp_path / "base" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked = ("base/free", "base/silent", "base/odd", "base/nowhere", "base/mine", "embedded")
    assert [repository.licence_of(base) for base in asked] == [Licence("openrail++"), *[Licence()] * 5]
    hub.faults = {"base/free": 500}
    assert repository.licence_of("base/free") == Licence()


def test_a_licence_that_is_in_no_list_has_its_name_and_where_it_can_be_read(hub: StandInHub) -> None:
    hub.licences = {
        "base/flux": {"license": "other", "license_name": "flux-dev", "license_link": "LICENSE.md"},
        "base/sd3": {"license": "other", "license_name": "stability", "license_link": "https://stability.example/l_i"},
        "base/odd": {"license": "other", "license_name": ["a"], "license_link": "javascript:alert(1)"},
        "base/torn": {"license": "other", "license_name": "a\nb", "license_link": "https://a\tb"},
    }
    repository = Repository("ann/warm")
    assert [repository.licence_of(base) for base in hub.licences] == [
        Licence("other", "flux-dev", f"{hub.url}/base/flux/blob/main/LICENSE.md"),
        Licence("other", "stability", "https://stability.example/l_i"),
        Licence("other", "", f"{hub.url}/base/odd/blob/main/javascript:alert(1)"),
        Licence("other"),
    ]


# the whole way through a session


class Desk:
    """A session with a thread, whose export writes what it was asked for into a zip or a folder."""

    def __init__(self, runs: Path, adapter: Adapter) -> None:
        self.labels: list[Label] = []
        self.fault: Exception | None = None
        self.loop = fake_loop(runs, FakeEngine(), prefetch=0)
        self.loop.settings = self.loop.settings.model_copy(update={"model": "base/tiny"})

        def write(engine: Engine, format: str, label: Label) -> Path:
            if self.fault:
                raise self.fault
            self.labels.append(label)
            self.by = threading.current_thread()
            name, link = label.licence_name, label.licence_link
            made = dataclasses.replace(adapter, licence=label.licence or "other", licence_name=name, licence_link=link)
            return export(made, format, runs / "exports")

        self.session = Session(self.loop, write)
        self.loop.start()
        self.session.measure(lambda engine: self.loop.learner.adopt(engine, {"w": 0.5}))  # version 1: something to push


@pytest.fixture
def desk(runs: Path, adapter: Adapter) -> Iterator[Desk]:
    made = Desk(runs, adapter)
    with closing(made.session):
        yield made


@pytest.mark.parametrize(("format", "parts"), [("diffusers", 2), ("kohya", 2), ("peft", 3)])
def test_a_push_says_its_steps_and_last_the_address(format: str, parts: int, desk: Desk, hub: StandInHub, runs: Path) -> None:
    hub.licences = {"base/tiny": "mit"}
    steps = list(desk.session.push(Repository("ann/warm"), format, Label("warm", covers=("a {cat|cat}",))))
    assert [step.doing for step in steps] == [
        "Signing in to the Hub",
        "Making the files and their pictures",
        f"Uploading {parts} files, 0.0 MB",
        "Published",
    ]
    assert [step.address for step in steps] == ["", "", "", f"{hub.url}/ann/warm"]
    assert desk.labels == [Label("warm", licence="mit", covers=("a cat",))]
    assert hub.commits == [("ann/warm", f"first-v7-{format}, made with LoopHIL", on_disk(runs / "exports" / f"first-v7-{format}"))]


def test_a_licence_of_ones_own_is_kept(desk: Desk, hub: StandInHub) -> None:
    hub.licences = {"base/tiny": "mit"}
    list(desk.session.push(Repository("ann/warm"), "kohya", Label(licence="apache-2.0"), private=True))
    assert desk.labels == [Label(licence="apache-2.0")]
    assert hub.repositories == {"ann/warm": True}


def test_the_card_that_arrives_names_the_base_s_own_licence(desk: Desk, hub: StandInHub) -> None:
    hub.licences = {"base/tiny": {"license": "other", "license_name": "flux-dev", "license_link": "LICENSE (1).md"}}
    list(desk.session.push(Repository("ann/warm"), "kohya"))
    _, front, body = hub.commits[0][2]["README.md"].decode().split("---\n", 2)
    link = f"{hub.url}/base/tiny/blob/main/LICENSE (1).md"
    assert [yaml.safe_load(front).get(name) for name in ("license", "license_name", "license_link")] == ["other", "flux-dev", link]
    assert f"| licence | [flux-dev]({hub.url}/base/tiny/blob/main/LICENSE%20%281%29.md) |" in body


def test_nothing_learned_is_nothing_to_push(desk: Desk, hub: StandInHub) -> None:
    """Neither version 0 nor one that went back to it, but what a run begins from is pushed, even before the model is loaded."""
    none = "Nothing was learned yet"
    for number, sentence in ((0, none), (2, none), (1, "")):
        desk.session.rollback(number)
        if not sentence:
            assert list(desk.session.push(Repository("ann/warm"), "kohya"))[-1].address
            continue
        with pytest.raises(InvalidInput, match=sentence):
            list(desk.session.push(Repository("ann/warm"), "kohya"))
        assert (hub.requests, desk.labels) == ([], [])


def test_a_new_run_is_pushed_only_where_it_begins_from_a_lora(runs: Path, adapter: Adapter, hub: StandInHub) -> None:
    loop = fake_loop(runs, FakeEngine(), threaded=False)
    with closing(Session(loop, lambda engine, format, label: export(adapter, format, runs / "exports"))) as session:
        loop.start()
        with pytest.raises(InvalidInput, match="Nothing was learned yet"):
            list(session.push(Repository("ann/warm"), "kohya"))
        assert hub.requests == []
        loop.store.note(LORA, {"sha256": "abc"})
        assert list(session.push(Repository("ann/warm"), "kohya"))[-1].address


def test_the_worker_makes_the_files_and_is_free_while_they_are_sent(desk: Desk, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the commit is under way the worker does something else: were it held, the commit would fail."""
    monkeypatch.setattr(loophil.session, "WAIT_SECONDS", 20.0)
    commit, done = hub.commit, []

    def committing(name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        done.append(desk.session.measure(lambda engine: threading.current_thread()))
        return commit(name, lines)

    monkeypatch.setattr(hub, "commit", committing)
    steps = list(desk.session.push(Repository("ann/warm")))
    assert steps[-1] == PushStep("Published", f"{hub.url}/ann/warm")
    assert done == [desk.by]
    assert desk.by is not threading.current_thread()


def test_nothing_is_made_on_the_hub_before_the_files_are_there(desk: Desk, hub: StandInHub) -> None:
    wrong = (Label("../x"), Label(trigger="a\nb"), Label(licence="\x1b"), Label(covers=("a",) * 5), Label(covers=("a {cat",)))
    for format, label in (("zip", Label()), *(("peft", label) for label in wrong)):
        with pytest.raises(InvalidInput):
            list(desk.session.push(Repository("ann/warm"), format, label))
    assert hub.requests == []
    hub.faults = {"/whoami": 401}
    with pytest.raises(InvalidInput, match="refused the token"):
        list(desk.session.push(Repository("ann/warm")))
    assert desk.labels == []
    hub.faults, desk.fault = {}, OSError("No space left on device")
    with pytest.raises(LoopHILError, match="No space left"):
        list(desk.session.push(Repository("ann/warm")))
    assert hub.repositories == {}


def test_a_token_is_nowhere_in_the_run(desk: Desk, hub: StandInHub, runs: Path) -> None:
    repository = Repository("ann/warm", GOOD)
    list(desk.session.push(repository))
    status = desk.session.status()
    desk.session.close()
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path.name for path in files if GOOD.encode() in path.read_bytes()] == []
    assert GOOD not in f"{status} {repository!r} {desk.loop.settings}"
