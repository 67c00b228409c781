"""What every family says of itself. `Family` holds what most of them share; a family overrides what it does differently.

n prompts, B images, L tokens of width W, latents (B, C, H, W).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from PIL import Image

from loophil.errors import ConfigError

# What a denoiser is told of n prompts: its conditions by the names of its arguments, each (n, ...).
Words = Mapping[str, torch.Tensor]


class Embeddings(NamedTuple):
    """A prompt and what is not to be drawn, as the denoiser takes them. Where a family has no negative half, both are the prompt."""

    positive: Words
    negative: Words

    @property
    def dtype(self) -> torch.dtype:
        """The text encoder's, in which the stock pipelines draw their first noise."""
        return self.positive["encoder_hidden_states"].dtype

    def to(self, device: torch.device) -> Embeddings:
        """The same on a device; where the halves are one, they stay one."""
        positive = placed(self.positive, device)
        return Embeddings(positive, positive if self.negative is self.positive else placed(self.negative, device))


def placed(words: Words, device: torch.device) -> Words:
    """The same words on a device."""
    return {name: tensor.to(device) for name, tensor in words.items()}


def expand(words: Words, n: int) -> Words:
    """One prompt's words (1, ...) for n images; those of n prompts stay as they are."""
    return {name: tensor if len(tensor) == n else tensor.expand(n, *tensor.shape[1:]) for name, tensor in words.items()}


def join(parts: Sequence[Words]) -> Words:
    """The words of several prompts, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Family(ABC):
    """A pipeline whose denoiser is tuned. ConfigError where pictures of `size` pixels do not fit its latents (0 = its own size), or it wants more.

    component     the attribute of the pipeline that denoises and carries the LoRA; its name is the prefix of exported keys
    targets       module name endings that carry the LoRA if nobody says otherwise: the attention's
    half          the storage dtype on a GPU, in which its base does not overflow
    drawing       knobs of drawing that are its own, where nobody says otherwise
    without       parts of the pipeline that are not loaded
    latent_shape  (C, H, W) of one latent;  dtype: the denoiser's, in which it is given them
    """

    name: ClassVar[str]
    component: ClassVar[Literal["unet", "transformer"]]
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    half: ClassVar[torch.dtype] = torch.float16
    without: ClassVar[tuple[str, ...]] = ()
    drawing: ClassVar[Mapping[str, float]] = {"draw.num_inference_steps": 20, "draw.guidance_scale": 5.0}

    def __init__(self, pipeline: Any, size: int = 0, device: torch.device | None = None) -> None:
        """device: where the denoiser works, which is not where it lies if it is offloaded; None = where it lies."""
        self.pipeline = pipeline
        self.device: torch.device = device or self.denoiser.device
        if self._channels() != pipeline.vae.config.latent_channels:
            raise ConfigError(
                "This model wants a picture or a mask besides the prompt, as for inpainting: only plain text-to-image models can be tuned."
            )
        self.latent_shape = self._latent_shape(size)
        self.dtype: torch.dtype = self.denoiser.dtype  # once: diffusers looks for it in the whole network

    @property
    def denoiser(self) -> Any:
        """The network that is tuned."""
        return getattr(self.pipeline, self.component)

    @property
    def text_encoders(self) -> list[Any]:
        """Those that it was loaded with, in order."""
        parts = sorted(self.pipeline.components.items())
        return [part for name, part in parts if name.startswith("text_encoder") and isinstance(part, torch.nn.Module)]

    @property
    @abstractmethod
    def architecture(self) -> str:
        """What ModelSpec calls the base's class."""

    @property
    def noise(self) -> dict[str, Any]:
        """What `scheduler.schedule_of` needs: the scheduler's class and config, and what the stock pipeline tells it besides.

        Latents are clipped only where a config says so: those of most schedulers say nothing of it, and mean that they are not.
        """
        scheduler = self.pipeline.scheduler
        return {"clip_sample": False, **scheduler.config, "_class_name": type(scheduler).__name__}

    @property
    def distilled(self) -> bool:
        """Whether guidance is no second, negative half: the model is told of it, or has none."""
        return False

    @abstractmethod
    def encode(self, prompt: str, negative_prompt: str) -> Embeddings:
        """Both halves, each of one prompt, as the stock pipeline encodes them, where the text encoders are."""

    @abstractmethod
    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, words: Words) -> torch.Tensor:
        """One call of the denoiser, (B, C, H, W): latents in its dtype, timestep () or (B,), the words of B prompts."""

    def guidance(self, guidance_scale: float) -> Words:
        """What a distilled model is told of it, (1, ...); nothing where it has none."""
        return {}

    def unguided(self, embeddings: Embeddings, guidance_scale: float) -> Words:
        """What the model itself is told: the prompt, and where guidance is no way of drawing but a part of it, how much; once is enough."""
        return {**self.guidance(guidance_scale), **embeddings.positive}

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, embeddings: Embeddings, guidance_scale: float) -> torch.Tensor:
        """The output (B, C, H, W) as the stock pipeline would have it: classifier-free guidance in one batch, the negative half first.

        `embeddings` are of one prompt or of B; timestep () or (B,). guidance_scale 1 means no guidance, no second half.
        """
        n, latents = len(latents), latents.to(self.dtype)
        positive = expand(placed(self.unguided(embeddings, guidance_scale), self.device), n)
        if self.distilled or guidance_scale <= 1:
            return self.denoise(latents, timestep, positive)
        both = timestep if timestep.ndim == 0 else torch.cat([timestep, timestep])
        output = self.denoise(torch.cat([latents, latents]), both, join([expand(placed(embeddings.negative, self.device), n), positive]))
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Pictures of clean latents (B, C, H, W)."""
        vae = self.pipeline.vae
        pixels = vae.decode(self._unscaled(latents.to(vae.dtype)), return_dict=False)[0]
        pictures: list[Image.Image] = self.pipeline.image_processor.postprocess(pixels, output_type="pil")
        return pictures

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the VAE has them, from those that the denoiser has."""
        scaled: torch.Tensor = latents / self.pipeline.vae.config.scaling_factor
        return scaled

    def _latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, H, W) for pictures of this size."""
        unit = self._unit()
        if size % unit:
            raise ConfigError(f"This model draws in steps of {unit} pixels: draw.size must be a multiple of {unit}, not {size}.")
        side = size // self.pipeline.vae_scale_factor
        height, width = (side, side) if size else self._own_sides()
        return self._channels(), height, width

    def _own_sides(self) -> tuple[int, int]:
        """Height and width of the latents that it was made for."""
        own = self.denoiser.config.sample_size
        height, width = (own, own) if isinstance(own, int) else own
        return height, width

    def _channels(self) -> int:
        """C, of a latent."""
        channels: int = self.denoiser.config.in_channels
        return channels

    def _unit(self) -> int:
        """Pictures are so many pixels wide, or a multiple of it."""
        unit: int = self.pipeline.vae_scale_factor
        return unit
