"""FLUX.1-dev, whose guidance is embedded, and FLUX.1-schnell, which has none: a transformer told by T5 and a pooled CLIP; flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from loophil.families.base import Embeddings, Family, Words

PATCH = 2  # latents are packed two by two
OWN_SIDE = 128  # of the latents that the stock pipeline draws, which no config says


class Flux(Family):
    """FluxPipeline. Its words: encoder_hidden_states (n, L, W), pooled_projections (n, P). A negative prompt says nothing to it.

    Latents are kept as pictures have them, (B, C, H, W), and packed into tokens for the transformer alone.
    """

    name = "FLUX.1"
    component = "transformer"
    targets = (*Family.targets, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # the words' side of its attention
    half = torch.bfloat16
    drawing: ClassVar[Mapping[str, float]] = {"draw.num_inference_steps": 20, "draw.guidance_scale": 3.5, "draw.eta": 0.7}
    distilled = True

    @property
    def architecture(self) -> str:
        """By whether guidance is embedded."""
        return "flux-1-dev" if self.denoiser.config.guidance_embeds else "flux-1-schnell"

    @property
    def noise(self) -> dict[str, Any]:
        """The stock pipeline gives its own times, 1 .. 1/T, and the picture's length in tokens."""
        _, height, width = self.latent_shape
        return super().noise | {"image_seq_len": (height // PATCH) * (width // PATCH), "from_one": True}

    def encode(self, prompt: str, negative_prompt: str) -> Embeddings:
        """One half; schnell was made for half as many tokens as dev."""
        length = 512 if self.denoiser.config.guidance_embeds else 256
        words, pooled, _ = self.pipeline.encode_prompt(prompt, None, device=self.text_encoders[0].device, max_sequence_length=length)
        half = {"encoder_hidden_states": words, "pooled_projections": pooled}
        return Embeddings(half, half)

    def guidance(self, guidance_scale: float) -> Words:
        """dev is told its guidance as it is told the prompt, so it learns at the one it draws with."""
        return {"guidance": torch.full([1], guidance_scale)} if self.denoiser.config.guidance_embeds else {}

    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """One call of the transformer, which wants t itself, and to know where in the picture each token is."""
        n, channels, height, width = latents.shape
        rows, columns = height // PATCH, width // PATCH
        tokens = latents.view(n, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, channels * PATCH**2)
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(rows).float(), torch.arange(columns).float())
        output: torch.Tensor = self.denoiser(
            hidden_states=tokens,
            timestep=timestep.expand(n).to(latents.dtype) / 1000,
            img_ids=places.to(latents.device, latents.dtype),
            txt_ids=latents.new_zeros(words["encoder_hidden_states"].shape[1], 3),
            **words,
            return_dict=False,
        )[0]
        return output.view(n, rows, columns, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Its latents are shifted, too."""
        unscaled: torch.Tensor = super()._unscaled(latents) + self.pipeline.vae.config.shift_factor
        return unscaled

    def _own_sides(self) -> tuple[int, int]:
        """The stock pipeline's."""
        return OWN_SIDE, OWN_SIDE

    def _channels(self) -> int:
        """A token is a patch of all channels."""
        channels: int = self.denoiser.config.in_channels // PATCH**2
        return channels

    def _unit(self) -> int:
        """A token is several latents wide."""
        return super()._unit() * PATCH
