"""How well a picture fits its prompt: the cosine of their open_clip features.

CLIPScore (Hessel et al., arXiv 2104.08718) without its factor and floor, which no advantage would notice. Comparable within one
prompt and one model only.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from rewards.base import Scores
from rewards.features import EMBEDDED, shared_features


class ClipScore:
    """Cosine -1..1 of picture and prompt, by any model of `rewards.features`."""

    name = "clip_score"
    scale = 0.03

    def __init__(self, model: str = EMBEDDED, *, device: str = "cpu") -> None:
        self._features = shared_features(model, device=device)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        seen, meant = self._features.images(images), self._features.texts(prompts)  # (n, d) each
        return Scores(np.einsum("nd,nd->n", seen, meant))
