"""SD3 and SD3.5: a transformer told by two CLIP encoders and T5, which may be missing; flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from loophil.families.base import Embeddings, Family, Words


class SD3(Family):
    """StableDiffusion3Pipeline. Its words: encoder_hidden_states (n, L, W) of CLIP and T5 (zeros without it), pooled_projections (n, P)."""

    name = "SD3/SD3.5"
    component = "transformer"
    architecture = "stable-diffusion-3"
    targets = (*Family.targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # the words' side of its attention
    half = torch.bfloat16
    drawing: ClassVar[Mapping[str, float]] = {"draw.num_inference_steps": 20, "draw.guidance_scale": 4.5, "draw.eta": 0.7}

    @property
    def noise(self) -> dict[str, Any]:
        """A picture is as long as its patches are many."""
        _, height, width = self.latent_shape
        patch = self.denoiser.config.patch_size
        return super().noise | {"image_seq_len": (height // patch) * (width // patch)}

    def encode(self, prompt: str, negative_prompt: str) -> Embeddings:
        """Every encoder is told the same prompt."""
        device = self.text_encoders[0].device
        found = self.pipeline.encode_prompt(prompt, None, None, device=device, negative_prompt=negative_prompt)
        positive, negative, pooled, negative_pooled = found
        return Embeddings(
            {"encoder_hidden_states": positive, "pooled_projections": pooled},
            {"encoder_hidden_states": negative, "pooled_projections": negative_pooled},
        )

    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """One call of the transformer."""
        output: torch.Tensor = self.denoiser(hidden_states=latents, timestep=timestep.expand(len(latents)), **words, return_dict=False)[0]
        return output

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Its latents are shifted, too."""
        unscaled: torch.Tensor = super()._unscaled(latents) + self.pipeline.vae.config.shift_factor
        return unscaled

    def _unit(self) -> int:
        """A patch of the transformer is several latents wide."""
        patch: int = self.denoiser.config.patch_size
        return super()._unit() * patch
