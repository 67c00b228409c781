"""The picture world: its English reads back, and its eyes are right often enough to be a reward.

The rates are those of the issue: right on 98% of what true pictures show, 95% of single changes noticed. Samples are seeded.
"""

import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.scene_reading import Reading
from data.scenes import Scene, Style, Thing, caption, check, compare, parse, read, render, sample_scene, sample_style
from data.shapes import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, TEXTURES

KINDS = {"count", "shape", "color", "texture", "size", "relation", "background"}


@dataclass(frozen=True)
class Seen:
    scene: Scene
    reading: Reading


def true_pictures(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return [(scene, render(scene, sample_style(rng), rng)) for scene in scenes]


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return [Seen(scene, read(image)) for scene, image in true_pictures(400, seed=1)]


def kind(key: str) -> str:
    """ "2 color" -> "color"."""
    return key.split()[-1]


def shares(verdicts: list[dict[str, bool]]) -> dict[str, float]:
    """{kind of attribute: share that is right}, and "all" for the mean over all attributes."""
    total, right = Counter[str](), Counter[str]()
    for verdict in verdicts:
        for key, value in verdict.items():
            for name in (kind(key), "all"):
                total[name] += 1
                right[name] += value
    return {name: right[name] / total[name] for name in total}


def single_changes(scene: Scene, rng: np.random.Generator) -> list[tuple[str, Scene]]:
    """[(attribute, the scene with that attribute alone changed)] for everything that the scene states."""

    def other(choices: tuple[str, ...], value: str | None) -> str:
        return str(rng.choice([choice for choice in choices if choice != value]))

    changed: list[tuple[str, Scene]] = []
    for number, thing in enumerate(scene.things, 1):
        variants = {
            "shape": replace(thing, shape=other(SHAPES, thing.shape)),
            "color": replace(thing, color=other(COLORS, thing.color)),
            "texture": replace(thing, texture=other(TEXTURES, thing.texture)),
        }
        if thing.count == 1:  # the things of a count have no size of their own
            variants["size"] = replace(thing, size=other(SIZES, thing.size))
        for name, variant in variants.items():
            things = tuple(variant if t is thing else t for t in scene.things)
            changed.append((f"{number} {name}", replace(scene, things=things)))
    if len(scene.things) == 1:
        count = int(rng.choice([n for n in (1, 2, 3, 4) if n != scene.things[0].count]))
        changed.append(("count", replace(scene, things=(replace(scene.things[0], count=count),))))
    else:
        changed.append(("relation", replace(scene, relation=other(RELATIONS, scene.relation))))
    return [*changed, ("background", replace(scene, background=other(BACKGROUNDS, scene.background)))]


# ---- pixels ----


def test_checker_is_right_on_98_percent_of_true_pictures_and_97_of_each_kind(seen: list[Seen]) -> None:
    right = shares([compare(s.reading, s.scene) for s in seen])
    assert right["all"] >= 0.98, right
    assert set(right) == KINDS | {"all"}
    assert min(right.values()) >= 0.97, right


def test_checker_notices_95_percent_of_single_changes_of_each_kind(seen: list[Seen]) -> None:
    rng = np.random.default_rng(2)
    verdicts = [{key: not compare(s.reading, changed)[key]} for s in seen for key, changed in single_changes(s.scene, rng)]
    noticed = shares(verdicts)
    assert set(noticed) == KINDS | {"all"}
    assert min(noticed.values()) >= 0.95, noticed


def test_checker_bears_softness_and_noise() -> None:
    rng = np.random.default_rng(3)
    verdicts = []
    for scene, image in true_pictures(150, seed=4):
        pixels = ndimage.gaussian_filter(np.asarray(image, float) / 255, (0.5, 0.5, 0)) + rng.normal(0, 0.02, (64, 64, 3))
        verdicts.append(check(Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)), scene))
    assert min(shares(verdicts).values()) >= 0.93, shares(verdicts)


RED_CIRCLE = Thing("circle", "red", "solid", "small")
BLUE_SQUARE = Thing("square", "blue", "striped", "large")


def drawn(scene: Scene) -> Image.Image:
    return render(scene, Style(), np.random.default_rng(5))


def test_verdict_has_a_key_for_each_stated_attribute() -> None:
    image = drawn(Scene((RED_CIRCLE, BLUE_SQUARE), "left of", "dark"))
    stated = Scene((Thing("circle", "red"), Thing("heart", texture="striped", size="large")), "left of")
    assert check(image, stated) == {
        "count": True,
        "1 shape": True,
        "1 color": True,
        "2 shape": False,
        "2 texture": True,
        "2 size": True,
        "relation": True,
    }


def test_things_may_be_named_in_either_order() -> None:
    image = drawn(Scene((RED_CIRCLE, BLUE_SQUARE), "left of", "light"))
    assert all(check(image, Scene((BLUE_SQUARE, RED_CIRCLE), "right of", "light")).values())
    wrong = check(image, Scene((BLUE_SQUARE, RED_CIRCLE), "left of", "light"))
    assert [key for key, value in wrong.items() if not value] == ["relation"]


def test_with_another_number_of_things_only_the_background_is_right() -> None:
    image = drawn(Scene((replace(RED_CIRCLE, size=None, count=3),), None, "night"))
    verdict = check(image, Scene((replace(RED_CIRCLE, size=None, count=2),), None, "night"))
    assert verdict == {"count": False, "1 shape": False, "1 color": False, "1 texture": False, "background": True}
    assert not check(image, Scene((RED_CIRCLE, BLUE_SQUARE), "above"))["relation"]


@pytest.mark.parametrize("size", SIZES)
def test_a_medium_thing_is_neither_small_nor_large(size: str) -> None:
    medium = Thing("heart", "green", "solid", None)
    assert not check(drawn(Scene((medium,), None, "light")), Scene((replace(medium, size=size),)))["1 size"]


def test_larger_pictures_read_alike() -> None:
    for scene, image in true_pictures(12, seed=6):
        large = image.resize((512, 512), Image.Resampling.BICUBIC)
        assert shares([check(large, scene)])["all"] == 1.0, scene


def test_any_picture_gets_a_verdict() -> None:
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    dots = np.where(rng.random((64, 64, 1)) < 0.02, 255, 0).astype(np.uint8).repeat(3, axis=2)
    line = np.zeros((64, 64, 3), np.uint8)
    line[10:60, 30] = 255
    pictures = [Image.fromarray(a) for a in (noise, dots, line)]
    pictures += [Image.new("RGB", (64, 64), c) for c in ("black", "white", "gray")]
    pictures += [Image.new("L", (1, 1)), Image.new("RGBA", (300, 40), (255, 0, 0, 128)), Image.new("P", (64, 64)), Image.new("1", (7, 90))]
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), "above", "gradient")
    for picture in pictures:
        assert not check(picture, scene)["count"]


def test_reading_a_picture_takes_at_most_10_ms() -> None:
    pictures = true_pictures(15, seed=8)
    read(pictures[0][1])  # draws the templates, once

    def milliseconds(image: Image.Image) -> float:
        start = time.thread_time()
        read(image)
        return 1000 * (time.thread_time() - start)

    assert np.median([min(milliseconds(image) for _ in range(3)) for _, image in pictures]) <= 10


def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = true_pictures(3, seed=9), true_pictures(3, seed=9)
    assert all(a == c and b.tobytes() == d.tobytes() for (a, b), (c, d) in zip(first, second, strict=True))
    assert true_pictures(1, seed=10)[0][1].tobytes() != first[0][1].tobytes()


# ---- English ----


def test_every_caption_reads_back_as_what_it_states() -> None:
    rng = np.random.default_rng(11)
    for _ in range(3000):
        text, stated = caption(sample_scene(rng), rng, keep=float(rng.choice((0.3, 0.75, 1.0))))
        assert parse(text) == stated, text


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a heart", Scene((Thing("heart"),))),
        ("A small RED star.", Scene((Thing("star", "red", None, "small"),))),
        ("two grey crosses", Scene((Thing("cross", "gray", count=2),))),
        ("one violet disc with spots at night", Scene((Thing("circle", "purple", "dotted"),), None, "night")),
        ("a star and a moon", Scene((Thing("star"), Thing("moon")))),
        ("the star is below a huge plus", Scene((Thing("star"), Thing("cross", size="large")), "below")),
        (
            "a striped red circle to the left of a small blue star",
            Scene((Thing("circle", "red", "striped"), Thing("star", "blue", None, "small")), "left of"),
        ),
        ("three yellow hearts on a dark background", Scene((Thing("heart", "yellow", count=3),), None, "dark")),
        ("on a gradient, an orange rhombus", Scene((Thing("diamond", "orange"),), None, "gradient")),
    ],
)
def test_natural_prompts_are_read(prompt: str, scene: Scene) -> None:
    assert parse(prompt) == scene


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "a photo of a cat",
        "a cat and a red circle",
        "a red circle in the rain",
        "two stars and a moon",
        "a circles",
        "three star",
        "a red green circle",
        "a dotted square with stripes",
        "five hearts",
        "a star left of a moon above a heart",
        "an astronaut riding a horse, oil on canvas, 4k",
        "a dark background",
        "круг",
        "💙",
    ],
)
def test_what_the_world_cannot_say_is_not_read(prompt: str) -> None:
    assert parse(prompt) is None
