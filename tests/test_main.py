"""`python -m loophil`: simulate, tune, export and push as somebody types them, on a tiny model folder; and what is said when they cannot be."""

import errno
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from loophil.__main__ import main
from loophil.store import describe_runs, open_run
from loophil.types import Act
from tests.stand_in_hub import GOOD, StandInHub

ROOT = Path(__file__).resolve().parents[1]
KEYS = ["clicks", "images", "updates", "seconds", "win_rate", "effect", "diversity", "prompt_following", "base_prompt_following"]
QUICK = ["--draw.num-inference-steps", "2", "--learn.forward-passes", "1", "--learn.forward-batch", "4", "--lora.rank", "2", "--lora.alpha", "3"]
RATER = '''
import numpy as np


class Bright:
    """Likes bright pictures, and never says anything about the last one."""

    def utility(self, image, prompt):
        return float(np.asarray(image).mean())

    def __call__(self, images, prompt, rng):
        assert all(image.mode == "RGB" for image in images) and isinstance(prompt, str)
        noisy = [self.utility(image, prompt) + rng.normal() for image in images]
        return [float(rank) + 1 for rank in np.argsort(np.argsort(noisy))][:-1] + [None]


bright = Bright()
number = 5


def silent(images, prompt, rng):
    return [3] * len(images)
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in diffusers' format."""
    from tests.tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Eight prompts, of which two are for measuring."""
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a red circle", "a blue star", "two green hearts", *(f"picture number {i}" for i in range(5))]))
    return file


@pytest.fixture
def rater(tmp_path: Path) -> Path:
    file = tmp_path / "rater.py"
    file.write_text(RATER)
    return file


@pytest.fixture
def knobs(model: Path, prompts: Path) -> list[str]:
    return ["--model", str(model), "--draw.prompts", str(prompts), *QUICK]


def simulate(rater: Path, clicks: int, knobs: Sequence[str], name: str = "bright") -> int:
    return main(["simulate", "--rater", f"{rater}:{name}", "--clicks", str(clicks), *knobs])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for line in text.splitlines()]


def test_simulation_measures_at_0_at_16_and_at_the_end(
    rater: Path, knobs: list[str], tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four pictures get stars: 16 is passed at 18 clicks, and 19 at 21."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert simulate(rater, 19, knobs) == 0
    first = lines(capsys.readouterr().out)
    assert [list(line) for line in first] == [KEYS] * 3
    assert [(line["clicks"], line["images"], line["updates"]) for line in first] == [(0, 0, 0), (18, 24, 6), (21, 28, 7)]
    assert (first[0]["win_rate"], first[0]["effect"], first[0]["diversity"]) == (0.5, 0.0, 1.0)
    assert all(0 <= line["win_rate"] <= 1 and line["seconds"] >= 0 for line in first)
    assert first[-1]["effect"] != 0
    assert list(scratch.iterdir()) == []
    assert not runs.exists()
    out = tmp_path / "again.jsonl"
    assert simulate(rater, 19, [*knobs, "--out", str(out)]) == 0
    assert [line | {"seconds": 0} for line in lines(out.read_text())] == [line | {"seconds": 0} for line in first]
    assert capsys.readouterr().out == ""


def test_simulation_of_a_named_run_stays_and_can_be_exported(
    rater: Path, knobs: list[str], tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(rater, 3, [*knobs, "--run", "mine", "--seed", "5"]) == 0
    with closing(open_run(runs, "mine", base_model=knobs[1], revision=None)) as store:
        counts = store.counts()
        assert (counts.ratings, counts.updates, store.current_version().number) == (3, 1, 1)
    capsys.readouterr()
    for format in ("diffusers", "kohya"):
        assert main(["export", "--format", format, "--to", str(tmp_path / "out"), "--run", "mine", *knobs]) == 0
    zipped, kohya = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert zipped.parent == kohya.parent == tmp_path / "out"
    assert any(name.endswith("pytorch_lora_weights.safetensors") for name in zipfile.ZipFile(zipped).namelist())
    with safe_open(kohya, framework="numpy") as file:
        assert (file.metadata()["ss_network_dim"], float(file.metadata()["ss_network_alpha"])) == ("2", 3.0)


def test_a_run_is_pushed_with_its_card_and_the_token_is_seen_nowhere(
    rater: Path,
    knobs: list[str],
    tmp_path: Path,
    runs: Path,
    hub: StandInHub,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert simulate(rater, 3, [*knobs, "--run", "mine"]) == 0
    capfd.readouterr()
    assert main(["push", "--to", "ann/warm", "--private", "--run", "mine", *knobs]) == 0
    said = capfd.readouterr()
    assert said.out == f"{hub.url}/ann/warm\n"
    assert [line for line in said.err.splitlines() if line.startswith(("Signing", "Making", "Uploading"))][-1].startswith("Uploading 10 files, ")
    [(name, message, files)] = hub.commits
    with zipfile.ZipFile(runs / "mine" / "exports" / "mine-v1-diffusers.zip") as exported:
        assert files == {file: exported.read(file) for file in exported.namelist()}
    assert (name, message, hub.repositories) == ("ann/warm", "mine-v1-diffusers, made with LoopHIL", {"ann/warm": True})
    assert {"README.md", "pytorch_lora_weights.safetensors", "images/base_3.png", "images/tuned_3.png"} < set(files)
    assert "3 rated images" in files["README.md"].decode()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) > 10
    assert [path.name for path in kept if GOOD.encode() in path.read_bytes()] == []
    assert GOOD not in said.out + said.err + caplog.text


def test_what_cannot_be_pushed_is_said_before_a_model_is_loaded(
    runs: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults = {"/whoami": 401}
    for name, sentence in (("ann/warm", "The Hub refused the token"), ("warm", "A repository is named USER/REPO")):
        assert main(["push", "--to", name]) == 1
        assert capsys.readouterr().err.startswith(sentence)
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", "--to", "ann/warm"]) == 1
    assert capsys.readouterr().err.startswith("There is no Hugging Face token")
    assert not runs.exists()


def test_a_run_that_is_not_there_is_neither_made_nor_exported_nor_pushed(
    knobs: list[str], tmp_path: Path, runs: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    for command in (["export", "--format", "kohya", "--to", str(tmp_path / "out")], ["push", "--to", "ann/warm"]):
        for named, name in (([], "first"), (["--run", "none"], "none"), (["--run", "none", "--snapshots", str(tmp_path / "kept")], "none")):
            assert main([*command, *named, *knobs]) == 73
            assert capsys.readouterr().err.startswith(f"There is no run '{name}' in ")
    assert [folder for folder in (runs, tmp_path / "out") if folder.exists()] == []
    assert hub.repositories == {}


def test_a_run_that_only_its_snapshot_has_is_exported(
    rater: Path, knobs: list[str], tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["--run", "mine", "--snapshots", str(tmp_path / "kept"), *knobs]
    (tmp_path / "kept").mkdir()
    assert simulate(rater, 3, kept) == 0
    shutil.rmtree(runs)
    assert main(["export", "--format", "kohya", "--to", str(tmp_path / "out"), *kept]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine-v1-kohya.safetensors"]


def test_what_has_learned_nothing_is_not_pushed(knobs: list[str], runs: Path, hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_run(runs, "mine", base_model=knobs[1], revision=None)):
        """A new run."""
    assert main(["push", "--to", "ann/warm", "--run", "mine", *knobs]) == 1
    assert (
        capsys.readouterr().err
        == "Nothing was learned yet that could be pushed: rate a few groups first, or roll back to a version that has learned.\n"
    )
    assert hub.repositories == {}


@pytest.mark.parametrize("flag", [["--token", GOOD], [f"--hf-token={GOOD}"]])
def test_a_token_on_the_command_line_is_refused_and_not_repeated(flag: list[str], hub: StandInHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--to", "ann/warm", *flag]) == 78
    assert capsys.readouterr().err == "A token on the command line can be read by every process: set HF_TOKEN or run `hf auth login` instead.\n"
    assert hub.requests == []


def test_tuning_by_rewards_publishes_so_many_versions(knobs: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--updates", "2", "--rewards", "jpeg=1", "--run", "small", *knobs]) == 0
    said = lines(capsys.readouterr().out)
    assert [line["updates"] for line in said] == [1, 2]
    assert said[-1]["shares"] == {"jpeg": 1.0}
    with closing(open_run(runs, "small", base_model=knobs[1], revision=None)) as store:
        assert (store.counts().ratings, store.current_version().number) == (0, 2)


def test_tuning_ends_where_automatic_rounds_go_too_far(knobs: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["--learn.learning-rate", "0.1", "--loop.drift-cap-nats", "1e-6", "--loop.diversity-floor", "0"]
    assert main(["tune", "--updates", "50", "--rewards", "jpeg=1", "--run", "small", *knobs, *far]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("Automatic rounds have stopped: pictures went ")
    assert 0 < len(lines(said.out)) < 50


def test_a_run_keeps_its_picture_size(rater: Path, knobs: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [*knobs, "--run", "mine"]
    assert simulate(rater, 3, [*named, "--draw.size", "8"]) == 0
    with Image.open(next((runs / "mine" / "images").glob("*.png"))) as picture:
        assert picture.size == (8, 8)
    capsys.readouterr()
    assert simulate(rater, 3, named) == 78
    assert capsys.readouterr().err == "The run 'mine' has draw.size 8, not 0, for all of its pictures: begin a new run for another size.\n"
    assert simulate(rater, 6, [*named, "--draw.size", "8"]) == 0


def test_ties_are_no_clicks_for_the_learner(rater: Path, knobs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(rater, 4, knobs, "silent") == 0
    assert [(line["clicks"], line["updates"]) for line in lines(capsys.readouterr().out)] == [(0, 0), (4, 0)]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["simulate", "--rater", "nowhere.py:bright", "--clicks", "4"], "nowhere.py"),
        (["simulate", "--rater", "{rater}:nobody", "--clicks", "4"], "nobody"),
        (["simulate", "--rater", "{rater}:number", "--clicks", "4"], "number"),
        (["simulate", "--rater", "{rater}", "--clicks", "4"], "rater.py"),
        (["simulate", "--rater", "{rater}:bright", "--clicks", "4", "--learn.beta", "0"], "learn.beta"),
        (["simulate", "--rater", "{rater}:bright", "--clicks", "4", "--learn.bete", "1"], "unrecognized arguments: --learn.bete"),
        (["simulate", "--rater", "{rater}:bright", "--clicks", "4", "--model", "nowhere/at-all"], "nowhere/at-all"),
        (["simulate", "--rater", "{rater}:bright", "--clicks", "4", "--draw.prompts", "nowhere.txt"], "nowhere.txt"),
        (["tune", "--updates", "1"], "--rewards"),
        (["tune", "--updates", "1", "--rewards", "beauty=1"], "beauty"),
        (["tune", "--updates", "1", "--rewards", "jpeg"], "jpeg"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else None,
)
def test_settings_that_cannot_work_end_with_78_and_one_line(
    rater: Path, model: Path, command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.format(rater=rater) for part in command]
    if "--model" not in given:
        given += ["--model", str(model)]
    assert main(given) == 78
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_run_that_cannot_be_opened_ends_with_73_and_one_line(rater: Path, knobs: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.test_dataset import add

    with closing(open_run(runs, "mine", base_model="another", revision=None)) as store:
        add(store)
        assert simulate(rater, 4, [*knobs, "--run", "mine"]) == 73
        assert "open in another process" in capsys.readouterr().err
    assert simulate(rater, 4, [*knobs, "--run", "mine"]) == 73
    said = capsys.readouterr().err
    assert "belongs to another" in said
    assert len(said.splitlines()) == 1


@pytest.fixture
def rated(runs: Path) -> Path:
    """A run of another base with one rated group, which was opened with a list of prompts; its folder."""
    from tests.test_dataset import add

    settings = json.dumps({"model": "nowhere/at-all", "revision": "v2", "draw": {"prompts": "/lists/mine.txt"}})
    with closing(open_run(runs, "mine", base_model="nowhere/at-all", revision="v2", settings_json=settings)) as store:
        store.rate(Act(add(store).id, "ann", (1.0, 2.0, 3.0, 4.0)), 0)
    return runs / "mine"


def test_dataset_leaves_one_run_and_comes_into_another(rated: Path, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "export", "--to", str(out), "--run", "mine"]) == 0
    more = ["--what", "pairs", "--format", "jsonl", "--images", "reference"]
    assert main(["dataset", "export", "--run", "mine", "--to", str(out), *more]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out / "groups.parquet"), str(out / "pairs.jsonl")]
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 6
    for new, rest in ((1, "none"), (0, "1 there already")):
        assert main(["dataset", "import", "--run", "other", "--from", str(out / "groups.parquet"), "--model", "some/where"]) == 0
        assert capsys.readouterr().out == f"{new} groups with {new} ratings imported into 'other'; passed over: {rest}.\n"
    with closing(open_run(runs, "other", base_model="some/where", revision=None)) as store:
        assert [taught.ratings["ann"].tolist() for taught in store.imported(9)] == [[1.0, 2.0, 3.0, 4.0]]


def test_run_is_as_it_was_opened_last_after_its_dataset_has_left(rated: Path, tmp_path: Path, runs: Path) -> None:
    assert main(["dataset", "export", "--to", str(tmp_path / "out"), "--run", "mine"]) == 0
    (info,) = describe_runs(runs)
    assert (info.settings["model"], info.settings["revision"], info.settings["draw"]["prompts"]) == ("nowhere/at-all", "v2", "/lists/mine.txt")


def test_dataset_of_a_run_that_is_not_there_makes_none(tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for named, name in (([], "first"), (["--run", "none"], "none")):
        assert main(["dataset", "export", "--to", str(tmp_path / "out"), *named]) == 73
        assert capsys.readouterr().err.startswith(f"There is no run '{name}' in ")
    assert [folder for folder in (runs, tmp_path / "out") if folder.exists()] == []


def test_dataset_that_cannot_be_imported_ends_with_1_and_one_line(rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "groups.jsonl").write_text("{}\n")
    assert main(["dataset", "import", "--from", str(tmp_path / "groups.jsonl"), "--run", "mine"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Row 1 of groups.jsonl: It has none of the columns")
    assert len(said.splitlines()) == 1


def test_folder_that_cannot_be_written_ends_with_1_and_one_line(rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["dataset", "export", "--to", str(tmp_path / "file" / "out"), "--run", "mine"]) == 1
    assert capsys.readouterr().err == f"This machine could not do it: Not a directory ({tmp_path / 'file' / 'out'}).\n"


def test_full_disk_ends_an_import_with_1_and_one_line(
    rated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert main(["dataset", "export", "--to", str(tmp_path), "--run", "mine"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("loophil.store.imports.write_file", full)
    assert main(["dataset", "import", "--from", str(tmp_path), "--run", "other"]) == 1
    assert capsys.readouterr().err == "This machine could not do it: No space left on device.\n"


@pytest.mark.parametrize("content", [None, b"{", b""], ids=["missing", "broken", "no parquet"])
def test_file_that_cannot_be_imported_leaves_no_run(tmp_path: Path, runs: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ("groups.parquet" if content == b"" else "groups.jsonl")
    if content is not None:
        file.write_bytes(content)
    assert main(["dataset", "import", "--from", str(file), "--run", "fresh"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not runs.exists()


def test_as_it_is_typed() -> None:
    command = [sys.executable, "-m", "loophil", "simulate", "--rater", "nowhere.py:bright", "--clicks", "4"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (answer.returncode, answer.stdout) == (78, "")
    assert answer.stderr.startswith("--rater nowhere.py:bright:")
