"""Rough pictures of what is being drawn, for whoever waits: a tiny autoencoder decodes the x_0 that the denoiser predicts in each step.

Nothing is learned from them and nothing is kept; the pictures that are rated are the full decoder's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from loophil.errors import ConfigError
from loophil.pipeline import ONE_AT_A_TIME, told

log = logging.getLogger(__name__)

SIDE = 256  # pixels at most

Preview = Callable[[torch.Tensor], list[Image.Image]]


def load_preview(where: str, channels: int, device: torch.device, dtype: torch.dtype) -> Preview:
    """(clean latents (B, C, H, W)) -> B small pictures, by the AutoencoderTiny of this folder or Hub id, safetensors only; it stays on the device.

    Where it fails there are none, so that no drawing fails for it.

    Raises ConfigError where it cannot be loaded, or is for latents of other than `channels` channels.
    """
    with told(where, None), ONE_AT_A_TIME:
        vae = AutoencoderTiny.from_pretrained(where, use_safetensors=True)
    if vae.config.latent_channels != channels:
        raise ConfigError(f"--draw.preview {where} is for latents of {vae.config.latent_channels} channels, and this model's have {channels}.")
    vae.requires_grad_(False).eval().to(device, dtype)
    processor = VaeImageProcessor()

    @torch.no_grad()
    def preview(latents: torch.Tensor) -> list[Image.Image]:
        try:
            pixels = vae.decode(latents.to(dtype) / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        except RuntimeError as error:  # memory has run out, most likely: the drawing goes on
            log.warning("no preview: %s", error)
            return []
        pictures: list[Image.Image] = processor.postprocess(pixels, output_type="pil")
        for picture in pictures:
            picture.thumbnail((SIDE, SIDE))
        return pictures

    return preview
