"""How well a picture compresses: minus its size as JPEG at quality 95, in kilobytes (1000 bytes).

The classic toy reward of DDPO: no weights, no opinion, and everybody sees whether it rises. Not a measure of beauty.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rewards.base import Scores


@dataclass(frozen=True)
class Jpeg:
    """Compressibility; `sign` 1, `jpeg_incompressible`, asks for large files instead."""

    sign: int = -1
    name: str = "jpeg"
    scale: float = 0.2  # kB; of the embedded model's pictures of one prompt. Larger pictures spread more, and the running spread soon says so

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        return Scores(np.array([self.sign * kilobytes(image) for image in images], dtype=np.float64))


def kilobytes(image: Image.Image) -> float:
    """Size of a picture as JPEG at quality 95."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "jpeg", quality=95)
    return buffer.tell() / 1000
