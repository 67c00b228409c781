"""Simulated people: a continuous utility of a picture, told in stars with noise, lapses and skips.

Each is a callable (images, prompt, rng) -> stars, as `python -m loophil simulate --rater bench/tastes.py:warmth` wants it; its
noise-free `utility` is for measuring only. Like a person, it rates against what it has seen so far, not on an absolute scale.
"""

import colorsys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NOISE = 0.5  # of the utility's standard deviation over the pictures seen
LAPSES = 0.03  # share of pictures rated at random
SKIPS = 0.05  # share of pictures left unrated
STARS_PER_STD = 1.3

Pixels = NDArray[np.float64]


class Taste:
    """One simulated person who likes what `measure` of the (h, w, 3) pixels in 0..1 is large."""

    def __init__(self, measure: Callable[[Pixels], float]) -> None:
        self.measure = measure
        self._seen: list[float] = []

    def utility(self, image: Image.Image, prompt: str) -> float:
        """What the picture is worth to this person, without noise."""
        return float(self.measure(np.asarray(image.convert("RGB"), float) / 255))

    def __call__(self, images: list[Image.Image], prompt: str, rng: np.random.Generator) -> list[float | None]:
        values = np.array([self.utility(image, prompt) for image in images])
        self._seen += values.tolist()
        mean, std = float(np.mean(self._seen)), float(np.std(self._seen)) or 1.0
        felt = (values - mean) / std + NOISE * rng.standard_normal(len(values))
        stars: list[Any] = [float(np.clip(round(3 + STARS_PER_STD * z), 1, 5)) for z in felt]
        for i, chance in enumerate(rng.random(len(stars))):
            if chance < LAPSES:
                stars[i] = float(rng.integers(1, 6))
            elif chance < LAPSES + SKIPS:
                stars[i] = None
        return stars


class PromptTaste(Taste):
    """Who likes what `measure` is large where the prompt names one of these words, and what it is small elsewhere."""

    def __init__(self, measure: Callable[[Pixels], float], words: tuple[str, ...]) -> None:
        super().__init__(measure)
        self.words = words

    def utility(self, image: Image.Image, prompt: str) -> float:
        """What the picture is worth to this person, without noise."""
        liked = any(word in prompt for word in self.words)
        return super().utility(image, prompt) if liked else -super().utility(image, prompt)


def _centre(pixels: Pixels) -> tuple[float, float]:
    """(x, y) of what differs from the usual lightness, from -0.5 to 0.5."""
    light = pixels.mean(axis=2)
    weight = np.abs(light - np.median(light)) + 1e-9
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    return float((weight * x).sum() / weight.sum() / light.shape[1] - 0.5), float((weight * y).sum() / weight.sum() / light.shape[0] - 0.5)


def _saturation(pixels: Pixels) -> float:
    small = pixels[2::4, 2::4].reshape(-1, 3)
    return float(np.mean([colorsys.rgb_to_hsv(*p)[1] for p in small]))


brightness = Taste(lambda p: float(p.mean()))
darkness = Taste(lambda p: -float(p.mean()))
warmth = Taste(lambda p: float(p[..., 0].mean() - p[..., 2].mean()))
coolness = Taste(lambda p: float(p[..., 2].mean() - p[..., 0].mean()))
contrast = Taste(lambda p: float(p.mean(axis=2).std()))
saturation = Taste(_saturation)
detail = Taste(lambda p: float(np.abs(np.diff(p.mean(axis=2), axis=0)).mean() + np.abs(np.diff(p.mean(axis=2), axis=1)).mean()))
middling = Taste(lambda p: -abs(float(p.mean()) - 0.5))
composition = Taste(lambda p: -float(np.hypot(*_centre(p))))
leftness = Taste(lambda p: -_centre(p)[0])
symmetry = Taste(lambda p: -float(np.abs(p.mean(axis=2) - p.mean(axis=2)[:, ::-1]).mean()))
mood = PromptTaste(darkness.measure, ("dark", "night", "black"))
matching = PromptTaste(warmth.measure, ("red", "orange", "yellow", "pink", "brown"))
SPREAD = 0.1  # of a utility among pictures of one prompt, roughly
TASTES = {
    "brightness": brightness,
    "darkness": darkness,
    "warmth": warmth,
    "coolness": coolness,
    "contrast": contrast,
    "saturation": saturation,
    "detail": detail,
    "middling": middling,
    "composition": composition,
    "leftness": leftness,
    "symmetry": symmetry,
    "mood": mood,
    "matching": matching,
}


def __getattr__(name: str) -> Callable[[list[Image.Image], list[str]], list[float]]:
    """`oracle_warmth` and so on: the noise-free utility as a reward model (`--rewards bench/tastes.py:oracle_warmth=1`), the ceiling of ratings."""
    kind, _, taste = name.partition("_")
    if kind != "oracle" or taste not in TASTES:
        raise AttributeError(name)

    def oracle(images: list[Image.Image], prompts: list[str]) -> list[float]:
        return [TASTES[taste].utility(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    oracle.scale = SPREAD  # type: ignore[attr-defined]
    return oracle
