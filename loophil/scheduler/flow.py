"""Flow matching (SD3, FLUX): the deterministic flow, or a stochastic process with the same marginals whose steps have a density.

    x_t   = (1 - t) x_0 + t noise,      v = noise - x_0,      t from 1 (noise) to 0 (picture)

Flow-GRPO, arXiv 2505.05470, with the noise level a = `eta` and dt = t_next - t < 0:

    sigma_t   = a sqrt(t / (1 - t)),    the schedule's second time in place of t = 1, where it is infinite
    mean      = x_t (1 + sigma_t^2 / (2t) dt) + v (1 + sigma_t^2 (1 - t) / (2t)) dt
    std       = sigma_t sqrt(-dt)

At a = 0 it is diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loophil.errors import ConfigError
from loophil.scheduler.step import per_image

DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
# What has another density, or another grid, than what is written here.
REFUSED = ("invert_sigmas", "stochastic_sampling", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
ONE = 1e-6  # some shifts put the first time of a grid so little below 1
TIME_SHIFTS = ("exponential", "linear")


@dataclass(frozen=True, eq=False)
class FlowMatching:
    """Flow matching on the grid of a stock pipeline. A timestep is t * num_train_timesteps, as its models are told.

    shift             (shift t) / (1 + (shift - 1) t) is what a time t becomes, if `dynamic_shift` is None
    dynamic_shift     mu, which grows with the picture: t becomes w / (w + 1 / t - 1), w = exp(mu) or, `linear_shift`, mu
    shift_terminal    the last time before 0, None = wherever it falls
    from_one          whether the times before shifting are 1 .. 1/T, as FLUX is drawn, or the scheduler's own
    """

    num_train_timesteps: int
    shift: float = 1.0
    dynamic_shift: float | None = None
    linear_shift: bool = False
    shift_terminal: float | None = None
    from_one: bool = False
    init_noise_sigma: float = 1.0
    name: str = "flow matching"
    windowed: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowMatching:
        """The grid that the scheduler of this config has in its stock pipeline. Raises ConfigError, naming all faults.

        Besides the config's: `image_seq_len`, how many tokens a picture has, needed for dynamic shifting; `from_one`.
        """
        known = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
        faults = [f"{name} is not supported" for name in REFUSED if config.get(name)]
        if known["time_shift_type"] not in TIME_SHIFTS:
            faults.append(f"time_shift_type '{known['time_shift_type']}' is not one of {', '.join(TIME_SHIFTS)}")
        if faults:
            raise ConfigError(f"This scheduler cannot be used: {'; '.join(faults)}. Change scheduler/scheduler_config.json of the base model.")
        return cls(
            num_train_timesteps=known["num_train_timesteps"],
            shift=known["shift"],
            dynamic_shift=_mu(known, config["image_seq_len"]) if known["use_dynamic_shifting"] else None,
            linear_shift=known["time_shift_type"] == "linear",
            shift_terminal=known["shift_terminal"],
            from_one=bool(config.get("from_one")),
        )

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The (T,) float32 timesteps of a rollout, noisiest first."""
        return self._times(num_inference_steps)[:-1] * self.num_train_timesteps

    def std(self, timesteps: Tensor | int, *, num_inference_steps: int, eta: float) -> Tensor:
        """The standard deviation of a step's noise, (B,)."""
        _, dt, sigma = self._step(timesteps, num_inference_steps, eta)
        return sigma * (-dt).sqrt()

    def mean(self, model_output: Tensor, timesteps: Tensor | int, latents: Tensor, *, num_inference_steps: int, eta: float) -> Tensor:
        """Where a step goes without its noise, (B, C, H, W)."""
        t, dt, sigma = self._step(timesteps, num_inference_steps, eta)
        keep, follow = 1 + sigma**2 / (2 * t) * dt, (1 + sigma**2 * (1 - t) / (2 * t)) * dt
        return per_image(keep, latents) * latents.float() + per_image(follow, latents) * model_output.float()

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_t = (1 - t) x_0 + t noise, (B, C, H, W) in float32."""
        t = per_image(torch.as_tensor(timesteps) / self.num_train_timesteps, x0)
        return (1 - t) * x0.float() + t * noise.float()

    def predict_x0(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_0 = x_t - t v, (B, C, H, W) in float32."""
        return latents.float() - per_image(torch.as_tensor(timesteps) / self.num_train_timesteps, latents) * model_output.float()

    def velocity(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """v = noise - x_0, (B, C, H, W) in float32, at any time."""
        return noise.float() - x0.float()

    def to_velocity(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """The model's output, which is v, in float32."""
        return model_output.float()

    def _step(self, timesteps: Tensor | int, num_inference_steps: int, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        """(t, dt, sigma_t) of the steps that begin at these timesteps, each (B,) or ()."""
        asked = torch.as_tensor(timesteps)
        times = self._times(num_inference_steps).to(asked.device)
        place = (asked[..., None] / self.num_train_timesteps - times[:-1]).abs().argmin(-1)
        t, dt = times[place], times[place + 1] - times[place]
        level = torch.where(t > 1 - ONE, times[1], t)
        return t, dt, eta * (level / (1 - level)).sqrt()

    def _times(self, num_inference_steps: int) -> Tensor:
        """(T + 1,) float32 times from noise to 0; numpy in diffusers' own precision, so that they are the same to the last bit."""
        T, N = num_inference_steps, self.num_train_timesteps
        if T < 1:
            raise ConfigError(f"{T} denoising steps are impossible: choose at least 1.")
        times: NDArray[Any] = np.linspace(1.0, 1 / T, T).astype(np.float32) if self.from_one else self._own(T) / N
        times = self._shifted(times)
        if self.shift_terminal:
            times = 1 - (1 - times) / ((1 - times[-1]) / (1 - self.shift_terminal))
        return torch.cat([torch.from_numpy(times).float(), torch.zeros(1)])

    def _own(self, num_inference_steps: int) -> NDArray[np.float64]:
        """The scheduler's own timesteps before shifting: between the ends of the training times, which a fixed shift has moved already."""
        ends = torch.tensor([self.num_train_timesteps, 1.0]) / self.num_train_timesteps
        first, last = (ends if self.dynamic_shift is not None else self.shift * ends / (1 + (self.shift - 1) * ends)).tolist()
        return np.linspace(first * self.num_train_timesteps, last * self.num_train_timesteps, num_inference_steps)

    def _shifted(self, times: NDArray[Any]) -> NDArray[Any]:
        if self.dynamic_shift is None:
            return self.shift * times / (1 + (self.shift - 1) * times)
        weight = self.dynamic_shift if self.linear_shift else math.exp(self.dynamic_shift)
        return weight / (weight + (1 / times - 1))


def _mu(config: Mapping[str, Any], image_seq_len: int) -> float:
    """A line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift)."""
    slope: float = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    intercept: float = config["base_shift"] - slope * config["base_image_seq_len"]
    return image_seq_len * slope + intercept
