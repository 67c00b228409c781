"""The figures, by hand."""

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from loophil.evaluation import Examiner, Figures, effect, spread, wilson, win_rate
from loophil.types import DrawSettings

SETTINGS = DrawSettings(4, 1.0, 1.0)


def grey(level: int, size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


def brightness(image: Image.Image, prompt: str) -> float:
    return float(np.asarray(image).mean())


def unknown(image: Image.Image, prompt: str) -> float | None:
    return None


@dataclass
class Painter:
    """A sampler and its policy in one: grey pictures, the tuned ones lighter by 10; remembers what it was asked for."""

    version: int = 1
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def policy(self) -> "Painter":
        return self

    def pictures(self, prompt: str, settings: DrawSettings, seeds: tuple[int, ...], *, who: str) -> list[Image.Image]:
        self.asked.append((prompt, who))
        return [grey(seed + (10 if who == "published" else 0)) for seed in seeds]


def test_win_rate_counts_ties_half() -> None:
    # won, lost, tied, won: (2 + 1/2) / 4
    assert win_rate(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 1.0], [3.0, 5.0]])) == 0.625


def test_win_rate_pairs_the_same_prompt_and_seed() -> None:
    # the same four values in another order: each prompt wins one and loses one
    assert win_rate(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 1.0], [4.0, 3.0]])) == 0.5


def test_effect_is_in_standard_deviations_of_the_base_within_a_prompt() -> None:
    # variances (ddof 1) of [0, 2] and [10, 14]: 2 and 8, pooled sqrt(5); the shift is (1 + 1 + 3 + 3) / 4 = 2.
    # How far the prompts lie apart (1 against 12) does not count.
    base, tuned = np.array([[0.0, 2.0], [10.0, 14.0]]), np.array([[1.0, 3.0], [13.0, 17.0]])
    assert effect(base, tuned) == pytest.approx(2 / math.sqrt(5))
    assert effect(tuned, base) == pytest.approx(-2 / math.sqrt(5))


def test_effect_is_0_where_the_base_has_no_spread() -> None:
    assert effect(np.ones((2, 4)), np.full((2, 4), 2.0)) == 0


def test_spread_is_the_distance_of_pictures_of_one_prompt() -> None:
    # greys 0, 51, 153 of 255: distances 0.2, 0.6, 0.4; the second prompt's pictures are equal: 0, 0, 0
    assert spread([[grey(0), grey(51), grey(153)], [grey(9), grey(9), grey(9)]]) == pytest.approx(0.2)


def test_spread_looks_at_32x32_pixels_whatever_the_size_and_mode() -> None:
    half_white = grey(0, 64)
    half_white.paste((255, 255, 255), (0, 0, 64, 32))  # half of the pixels differ by 1: sqrt(1 / 2)
    assert spread([[half_white, grey(0, 128).convert("L")]]) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # by hand: centre (0.8 + 0.19208) / 1.38416 = 0.71674, half 0.22659
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (2.5, 5, 0.1704, 0.8296),  # ties count half: 0.5 -+ 1.96 sqrt(0.05 + 0.038416) / 1.76832
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_s_interval(wins: float, n: int, low: float, high: float) -> None:
    assert wilson(wins, n) == pytest.approx((low, high), abs=5e-5)


def test_an_examiner_compares_tuned_with_base_on_every_prompt() -> None:
    # base 100 and 140 for both prompts: std sqrt(800); tuned is 10 lighter everywhere
    painter = Painter()
    figures = Examiner(["a", "b"], SETTINGS, brightness, unknown, seeds=(100, 140)).measure(cast(Any, painter))
    assert painter.asked == [("a", "base"), ("b", "base"), ("a", "published"), ("b", "published")]
    assert asdict(figures) == pytest.approx(
        {"win_rate": 1.0, "effect": 10 / math.sqrt(800), "diversity": 1.0, "prompt_following": None, "base_prompt_following": None}
    )


def test_the_base_is_drawn_once() -> None:
    painter, examiner = Painter(), Examiner(["a"], SETTINGS, brightness, unknown, seeds=(1, 2))
    examiner.measure(cast(Any, painter))
    examiner.measure(cast(Any, painter))
    assert [who for _, who in painter.asked] == ["base", "published", "published"]


def test_version_0_is_the_base_and_is_not_drawn_again() -> None:
    painter = Painter(version=0)
    figures = Examiner(["a"], SETTINGS, brightness, unknown, seeds=(1, 2)).measure(cast(Any, painter))
    assert [who for _, who in painter.asked] == ["base"]
    assert figures == Figures(0.5, 0.0, 1.0, None, None)


def test_utility_and_following_are_asked_with_the_picture_s_own_prompt() -> None:
    def length(image: Image.Image, prompt: str) -> float:
        return brightness(image, prompt) * len(prompt)

    # prompts of 1 and 3 letters: base 1, 3 and 3, 9; tuned 11, 13 and 33, 39; shifts 10, 10, 30, 30; variances 2 and 18
    figures = Examiner(["a", "bcd"], SETTINGS, length, unknown, seeds=(1, 3)).measure(cast(Any, Painter()))
    assert figures.effect == pytest.approx(20 / math.sqrt(10))


def test_prompts_that_cannot_be_read_are_left_out_of_the_following() -> None:
    def follows(image: Image.Image, prompt: str) -> float | None:
        return {"a": 1.0 if brightness(image, prompt) < 105 else 0.5, "b": None, "c": math.nan}[prompt]

    figures = Examiner(["a", "b", "c"], SETTINGS, brightness, follows, seeds=(99, 101)).measure(cast(Any, Painter()))
    assert (figures.base_prompt_following, figures.prompt_following) == (1.0, 0.5)  # 109 and 111 are too bright


def test_diversity_is_the_tuned_spread_over_the_base_s() -> None:
    examiner = Examiner(["a"], SETTINGS, brightness, unknown, seeds=(1, 2))
    figures = examiner.compare([[grey(0), grey(100)]], [[grey(0), grey(80)]])
    assert figures.diversity == pytest.approx(0.8)


def test_a_base_without_diversity_says_nothing_about_diversity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = Examiner(["a"], SETTINGS, brightness, unknown, seeds=(1, 2)).compare([[grey(5), grey(5)]], [[grey(0), grey(80)]])
    assert figures.diversity is None
