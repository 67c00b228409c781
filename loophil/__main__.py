"""The loop without a page: simulated raters with figures, reward models alone, export, pushing to the Hub, and the feedback as a dataset.

python -m loophil simulate --rater FILE.py:NAME --clicks N [--run NAME] [--seed S] [--out FILE.jsonl] [knobs]
python -m loophil tune --rewards clip_score=1 --updates N [--run NAME] [knobs]
python -m loophil export --run NAME --format diffusers|peft|kohya --to DIR [knobs]
python -m loophil push --run NAME --to USER/REPO [--format diffusers|peft|kohya] [--private] [knobs]
python -m loophil dataset export --to DIR [--what groups|pairs|dpo] [--format parquet|jsonl] [--images embed|reference] [--run NAME] [knobs]
python -m loophil dataset import --from FILE_OR_DIR [--run NAME] [knobs]

push takes the token from HF_TOKEN or from what `hf auth login` stored.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from loophil.build import build, follows, load_rater, measured_prompts, open_store
from loophil.config import Settings
from loophil.dataset import FORMATS as DATASET_FORMATS
from loophil.dataset import IMAGES, KINDS, export_dataset, import_dataset, look
from loophil.errors import ConfigError, LearningError, LoopHILError, RunError, machine_refused
from loophil.evaluation import Examiner
from loophil.hub import Repository
from loophil.process import prepare_process
from loophil.session import FORMATS, Session
from loophil.snapshots import bring_back
from loophil.store import last_opened, list_runs
from loophil.types import GO_ON, Act, DrawSettings, Group

CHECKPOINTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
Rater = Callable[[list[Image.Image], str, np.random.Generator], list[float | None]]


def main(argv: list[str] | None = None) -> int:
    """Runs a command; the exit status. 78: settings that cannot work, 73: a run that cannot be opened, 1: any other refusal."""
    parser = argparse.ArgumentParser(prog="python -m loophil", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    simulating = commands.add_parser("simulate", help="a simulated person rates; one JSON line of figures at 0, 16, 32, 64, ... clicks")
    simulating.add_argument("--rater", required=True, help="FILE.py:NAME, a callable (images, prompt, rng) -> stars 1..5 or None each")
    simulating.add_argument("--clicks", type=int, required=True, help="rated images to stop after")
    simulating.add_argument("--out", type=Path, help="file for the JSON lines; without it they are printed")
    tuning = commands.add_parser("tune", help="reward models alone, no person")
    tuning.add_argument("--updates", type=int, required=True, help="versions to publish")
    exporting = commands.add_parser("export", help="the current LoRA of a run as a file")
    exporting.add_argument("--format", choices=FORMATS, required=True)
    exporting.add_argument("--to", type=Path, required=True, help="folder to put it in")
    pushing = commands.add_parser("push", help="the current LoRA of a run to the Hugging Face Hub, with its card")
    pushing.add_argument("--to", required=True, help="the repository, USER/REPO; it is made if it is not there")
    pushing.add_argument("--format", choices=FORMATS, default="diffusers")
    pushing.add_argument("--private", action="store_true", help="for you alone to see")
    _add_dataset(commands.add_parser("dataset", help="the feedback as a dataset").add_subparsers(dest="way", required=True))
    given, knobs = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    run = {"simulate": simulate, "tune": tune, "export": export, "push": push, "dataset": dataset}[given.command]
    try:
        return run(given, knobs)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    except RunError as error:
        print(error, file=sys.stderr)
        return 73
    except LoopHILError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(machine_refused(error, where=True), file=sys.stderr)
        return 1


def _add_dataset(ways: Any) -> None:
    exporting = ways.add_parser("export", help="groups with all ratings, or pairs of images, as a file in a folder")
    exporting.add_argument("--to", type=Path, required=True, help="folder to put it in")
    exporting.add_argument("--what", choices=KINDS, default="groups", help="a row a group, a pair with Pick-a-Pic's columns, or chosen and rejected")
    exporting.add_argument("--format", choices=DATASET_FORMATS, default="parquet")
    exporting.add_argument("--images", choices=IMAGES, default="embed", help="in the file, or beside it and named in it")
    importing = ways.add_parser("import", help="ratings of another run or program, for the taste model alone")
    importing.add_argument("--from", type=Path, required=True, dest="source", metavar="FILE_OR_DIR", help="such a file, or the folder that it is in")


def simulate(given: argparse.Namespace, knobs: list[str]) -> int:
    """A session without a page, as fast as the machine allows. Without --run, in a temporary run that is removed."""
    rater = load_rater(given.rater)
    settings = _inline(Settings.read(knobs))
    throwaway = None
    if settings.run is None:
        throwaway = Path(tempfile.mkdtemp(prefix="loophil-simulate-"))
        settings = settings.model_copy(update={"run": "simulate", "runs": throwaway, "snapshots": ""})
    try:
        with _open(settings) as session, _lines(given.out) as out:
            Simulation(session, settings, rater, out).run(given.clicks)
    finally:
        if throwaway:
            shutil.rmtree(throwaway, ignore_errors=True)
    return 0


class Simulation:
    """A rater at work on a session, and the figures at its checkpoints. Measuring does not count as time and never teaches."""

    def __init__(self, session: Session, settings: Settings, rater: Rater, out: IO[str]) -> None:
        self.session, self.rater, self.out = session, rater, out
        self.rng = np.random.default_rng((settings.seed, 23))
        self.prompts = measured_prompts(settings)
        self.clicks = self.images = 0
        self.measuring = 0.0
        self.began = time.monotonic()

    @cached_property
    def examiner(self) -> Examiner:
        """By the rater's own utility."""
        utility = getattr(self.rater, "utility", None) or (lambda image, prompt: 0.0)
        return Examiner(self.prompts, DrawSettings.of(self.session.settings.draw), utility, follows)

    def run(self, clicks: int) -> None:
        """Rates until `clicks` images are rated; a line at each checkpoint passed and at the end."""
        self.report()
        passed = 0
        while self.clicks < clicks:
            self.rate(self.session.new_group())
            due = [c for c in CHECKPOINTS if passed < c <= min(self.clicks, clicks - 1)]
            if due:
                passed = due[-1]
                self.report()
        self.report()

    def rate(self, group: Group) -> None:
        """One group: its pictures to the rater, the stars to the session."""
        pictures = [Image.open(self.session.images / ref.file).convert("RGB") for ref in group.images]
        stars = tuple(None if s is None else float(s) for s in self.rater(pictures, group.prompt, self.rng))
        rated = sum(s is not None for s in stars)
        self.session.rate(Act(group.id, "simulated", stars, kind="stars" if rated else "skip"))
        self.clicks += rated
        self.images += len(pictures)

    def report(self) -> None:
        """One JSON line."""
        before = time.monotonic()
        figures = self.session.measure(lambda engine: self.examiner.measure(engine.sampler))  # once the model has said how it is drawn
        self.measuring += time.monotonic() - before
        status = self.session.status()
        line: dict[str, Any] = {
            "clicks": self.clicks,
            "images": self.images,
            "updates": status.updates,
            "seconds": round(time.monotonic() - self.began - self.measuring, 1),
        }
        line |= {name: None if value is None else round(value, 4) for name, value in asdict(figures).items()}
        print(json.dumps(line), file=self.out, flush=True)


def tune(given: argparse.Namespace, knobs: list[str]) -> int:
    """Automatic rounds: draw, score, learn, until so many versions are published."""
    settings = _inline(Settings.read(knobs))
    if not any(settings.rewards.values()):
        raise ConfigError("tune needs reward models: give --rewards, for example --rewards clip_score=1,jpeg=0.2.")
    with _open(settings) as session:
        goal = session.status().updates + given.updates
        while (status := session.status()).updates < goal:
            session.automatic_round()
            if GO_ON in session.status().remedies:
                raise LearningError(f"{session.status().last_error}")
            if status.last_error or status.missing_rewards:
                print(status.last_error or "; ".join(status.missing_rewards.values()), file=sys.stderr)
            print(json.dumps({"updates": session.status().updates, **session.status().last_update}))
    return 0


def export(given: argparse.Namespace, knobs: list[str]) -> int:
    """Writes the run's current LoRA to a folder."""
    settings = _of_a_run(_inline(Settings.read(knobs)))
    with _open(settings) as session:
        made = session.export(given.format)
        given.to.mkdir(parents=True, exist_ok=True)
        target = given.to / made.name
        shutil.copyfile(made, target)
    print(target)
    return 0


def push(given: argparse.Namespace, knobs: list[str]) -> int:
    """Publishes the run's current LoRA and prints the repository's address. There is no flag for the token: everybody here could read it."""
    if any(knob.startswith("--") and "token" in knob.partition("=")[0] for knob in knobs):
        raise ConfigError("A token on the command line can be read by every process: set HF_TOKEN or run `hf auth login` instead.")
    settings = _inline(Settings.read(knobs))
    repository = Repository(given.to)
    repository.sign_in()  # before a large model is loaded
    with _open(_of_a_run(settings)) as session:
        for step in session.push(repository, given.format, private=given.private):
            print(step.address or step.doing, file=sys.stdout if step.address else sys.stderr)
    return 0


def dataset(given: argparse.Namespace, knobs: list[str]) -> int:
    """Writes the run's groups or pairs to a folder, or takes in such a file. No model is loaded."""
    settings = Settings.read(knobs)
    if given.way == "import":
        look(given.source)  # before a run is made for it
    else:
        settings = _of_a_run(settings)
    with open_store(settings) as store:
        if given.way == "export":
            print(export_dataset(store, given.to, kind=given.what, format=given.format, images=given.images))
        else:
            new = import_dataset(store, given.source)
            print(f"{new.groups} groups with {new.acts} ratings imported into '{store.name}'; passed over: {new.passed_over or 'none'}.")
    return 0


def _of_a_run(settings: Settings) -> Settings:
    """The settings of a run that is there, if need be by its snapshot; RunError where there is none: it would be made, and have nothing to give."""
    settings = bring_back(settings)
    name = settings.run or last_opened(settings.runs)
    if name not in list_runs(settings.runs):
        raise RunError(f"There is no run '{name or 'first'}' in {settings.runs}: name one by --run, and its folder by --runs.")
    return settings


def _inline(settings: Settings) -> Settings:
    return settings.model_copy(update={"loop": settings.loop.model_copy(update={"threaded": False})})


class _open:
    """A session that is closed at the end of the block."""

    def __init__(self, settings: Settings) -> None:
        self.session = build(bring_back(settings))

    def __enter__(self) -> Session:
        return self.session

    def __exit__(self, *_: object) -> None:
        self.session.close()


class _lines:
    """A file to write lines to, or the standard output."""

    def __init__(self, path: Path | None) -> None:
        self.stream: IO[str] = path.open("a") if path else sys.stdout

    def __enter__(self) -> IO[str]:
        return self.stream

    def __exit__(self, *_: object) -> None:
        if self.stream is not sys.stdout:
            self.stream.close()


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
