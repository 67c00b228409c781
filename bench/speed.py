"""How long a group takes and how long an update takes, on this machine, with the default knobs: medians and ranges."""

import argparse
import statistics
import time

import numpy as np

from loophil.build import load_engine
from loophil.config import Settings
from loophil.jobs import Engine
from loophil.trainer import Example, Trainer
from loophil.types import Drawing, DrawSettings, Group, Lesson


def run(argv: list[str]) -> int:
    """Prints one line per figure: minimum, median, maximum in seconds."""
    parser = argparse.ArgumentParser(prog="python -m bench speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    given, knobs = parser.parse_known_args(argv)
    settings = Settings.read(knobs)
    began = time.monotonic()
    engine = load_engine(settings)
    print(f"load the model: {time.monotonic() - began:.1f} s")
    draw = DrawSettings.of(settings.draw)
    seeds = tuple(range(settings.draw.num_images_per_prompt))
    _report("draw a group", [_drawing(engine, draw, seeds) for _ in range(given.repeats + 1)][1:])
    _report("update on one rated group", [_update(engine, draw, seeds) for _ in range(given.repeats + 1)][1:])
    return 0


def _drawing(engine: Engine, draw: DrawSettings, seeds: tuple[int, ...]) -> float:
    began = time.monotonic()
    engine.sampler.draw("a red circle", draw, seeds)
    return time.monotonic() - began


def _update(engine: Engine, draw: DrawSettings, seeds: tuple[int, ...]) -> float:
    example = rated(engine.trainer, engine.sampler.draw("a red circle", draw, seeds))
    began = time.monotonic()
    for _ in engine.trainer.update([example]):
        pass
    return time.monotonic() - began


def rated(trainer: Trainer, drawing: Drawing) -> Example:
    """A group as somebody may have rated it, ready to be learned from."""
    group = Group("bench", drawing.prompt, drawing.settings, drawing.policy_version, ())
    return trainer.example(Lesson(group, np.linspace(-1.5, 1.5, len(drawing.seeds)), {"human:bench": 1.0}, 0), drawing.trajectory)


def _report(name: str, taken: list[float]) -> None:
    print(f"{name}: {min(taken):.2f} / {statistics.median(taken):.2f} / {max(taken):.2f} s (minimum, median, maximum of {len(taken)})")
