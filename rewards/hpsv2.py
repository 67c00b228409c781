"""Human preference, second edition: HPS v2.1 (Wu et al., arXiv 2306.09341), the cosine of an open_clip ViT-H-14 tuned on people's choices.

About 0.2 to 0.35, comparable within one prompt only. The weights (Apache-2.0 by their card) are published as a pickle: it is read once and
kept as safetensors. Pictures are made to fit with black borders, as its authors do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from rewards.base import Scores
from rewards.weights import BATCH, Pickled, Source, precision

WEIGHTS = Pickled(
    Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"),
    "HPS_v2.1_compressed.pt",
    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    part="state_dict",
)


@dataclass(frozen=True)
class HPSv2:
    """Cosine -1..1 of picture and prompt. On `device`, in half precision on a GPU: 2 GB, on a CPU 4 GB."""

    weights: Pickled = WEIGHTS
    architecture: str = "ViT-H-14"
    device: str = "cpu"
    name: str = "hpsv2"
    scale: float = 0.015

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        import torch

        model, preprocess, tokenize = self._loaded
        cosines = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                pixels = torch.stack([preprocess(image.convert("RGB")) for image in images[start : start + BATCH]])  # (b, 3, H, W)
                seen = model.encode_image(pixels.to(self.device, precision(self.device)), normalize=True).float()
                meant = model.encode_text(tokenize(list(prompts[start : start + BATCH])).to(self.device), normalize=True).float()
                cosines.append((seen * meant).sum(-1))
        return Scores(torch.cat(cosines).double().cpu().numpy())

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """(model, picture -> (3, H, W), texts -> (n, tokens))."""
        import open_clip
        import torch

        half = "fp16" if precision(self.device) == torch.float16 else "fp32"
        weights = str(self.weights.safetensors())
        with self.weights.source.loading():
            model, preprocess = open_clip.create_model_from_pretrained(
                self.architecture, pretrained=weights, precision=half, device=self.device, image_resize_mode="longest"
            )
            return model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(self.architecture)
