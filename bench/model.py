"""The embedded model's figures, on statements and seeds that were not trained on, with default steps and guidance, eta 1.

one object: colour and shape both right;  two objects: everything stated right;  data/clip: the right caption against 15 that
each state one attribute wrongly.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from bench import size
from data.examples import held_out, one_changed
from data.scenes import Scene, caption, check, render, sample_scene, sample_style
from loophil.build import load_engine
from loophil.config import Settings
from loophil.evaluation import wilson
from loophil.types import DrawSettings
from rewards.features import shared_features


def run(argv: list[str]) -> int:
    """Prints one line per figure, with Wilson's 95% interval; with a MODEL, what that costs (size.py)."""
    if argv and not argv[0].startswith("-"):
        return size.run(argv[0], argv[1:])
    parser = argparse.ArgumentParser(prog="python -m bench model", description=__doc__)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--images", type=int, default=4, help="pictures per prompt")
    given, knobs = parser.parse_known_args(argv)
    settings = Settings.read(knobs)
    engine = load_engine(settings)
    draw = DrawSettings.of(settings.draw)

    def share_right(wanted: Callable[[Scene], bool], right: Callable[[dict[str, bool]], bool]) -> tuple[int, int]:
        verdicts = []
        for number, (prompt, stated) in zip(range(given.prompts), statements(wanted), strict=False):
            seeds = tuple(10_000 * (number + 1) + i for i in range(given.images))
            verdicts += [right(check(image, stated)) for image in engine.sampler.draw(prompt, draw, seeds, who="base").images]
        return sum(verdicts), len(verdicts)

    _report("one object, colour and shape right", *share_right(_one, lambda v: v["1 shape"] and v["1 color"]))
    _report("two objects with a relation, everything right", *share_right(_two, lambda v: all(v.values())))
    _report("data/clip: right caption among 16", *_captions(4 * given.prompts))
    return 0


def statements(wanted: Callable[[Scene], bool]) -> Iterator[tuple[str, Scene]]:
    """Endless (prompt, what it states), never one that was trained on."""
    rng = np.random.default_rng(77)
    while True:
        prompt, stated = caption(sample_scene(rng), rng)
        if held_out(stated) and wanted(stated):
            yield prompt, stated


def _one(stated: Scene) -> bool:
    return len(stated.things) == 1 and stated.things[0].count == 1 and stated.things[0].color is not None


def _two(stated: Scene) -> bool:
    return len(stated.things) == 2 and stated.relation is not None and all(thing.color for thing in stated.things)


def _captions(n: int) -> tuple[int, int]:
    """How often data/clip scores a picture's own caption above 15 captions that are wrong in one attribute."""
    clip, rng, right = shared_features(), np.random.default_rng(78), 0
    for _ in range(n):
        stated, scene = None, sample_scene(rng)
        while stated is None or not held_out(stated):
            scene = sample_scene(rng)
            text, stated = caption(scene, rng, keep=0.9)
        texts = {text: None}
        while len(texts) < 16:
            texts[caption(one_changed(stated, rng), rng, keep=1.0)[0]] = None
        image = render(scene, sample_style(rng), rng)
        right += int(np.argmax(clip.texts(list(texts)) @ clip.images([image])[0]) == 0)
    return right, n


def _report(name: str, right: int, n: int) -> None:
    low, high = wilson(right, n)
    print(f"{name}: {right / n:.0%} ({low:.0%} to {high:.0%}, n = {n})", flush=True)
