"""Draws groups: k images of one prompt with their trajectories, by the published adapter (or the base, or the learner).

The rollout equals the stock pipeline's with the same generators in float32 (DDIM at any eta, flow matching at 0). It stores nothing and rates
nothing; the old log-probabilities are those of drawing time and are never computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from loophil.errors import LearningError
from loophil.policy import BASE, PUBLISHED, Policy
from loophil.scheduler import Schedule, randn, step_with_log_prob, trainable
from loophil.types import Drawing, DrawSettings, Trajectory

Watch = Callable[[int, int, Callable[[], torch.Tensor]], None]  # is told after each step how many are done, of how many; may ask for x_0 as predicted
LEAST_STD = 0.03  # of the noisiest step, in latents of spread 1: a chain with less is a deterministic one, and its log-ratios say nothing


class Sampler:
    """A policy and the schedule it is drawn with.

    timestep_fraction   share of the denoising steps that are kept for training, the first (noisiest) ones
    window              whether only these steps get noise and the rest is deterministic (MixGRPO, arXiv 2507.21802); None = as the schedule says
    """

    def __init__(self, policy: Policy, schedule: Schedule, *, timestep_fraction: float, window: bool | None = None) -> None:
        self.policy = policy
        self.schedule = schedule
        self.timestep_fraction = timestep_fraction
        self.window = schedule.windowed if window is None else window

    @property
    def process(self) -> str:
        """How it draws, in words, for a group's record."""
        return f"{self.schedule.name}, noise window" if self.window else self.schedule.name

    def trained_steps(self, settings: DrawSettings) -> int:
        """S: the first steps of a rollout that are trained; never the last, almost noiseless one, never one without a density.

        0 where there are none, or where even the first is almost without noise: then only the forward process can learn.
        """
        steps, eta = settings.num_inference_steps, settings.eta
        if self.schedule.std(self.schedule.timesteps(steps)[0], num_inference_steps=steps, eta=eta) < LEAST_STD:
            return 0
        dense = trainable(self.schedule, steps, eta)
        wanted = max(1, round(self.timestep_fraction * steps))
        first_gap = int((~dense).nonzero()[0]) if not bool(dense.all()) else len(dense)
        return min(wanted, first_gap, steps - 1)

    @torch.no_grad()
    def draw(self, prompt: str, settings: DrawSettings, seeds: tuple[int, ...], *, who: str = PUBLISHED, watch: Watch | None = None) -> Drawing:
        """k = len(seeds) images of `prompt`; image i depends on seeds[i] alone, not on its siblings. What `watch` raises ends it.

        Raises LearningError where the model gives numbers that are not finite: nothing of it may be shown or learned from.
        """
        policy, k = self.policy, len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        embeddings = policy.encode_prompt(prompt, settings.negative_prompt)
        trained = self.trained_steps(settings)
        timesteps = self.schedule.timesteps(settings.num_inference_steps)
        latents = randn((k, *policy.latent_shape), generators, policy.device, embeddings.dtype) * self.schedule.init_noise_sigma
        chain, log_probs = [latents], [torch.zeros(k, 0, device=policy.device)]
        with policy.acting(who):
            for number, timestep in enumerate(timesteps.to(policy.device)):
                eta = settings.eta if number < trained or not self.window else 0.0
                output = policy.predict(latents, timestep, embeddings, settings.guidance_scale)
                before = latents
                latents, log_prob = step_with_log_prob(
                    self.schedule, output, timestep, latents, num_inference_steps=settings.num_inference_steps, eta=eta, generator=generators
                )
                if len(chain) <= trained:
                    chain.append(latents)
                    log_probs.append(log_prob[:, None])
                if watch is not None:
                    watch(number + 1, len(timesteps), partial(self.schedule.predict_x0, output, before, timestep))
        if not torch.isfinite(latents).all():
            raise LearningError(f"The {who} model (version {policy.version}) drew numbers that are not finite: roll back to an earlier version.")
        trajectory = Trajectory(
            latents=torch.stack(chain, dim=1).cpu(),
            log_probs=torch.cat(log_probs, dim=1).cpu(),
            timesteps=timesteps[:trained].clone(),
            clean_latents=latents.cpu(),
        )
        version = 0 if who == BASE else policy.version
        return Drawing(prompt, settings, tuple(seeds), version, tuple(policy.decode(latents)), trajectory)

    def pictures(self, prompt: str, settings: DrawSettings, seeds: tuple[int, ...], *, who: str) -> list[Image.Image]:
        """The pictures alone, for comparisons."""
        return list(self.draw(prompt, settings, seeds, who=who).images)

    def write(self, trajectory: Trajectory, path: Path) -> None:
        """Keeps a trajectory as safetensors: the trained transitions and the clean latents, nothing else."""
        save_file({name: tensor.contiguous() for name, tensor in vars(trajectory).items()}, path)

    def read(self, path: Path) -> Trajectory:
        """A trajectory that `write` kept."""
        # Cloned: tensors in a file are not aligned, and the last bit of a convolution can depend on that.
        return Trajectory(**{name: tensor.clone() for name, tensor in load_file(path).items()})

    def clean_only(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory without its transitions (S = 0): all that the forward process needs, small enough to keep in memory."""
        return Trajectory(  # copies: a view would keep the whole chain alive
            latents=trajectory.latents[:, :1].clone(),
            log_probs=trajectory.log_probs[:, :0].clone(),
            timesteps=trajectory.timesteps[:0].clone(),
            clean_latents=trajectory.clean_latents.clone(),
        )
