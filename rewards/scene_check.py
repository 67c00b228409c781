"""Whether a picture of the embedded world shows what its prompt states: a reward that can be verified, from pixels.

It reads prompts and pictures of that world alone; for any other prompt it has no score. The only reward that knows `data/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.scenes import check, parse
from rewards.base import Scores


@dataclass(frozen=True)
class SceneCheck:
    """Share of the stated attributes that the picture confirms, 0..1; missing where the prompt cannot be read."""

    name: str = "scene_check"
    scale: float = 0.25

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        return Scores(np.array([confirmed(image, prompt) for image, prompt in zip(images, prompts, strict=True)], dtype=np.float64))


def confirmed(image: Image.Image, prompt: str) -> float:
    """Share 0..1 of what the prompt states that the picture confirms; NaN where the prompt cannot be read."""
    scene = parse(prompt)
    if scene is None:
        return float("nan")
    verdict = check(image, scene)
    return sum(verdict.values()) / len(verdict)
