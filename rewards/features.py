"""Image and text features of an open_clip model, and statistics of pixels: what `clip_score` compares and the taste model learns from.

Any model that open_clip loads: a folder with `open_clip_config.json`, safetensors and tokenizer files (as `data/clip/` is),
`hf-hub:ORG/NAME`, or `ARCHITECTURE:TAG` as `open_clip.list_pretrained(as_str=True)` writes them. Weights are read from
safetensors only: other checkpoints are pickles, which are never opened.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rewards.base import RewardError

EMBEDDED = str(Path(__file__).resolve().parents[1] / "data" / "clip")
BATCH = 32
PIXEL_STATISTICS = (
    *("red", "green", "blue", "contrast", "saturation", "edges"),
    *("centre_x", "centre_y", "off_centre", "spread", "left_right_asymmetry", "up_down_asymmetry"),
)
REMEDY = "Give a folder with open_clip_config.json and safetensors, hf-hub:ORG/NAME, or ARCHITECTURE:TAG of open_clip."


class Features:
    """An open_clip model in eval mode; features (n, d) of length 1, float64."""

    def __init__(self, model: str = EMBEDDED, *, device: str = "cpu") -> None:
        import open_clip

        architecture, tag = _open_clip_names(model)
        try:
            _require_safetensors(architecture, tag)
            loaded = open_clip.create_model_from_pretrained(architecture, pretrained=tag, device=device)
            self._tokenize = open_clip.get_tokenizer(architecture)
        except Exception as error:  # open_clip, the Hub and safetensors each have their own
            raise RewardError(f"The CLIP model '{model}' cannot be loaded: {error} {REMEDY}") from error
        self._model: Any = loaded[0].eval().requires_grad_(False)
        self._preprocess: Any = loaded[1]
        self._device = device

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(n, d) of n pictures."""
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        pixels = [torch.stack([self._preprocess(image) for image in batch]) for batch in batches]  # (b, 3, H, W)
        return _rows([self._model.encode_image(batch.to(self._device), normalize=True) for batch in pixels])

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """(n, d) of n prompts; equal prompts are read once."""
        different = list(dict.fromkeys(prompts))
        batches = [different[start : start + BATCH] for start in range(0, len(different), BATCH)]
        read = _rows([self._model.encode_text(self._tokenize(batch).to(self._device), normalize=True) for batch in batches])
        return read[[different.index(prompt) for prompt in prompts]]


def pixel_statistics(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """(n, 12) of n pictures, what their pixels say at 64 x 64: PIXEL_STATISTICS, in units of 0..1 for colours and lengths.

    For tastes in light, colour and composition, which features trained to tell what is in a picture leave out.
    """
    return np.array([_statistics(image) for image in images]).reshape(-1, len(PIXEL_STATISTICS))


def _statistics(image: Image.Image) -> list[float]:
    pixels = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=np.float64) / 255  # (64, 64, 3)
    light = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    most = pixels.max(axis=2)
    saturation = np.divide(most - pixels.min(axis=2), most, out=np.zeros_like(most), where=most > 0)
    edges = np.abs(np.diff(light, axis=0)).mean() + np.abs(np.diff(light, axis=1)).mean()
    weight = np.abs(light - np.median(light)) + 1e-9  # what stands out
    weight /= weight.sum()
    y, x = (np.mgrid[:64, :64] + 0.5) / 64 - 0.5
    centre_x, centre_y = (weight * x).sum(), (weight * y).sum()
    spread = np.sqrt((weight * ((x - centre_x) ** 2 + (y - centre_y) ** 2)).sum())
    mirrored = [np.abs(light - light[:, ::-1]).mean(), np.abs(light - light[::-1]).mean()]
    return [*pixels.mean(axis=(0, 1)), light.std(), saturation.mean(), edges, centre_x, centre_y, np.hypot(centre_x, centre_y), spread, *mirrored]


def shared_features(model: str = EMBEDDED, *, device: str = "cpu") -> Features:
    """One `Features` for each model and device, however many ask for it."""
    return _shared(model, device)


@cache
def _shared(model: str, device: str) -> Features:
    return Features(model, device=device)


def _rows(batches: list[torch.Tensor]) -> NDArray[np.float64]:
    return torch.cat(batches).double().cpu().numpy() if batches else np.zeros((0, 0))


def _open_clip_names(model: str) -> tuple[str, str | None]:
    """What open_clip calls a model: (name with its scheme, tag of its weights)."""
    if model.startswith(("hf-hub:", "local-dir:")):
        return model, None
    if ":" in model and not Path(model).exists():
        architecture, _, tag = model.rpartition(":")
        return architecture, tag
    return f"local-dir:{model}", None


def _require_safetensors(architecture: str, tag: str | None) -> None:
    """Refuses a checkpoint that is a pickle before open_clip would open it."""
    from open_clip import pretrained

    if architecture.startswith("local-dir:"):
        folder = Path(architecture.removeprefix("local-dir:"))
        if not any(folder.glob("*.safetensors")):
            raise RewardError(f"{folder} has no safetensors file.")
        return
    if tag is None:
        file = pretrained.download_pretrained_from_hf(architecture.removeprefix("hf-hub:"))
    else:
        file = pretrained.download_pretrained(pretrained.get_pretrained_cfg(architecture, tag))
    if file and Path(file).suffix != ".safetensors":
        raise RewardError(f"its weights come as '{Path(file).name}', not as safetensors.")
