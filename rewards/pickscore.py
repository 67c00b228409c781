"""What people would pick of the pictures of one prompt: PickScore (Kirstain et al., arXiv 2305.01569), exp(logit scale) * cosine, about 20.

CLIP-H tuned on half a million choices between two pictures. Comparable within one prompt only. Its card names no licence; the CLIP-H of LAION
that it was made of is under the MIT licence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from rewards.base import Scores
from rewards.weights import Source

if TYPE_CHECKING:
    from rewards.hub_clip import HubClip

MODEL = Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
PROCESSOR = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")


@dataclass(frozen=True)
class PickScore:
    """The score of picture and prompt. On `device`, in half precision on a GPU: 2 GB, on a CPU 4 GB."""

    model: Source = MODEL
    processor: Source = PROCESSOR
    device: str = "cpu"
    name: str = "pickscore"
    scale: float = 0.7

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        clip = self._loaded
        cosine = (clip.images(images) * clip.texts(prompts)).sum(-1)  # (n,)
        return Scores(clip.logit_scale * cosine.double().cpu().numpy())

    @cached_property
    def _loaded(self) -> "HubClip":
        from rewards.hub_clip import HubClip

        return HubClip(self.model, self.processor, self.device)
