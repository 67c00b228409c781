"""How much people liked pictures like this one, whatever the prompt: the LAION aesthetic predictor, about 1 to 10.

Five linear layers (sac+logos+ava1, Apache-2.0) on the image features of OpenAI's CLIP ViT-L/14 (MIT), as in DDPO. The head is published as a
pickle: it is read once and kept as safetensors. Its commit could not be looked up, so the file is held to its SHA-256 instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from rewards.base import Scores
from rewards.weights import Pickled, Source

if TYPE_CHECKING:
    from rewards.head import LinearHead
    from rewards.hub_clip import HubClip

CLIP = Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
HEAD = Pickled(
    Source("trl-lib/ddpo-aesthetic-predictor"),
    "aesthetic-model.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)


@dataclass(frozen=True)
class Aesthetic:
    """The head's number. On `device`, CLIP in half precision on a GPU: 0.9 GB, on a CPU 1.7 GB."""

    clip: Source = CLIP
    head: Pickled = HEAD
    device: str = "cpu"
    name: str = "aesthetic"
    scale: float = 0.3

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        clip, head = self._loaded
        return Scores(head(clip.images(images)).double().cpu().numpy())

    @cached_property
    def _loaded(self) -> "tuple[HubClip, LinearHead]":
        from rewards.head import LinearHead
        from rewards.hub_clip import HubClip

        return HubClip(self.clip, self.clip, self.device), LinearHead(self.head.tensors(), self.device)
