"""SDXL and its relatives: a UNet told by two text encoders, and of the picture's size and crop."""

from __future__ import annotations

from typing import Any

import torch

from loophil.families.base import Embeddings, Words
from loophil.families.stable_diffusion import UNet


class SDXL(UNet):
    """StableDiffusionXLPipeline. Its words: encoder_hidden_states (n, L, W), text_embeds (n, P) pooled, time_ids (n, 6): size, crop, size."""

    name = "SDXL"
    architecture = "stable-diffusion-xl-v1-base"

    def __init__(self, pipeline: Any, size: int = 0, device: torch.device | None = None) -> None:
        super().__init__(pipeline, size, device)
        vae = pipeline.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.to(torch.float32)  # it overflows in half precision; the stock pipeline moves it to and fro

    def encode(self, prompt: str, negative_prompt: str) -> Embeddings:
        """Without a negative prompt its half is zeros, or that of an empty prompt, as the pipeline's config says."""
        device = self.text_encoders[0].device
        found = self.pipeline.encode_prompt(prompt, device=device, num_images_per_prompt=1, negative_prompt=negative_prompt or None)
        positive, negative, pooled, negative_pooled = found
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=positive.dtype, device=device)
        return Embeddings(
            {"encoder_hidden_states": positive, "text_embeds": pooled, "time_ids": time_ids},
            {"encoder_hidden_states": negative, "text_embeds": negative_pooled, "time_ids": time_ids},
        )

    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """One call of the UNet."""
        added = {name: words[name] for name in ("text_embeds", "time_ids")}
        plain = {name: tensor for name, tensor in words.items() if name not in added}
        output: torch.Tensor = self.denoiser(latents, timestep, **plain, added_cond_kwargs=added, return_dict=False)[0]
        return output

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Some relatives say the mean and the standard deviation of their latents."""
        config = self.pipeline.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return super()._unscaled(latents)
        mean, std = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        scaled: torch.Tensor = latents * std / config.scaling_factor + mean
        return scaled
