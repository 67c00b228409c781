"""Stable Diffusion 1.x and 2.x, epsilon and v-prediction; the embedded model is of this kind. What UNets have in common."""

from __future__ import annotations

import torch

from loophil.families.base import Embeddings, Family, Words

SD2_TEXT_WIDTH = 1024  # OpenCLIP ViT-H, against the 768 of CLIP ViT-L in 1.x


class UNet(Family):
    """A UNet; a latent consistency model is one that is told of guidance, by an embedding (arXiv 2310.04378)."""

    component = "unet"

    @property
    def distilled(self) -> bool:
        """Latent consistency models."""
        return self._guidance_width is not None

    def guidance(self, guidance_scale: float) -> Words:
        """timestep_cond (1, W): its embedding."""
        if self._guidance_width is None:
            return {}
        beyond = torch.tensor([guidance_scale - 1])
        return {"timestep_cond": self.pipeline.get_guidance_scale_embedding(beyond, embedding_dim=self._guidance_width, dtype=self.dtype)}

    @property
    def _guidance_width(self) -> int | None:
        width: int | None = self.denoiser.config.time_cond_proj_dim
        return width


class StableDiffusion(UNet):
    """A UNet told by one text encoder. 1.x, 2.x at 512 pixels and 2.x at 768 share a class, and are told apart by their numbers."""

    name = "Stable Diffusion 1.x/2.x"
    without = ("safety_checker",)

    @property
    def architecture(self) -> str:
        """By the width of the embeddings and what is predicted."""
        if self.denoiser.config.cross_attention_dim != SD2_TEXT_WIDTH:
            return "stable-diffusion-v1"
        v_prediction = self.pipeline.scheduler.config.prediction_type == "v_prediction"
        return "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512"

    def encode(self, prompt: str, negative_prompt: str) -> Embeddings:
        """encoder_hidden_states (1, L, W)."""
        halves = self.pipeline.encode_prompt(prompt, self.text_encoders[0].device, 1, True, negative_prompt=negative_prompt)[:2]
        positive, negative = ({"encoder_hidden_states": half} for half in halves)
        return Embeddings(positive, negative)

    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """One call of the UNet."""
        output: torch.Tensor = self.denoiser(latents, timestep, **words, return_dict=False)[0]
        return output
