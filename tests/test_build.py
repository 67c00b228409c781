"""Runs that begin from a LoRA, through the real parts: what was exported draws the same again, and what does not belong together is refused."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from loophil.build import build, load_engine
from loophil.config import Settings
from loophil.errors import ConfigError, RunError
from loophil.export import FORMATS
from loophil.jobs import Engine
from loophil.session import Session
from loophil.snapshots import bring_back
from loophil.types import Act, DrawSettings
from tests.stand_in_hub import StandInHub
from tests.tiny import tiny_flux, tiny_pipeline, tiny_sd3, tiny_sdxl

PIPELINES = {"Stable Diffusion": tiny_pipeline, "SDXL": tiny_sdxl, "SD3": tiny_sd3, "FLUX": tiny_flux}
QUICK = ["--draw.num-inference-steps", "2", "--draw.size", "16", "--learn.forward-passes", "1", "--learn.forward-batch", "4"]
SEEDS = (11, 12)
COMMITS = ("a" * 40, "b" * 40)


@contextmanager
def opened(model: Path | str, run: str, *flags: str) -> Iterator[Session]:
    """A run on a tiny model, working inside its calls."""
    given = ["--model", str(model), "--run", run, "--device", "cpu", "--no-loop.threaded", *QUICK, *flags]
    with closing(build(Settings.read(given))) as session:
        yield session


def drawn(session: Session, who: str = "published") -> torch.Tensor:
    """The latents of two pictures."""

    def draw(engine: Engine) -> torch.Tensor:
        return engine.sampler.draw("a red circle", DrawSettings(3, 3.0, 1.0), SEEDS, who=who).trajectory.clean_latents

    latents: torch.Tensor = session.measure(draw)
    return latents


def say(session: Session) -> None:
    """Rates a group, and learns from it."""
    session.rate(Act(session.new_group().id, "ann", (1.0, 2.0, 4.0, 5.0)))
    session.new_group()


def versions(session: Session) -> list[tuple[int, int | None, str]]:
    return [(version.number, version.parent, version.kind) for version in session.versions()]


ALIKE = ("SDXL", "SD3")  # two more of the same kinds of layers: for make test-all
FAMILIES = [pytest.param(name, id=name, marks=pytest.mark.slow if name in ALIKE else ()) for name in PIPELINES]


@pytest.fixture(scope="module", params=FAMILIES)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path], torch.Tensor, torch.Tensor]:
    """(model folder, {format: exported file}, what the tuned model draws, what the base draws)."""
    home = tmp_path_factory.mktemp("tuned")
    PIPELINES[request.param]().save_pretrained(home / "model")
    flags = ["--runs", str(home), "--lora.rank", "3", "--lora.alpha", "7.5", "--learn.learning-rate", "0.1", "--learn.forward-learning-rate", "0.1"]
    with opened(home / "model", "a", *flags) as session:
        base = drawn(session)
        say(session)
        assert session.status().policy_version == 1
        formats = [format for format in FORMATS if format != "kohya" or request.param != "SD3"]
        return home / "model", {format: session.export(format) for format in formats}, drawn(session), base


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loras(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{"mine", "other": kohya's files of two versions of one run, of rank 3 and alpha 7.5}."""
    home = tmp_path_factory.mktemp("loras")
    with opened(model, "a", "--runs", str(home), "--lora.rank", "3", "--lora.alpha", "7.5") as session:
        found = {}
        for name in ("mine", "other"):
            say(session)
            found[name] = session.export("kohya")
    return found


# ---- what was exported draws the same ----


def test_each_format_begins_a_run_whose_version_1_draws_as_the_exported_one_did(tuned: Any, runs: Path) -> None:
    model, exported, expected, base = tuned
    assert (expected - base).abs().max() > 0.02  # else what follows could not fail
    for format, lora in {**exported, "folder": exported["peft"].with_suffix("")}.items():
        with opened(model, format, "--lora", str(lora)) as session:
            torch.testing.assert_close(drawn(session), expected, rtol=0, atol=1e-5)
            assert (session.settings.lora.rank, session.settings.lora.alpha) == (3, 7.5)
            assert versions(session) == [(0, None, "base"), (1, 0, "update")]
            assert (session.status().policy_version, session.status().updates) == (1, 0)


def test_the_base_stays_plain_and_rolling_back_leads_to_it(model: Path, loras: dict[str, Path], runs: Path) -> None:
    with opened(model, "plain") as session:
        base = drawn(session)
    with opened(model, "b", "--lora", str(loras["mine"])) as session:
        brought = drawn(session)
        assert session.new_group().policy_version == 1
        assert torch.equal(drawn(session, "base"), base)
        session.rollback(0)
        assert torch.equal(drawn(session), base)
        session.rollback(1)
        assert torch.equal(drawn(session), brought)


# ---- the run goes on ----


def test_the_run_learns_on_from_the_lora_and_reopens_without_it(model: Path, loras: dict[str, Path], runs: Path) -> None:
    with opened(model, "b", "--lora", str(loras["mine"])) as session:
        say(session)
        assert versions(session)[1:] == [(1, 0, "update"), (2, 1, "update")]
        assert session.measure(lambda engine: engine.policy.reference) == "origin"
        learned = drawn(session)
        assert session.settings.lora.file == ""
    for again in ([], ["--lora", str(loras["mine"]), "--lora.rank", "3", "--lora.alpha", "7.5"]):
        with opened(model, "b", *again) as session:
            assert torch.equal(drawn(session), learned)
            assert session.measure(lambda engine: engine.policy.reference) == "origin"
            assert (session.status().policy_version, session.settings.lora.rank, session.settings.lora.file) == (2, 3, "")
    with opened(model, "b") as session:
        session.rollback(0)
        assert session.measure(lambda engine: engine.policy.reference) == "base"


def test_a_plain_run_refers_to_the_base_and_keeps_its_rank(model: Path, runs: Path) -> None:
    with opened(model, "b", "--lora.rank", "2") as session:
        say(session)
        assert session.measure(lambda engine: engine.policy.reference) == "base"
    with opened(model, "b") as session:
        drawn(session)
        assert (session.settings.lora.rank, session.settings.lora.alpha) == (2, 32.0)
    with pytest.raises(ConfigError, match=r"The run 'b' has lora\.alpha 32\.0, not 8\.0: leave --lora\.alpha out\."):
        build(Settings.read(["--model", str(model), "--run", "b", "--lora.alpha", "8", *QUICK]))


def test_a_lora_that_was_lost_is_asked_for_and_taken_again(model: Path, loras: dict[str, Path], runs: Path) -> None:
    with opened(model, "b", "--lora", str(loras["mine"])) as session:
        say(session)
        learned = drawn(session)
    (runs / "b" / "versions" / "1" / "adapter.safetensors").write_bytes(b"spoiled")
    with opened(model, "b") as session, pytest.raises(ConfigError, match=r"began from is damaged or gone: give it once more by --lora FILE"):
        drawn(session)
    with opened(model, "b", "--lora", str(loras["mine"])) as session:
        assert torch.equal(drawn(session), learned)


# ---- snapshots ----


def test_a_run_goes_on_elsewhere_from_its_last_snapshot(model: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loophil.snapshots.CLOSING", 60.0)
    monkeypatch.setattr("loophil.build.notes", lambda settings: ("This is a Space.",))
    (tmp_path / "kept").mkdir()
    with opened(model, "b", "--snapshots", str(tmp_path / "kept")) as session:
        say(session)
        learned = drawn(session)
        assert session.status().note == "This is a Space."
    settings = bring_back(Settings.read(["--runs", str(tmp_path / "new"), "--snapshots", str(tmp_path / "kept")]))
    assert settings.run == "b"
    with opened(model, "b", "--runs", str(tmp_path / "new")) as session:
        assert torch.equal(drawn(session), learned)
        say(session)
        assert versions(session) == [(0, None, "base"), (1, 0, "update"), (2, 1, "update")]


# ---- a model of the Hub ----


@pytest.fixture
def published(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    """The Hub has "ann/tiny" in two commits, which differ by their weights, and the cache is empty."""
    for number, commit in enumerate(COMMITS):
        tiny_pipeline(seed=number).save_pretrained(tmp_path / commit)
        files = {file.relative_to(tmp_path / commit).as_posix(): file.read_bytes() for file in (tmp_path / commit).rglob("*") if file.is_file()}
        hub.models.setdefault("ann/tiny", {})[commit] = files | {"unet/diffusion_pytorch_model.fp16.safetensors": b"x", "unet/model.bin": b"x"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub


def move_main(hub: StandInHub, commit: str) -> None:
    """main is this commit from now on."""
    hub.models["ann/tiny"][commit] = hub.models["ann/tiny"].pop(commit)


def test_a_run_keeps_the_commit_that_it_began_on_whatever_becomes_the_newest(published: StandInHub, runs: Path) -> None:
    drawn_by = {}
    for run, commit in zip("ab", COMMITS, strict=True):
        move_main(published, commit)
        with opened("ann/tiny", run) as session:
            drawn_by[run] = drawn(session)
    assert not torch.equal(drawn_by["a"], drawn_by["b"])
    for flags in ([], ["--revision", COMMITS[0]]):
        with opened("ann/tiny", "a", *flags) as session:
            assert torch.equal(drawn(session), drawn_by["a"])
    for flags in (["--revision", COMMITS[1]], ["--revision", "other"]):
        with pytest.raises(RunError, match=rf"belongs to ann/tiny \(revision {COMMITS[0]}\), not to ann/tiny \(revision {flags[1]}\)"):
            build(Settings.read(["--model", "ann/tiny", "--run", "a", *flags]))


def test_offline_a_branch_is_the_commit_that_was_downloaded(published: StandInHub, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("ann/tiny", "a", "--revision", "main") as session:
        first = drawn(session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    move_main(published, COMMITS[0])
    for run in "ab":  # one that is pinned, and a new one
        with opened("ann/tiny", run, "--revision", "main") as session:
            assert torch.equal(drawn(session), first)
            file = session.export("kohya")
            with safe_open(file, framework="pt") as content:
                facts = content.metadata()
            assert (facts["loophil.base_model"], facts["loophil.revision"]) == ("ann/tiny", COMMITS[1])
            assert f"ann/tiny, revision {COMMITS[1]}" in file.with_name("README.md").read_text()


def test_downloading_and_loading_are_said_by_their_parts(published: StandInHub) -> None:
    said: list[str] = []
    load_engine(Settings.read(["--model", "ann/tiny", "--device", "cpu", *QUICK]), said.append)
    parts = [words.removeprefix("2 of 3: the weights of the base; ") for words in said if "; " in words]
    assert [words for words in parts if "MB" not in words] == [
        *(f"downloading {i} of 5 parts" for i in range(1, 6)),
        *(f"loading {i} of 5 parts" for i in range(1, 6)),
    ]
    megabytes = [words for words in parts if "MB" in words]
    assert {words.partition(";")[0] for words in megabytes} == {"downloading 4 of 5 parts"}  # the UNet, which alone has more than one
    assert re.fullmatch(r".*; (\d+) of \1 MB", megabytes[-1])
    files = {request.rpartition("/")[2] for request in published.requests if request.startswith("GET /ann/tiny/resolve/")}
    assert "diffusion_pytorch_model.safetensors" in files
    assert not files & {"diffusion_pytorch_model.fp16.safetensors", "model.bin"}
    published.requests.clear()
    load_engine(Settings.read(["--model", "ann/tiny", "--device", "cpu", *QUICK]))
    assert [request for request in published.requests if "/resolve/" in request] == []


# ---- what is refused ----


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lora.rank", "16"], r"The LoRA .*\.safetensors has lora\.rank 3, not 16: leave --lora\.rank out\."),
        (["--lora.alpha", "8"], r"The LoRA .*\.safetensors has lora\.alpha 7\.5, not 8\.0: leave --lora\.alpha out\."),
    ],
)
def test_another_rank_or_alpha_than_the_file_s_is_refused(flags: list[str], sentence: str, model: Path, loras: dict[str, Path], runs: Path) -> None:
    with pytest.raises(ConfigError, match=sentence), opened(model, "b", "--lora", str(loras["mine"]), *flags):
        pass
    with opened(model, "b"):  # nobody holds it
        pass


def test_a_run_takes_no_other_lora_than_the_one_it_began_from(model: Path, loras: dict[str, Path], runs: Path) -> None:
    with opened(model, "plain") as session:
        say(session)
    with opened(model, "tuned", "--lora", str(loras["mine"])) as session:
        drawn(session)
    for run, lora in (("plain", "mine"), ("tuned", "other")):
        with pytest.raises(ConfigError, match=rf"The run '{run}' did not begin from .*\.safetensors: leave --lora out, or begin another"):
            build(Settings.read(["--model", str(model), "--run", run, "--lora", str(loras[lora]), *QUICK]))
    with pytest.raises(ConfigError, match=r"The run 'tuned' has lora\.rank 3, not 4: leave --lora\.rank out\."):
        build(Settings.read(["--model", str(model), "--run", "tuned", "--lora.rank", "4", *QUICK]))


def test_a_file_that_is_none_is_refused_before_a_run_is_begun(model: Path, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"is not a \.safetensors file"):
        build(Settings.read(["--model", str(model), "--lora", str(tmp_path / "bad.safetensors")]))
    assert not runs.exists()


def test_a_lora_of_other_layers_is_said_and_nothing_is_drawn(model: Path, loras: dict[str, Path], runs: Path) -> None:
    sentence = r"does not fit: it changes layers that this run does not train: .* Begin the run with --lora\.targets to_k,to_out\.0,to_q,to_v\."
    with opened(model, "b", "--lora", str(loras["mine"]), "--lora.targets", "to_q") as session:
        with pytest.raises(ConfigError, match=sentence):
            session.new_group()
        assert versions(session) == [(0, None, "base")]
    with opened(model, "b") as session:  # without it the same run begins plain
        drawn(session)
        assert (versions(session), session.settings.lora.rank) == ([(0, None, "base")], 16)
