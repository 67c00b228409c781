"""One denoising step as a Gaussian that is drawn from or scored, whatever the noise process: the seam between drawing and training."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Generator, Tensor


class Schedule(Protocol):
    """What a noise process must say of itself. `timesteps` (B,) or one for all; `num_inference_steps` T sets how far a step goes.

    name       what a group's record says it was drawn with
    windowed   whether it is drawn with noise in the trained steps alone, if nobody says otherwise
    """

    @property
    def name(self) -> str: ...

    @property
    def windowed(self) -> bool: ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first latents."""

    @property
    def num_train_timesteps(self) -> int:
        """How many timesteps the base was trained with."""

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The (T,) timesteps of a rollout, noisiest first."""

    def std(self, timesteps: Tensor | int, *, num_inference_steps: int, eta: float) -> Tensor:
        """sigma_t (B,): standard deviation of the noise that the step at `timesteps` adds; float32."""

    def mean(self, model_output: Tensor, timesteps: Tensor | int, latents: Tensor, *, num_inference_steps: int, eta: float) -> Tensor:
        """mu_t (B, C, H, W): where the step goes without its noise; float32, differentiable in `model_output`."""

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_t (B, C, H, W): clean latents noised to `timesteps`."""

    def predict_x0(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_0 (B, C, H, W) as the model predicts it from these latents; float32."""

    def velocity(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """v (B, C, H, W): what a velocity model should predict at that x_t."""

    def to_velocity(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """v (B, C, H, W): the model's prediction, of whatever type, as a velocity."""


def step_with_log_prob(
    schedule: Schedule,
    model_output: Tensor,
    timestep: Tensor | int,
    latents: Tensor,
    *,
    num_inference_steps: int,
    eta: float,
    noise: Tensor | None = None,
    generator: Generator | list[Generator] | None = None,
    prev_sample: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x_{t-1} ~ N(mu_t, sigma_t^2), drawn, or scored where `prev_sample` is given -> (x_{t-1} (B, C, H, W), log_prob (B,)).

        log_prob = 1/D * log N(x_{t-1}; mu_t, sigma_t^2 I)      the MEAN over the latent's D dimensions (DDPO's and Flow-GRPO's convention)

    The latent is rounded to `latents.dtype` before it is scored, so a stored one scores the same. Where sigma_t = 0 there is no density:
    log_prob is 0, without gradient; `trainable` says where.

    model_output   (B, C, H, W)  with guidance; whatever type the schedule predicts
    timestep       one for all, or (B,): a replay mixes steps
    latents        (B, C, H, W)  x_t
    noise          (B, C, H, W)  instead of drawing it
    generator      one, or one per image; drawn from only if eta > 0, as diffusers does
    prev_sample    (B, C, H, W)  the stored x_{t-1}: score it, draw nothing
    """
    mean = schedule.mean(model_output, timestep, latents, num_inference_steps=num_inference_steps, eta=eta)
    std = per_image(schedule.std(timestep, num_inference_steps=num_inference_steps, eta=eta), latents)
    if prev_sample is None:
        if eta > 0 and noise is None:
            noise = randn(latents.shape, generator, latents.device, model_output.dtype)
        prev_sample = (mean if noise is None else mean + std * noise).to(latents.dtype)
    x = prev_sample.detach().float()
    sigma = torch.where(std > 0, std, 1.0)  # 0 would give NaN, and NaN * 0 in the gradient
    log_density = -0.5 * ((x - mean) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)
    return prev_sample, torch.where(std > 0, log_density, 0.0).flatten(1).mean(1)


def trainable(schedule: Schedule, num_inference_steps: int, eta: float) -> Tensor:
    """Which steps have a density, (T,) bool: sigma_t > 0. The others are drawn, never trained."""
    return schedule.std(schedule.timesteps(num_inference_steps), num_inference_steps=num_inference_steps, eta=eta) > 0


def randn(shape: torch.Size | tuple[int, ...], generator: Generator | list[Generator] | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal noise, drawn in the order of diffusers' `randn_tensor`: on the generator's device, image by image where there are several."""
    generators = generator if isinstance(generator, list) else [generator]
    each = (shape[0] // len(generators), *shape[1:])
    return torch.cat([torch.randn(each, generator=g, device=g.device if g else device, dtype=dtype) for g in generators]).to(device)


def per_image(coefficient: Tensor, latents: Tensor) -> Tensor:
    """(B,) or () -> (B, 1, 1, 1) or (1, 1, 1, 1) on the latents' device, to multiply them."""
    return coefficient.to(latents.device).reshape(-1, *[1] * (latents.ndim - 1))


def stratified(n: int, steps: int, fraction: float, rng: Generator) -> Tensor:
    """(n,) timesteps, one from each of n equal parts of the last `fraction` of 0..steps-1, in random order: every step sees all noise levels."""
    spots = 1 - fraction * (torch.arange(n) + torch.rand(n, generator=rng)) / n
    return (spots * steps).long().clamp(0, steps - 1)[torch.randperm(n, generator=rng)]
