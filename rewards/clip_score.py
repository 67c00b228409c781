"""How well a picture fits its prompt: the cosine of their open_clip features.

CLIPScore (Hessel et al., arXiv 2104.08718) without its factor and floor, which no advantage would notice. Comparable within one
prompt and one model only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rewards.base import Scores


@dataclass(frozen=True)
class ClipScore:
    """Cosine -1..1 of picture and prompt, by any model of `rewards.features`, loaded at the first score; None = the embedded one."""

    model: str | None = None
    device: str = "cpu"
    name: str = "clip_score"
    scale: float = 0.04

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        from rewards import features  # torch and open_clip take seconds to import: not before somebody wants a score

        shared = features.shared_features(self.model or features.EMBEDDED, device=self.device)
        seen, meant = shared.images(images), shared.texts(prompts)  # (n, d) each
        return Scores(np.einsum("nd,nd->n", seen, meant))
