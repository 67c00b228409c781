"""DDIM: the process of Stable Diffusion and SDXL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loophil.errors import ConfigError
from loophil.scheduler.step import per_image

DISTILLED = ("LCM", "TCD")  # schedulers of latent consistency models, and of their relatives
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, eq=False)
class DDIM:
    """DDIM, arXiv 2010.02502, from the config of a diffusers scheduler; with a = alphas_cumprod:

        x_t       = sqrt(a_t) x_0 + sqrt(1 - a_t) eps
        sigma_t   = eta sqrt((1 - a_prev) / (1 - a_t)) sqrt(1 - a_t / a_prev)                                                          (16)
        x_{t-1}   = sqrt(a_prev) x_0(x_t) + sqrt(1 - a_prev - sigma_t^2) eps(x_t) + sigma_t z                                           (12)
        v         = sqrt(a_t) eps - sqrt(1 - a_t) x_0                                                                      (arXiv 2202.00512)

    alphas_cumprod        (num_train_timesteps,) float32
    final_alpha_cumprod   a_prev of the last step: 1 (`set_alpha_to_one`, or distilled) or alphas_cumprod[0]
    clip_sample_range     x_0(x_t) is clamped to +- this while drawing; infinite = not
    chained               whether a step goes back to the next timestep; else by num_train_timesteps // T, as diffusers' DDIM does always
    original_steps        how many timesteps a latent consistency model was distilled at, 0 = it is none; it is drawn at some of them
    """

    alphas_cumprod: Tensor
    final_alpha_cumprod: float
    prediction_type: str
    timestep_spacing: str
    steps_offset: int
    clip_sample_range: float
    chained: bool = False
    original_steps: int = 0
    init_noise_sigma: float = 1.0
    name: str = "DDIM"
    windowed: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DDIM:
        """The schedule that `DDIMScheduler.from_config(config)` would be; names the config lacks have diffusers' defaults.

        `_class_name` of another scheduler makes it `chained`, of LCM or TCD (arXiv 2310.04378, 2402.19159) at their timesteps. Raises ConfigError,
        naming all faults, where the config asks for what has no density or is not known.
        """
        kind = str(config.get("_class_name", "DDIMScheduler"))
        if kind.startswith("EDM"):
            raise ConfigError(f"An {kind} has other noise than DDIM: a model that was made for it cannot be tuned yet.")
        original_steps = int(config.get("original_inference_steps", 50)) if kind.startswith(DISTILLED) else 0
        config = DEFAULTS | {name: value for name, value in config.items() if name in DEFAULTS}
        if faults := _faults(config):
            raise ConfigError(f"This scheduler cannot be used: {'; '.join(faults)}. Change scheduler/scheduler_config.json of the base model.")
        alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
        return cls(
            alphas_cumprod=alphas_cumprod,
            final_alpha_cumprod=1.0 if config["set_alpha_to_one"] or original_steps else float(alphas_cumprod[0]),
            prediction_type=config["prediction_type"],
            timestep_spacing=config["timestep_spacing"],
            steps_offset=config["steps_offset"],
            clip_sample_range=config["clip_sample_range"] if config["clip_sample"] else math.inf,
            chained=kind != "DDIMScheduler",
            original_steps=original_steps,
        )

    @property
    def num_train_timesteps(self) -> int:
        """How many timesteps the base was trained with."""
        return len(self.alphas_cumprod)

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The (T,) int64 timesteps of a rollout, noisiest first. ConfigError where the base has not so many."""
        N, T, most = self.num_train_timesteps, num_inference_steps, self.original_steps or self.num_train_timesteps
        if 1 <= T <= most:
            steps = _distilled(N, T, most) if self.original_steps else SPACINGS[self.timestep_spacing](N, T, self.steps_offset)
            if steps.min() >= 0 and steps.max() < N:
                return torch.from_numpy(steps)
        raise ConfigError(f"{T} denoising steps are impossible: this base was trained with {most}. Choose fewer, at least 1.")

    def std(self, timesteps: Tensor | int, *, num_inference_steps: int, eta: float) -> Tensor:
        """sigma_t of (16), (B,)."""
        a_t, a_prev = self._alphas(timesteps, num_inference_steps)
        return eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()

    def mean(self, model_output: Tensor, timesteps: Tensor | int, latents: Tensor, *, num_inference_steps: int, eta: float) -> Tensor:
        """(12) without its noise, (B, C, H, W)."""
        _, a_prev = self._alphas(timesteps, num_inference_steps)
        sigma = self.std(timesteps, num_inference_steps=num_inference_steps, eta=eta)
        x0, eps = self.denoise(model_output, latents, timesteps)
        x0 = x0.clamp(-self.clip_sample_range, self.clip_sample_range)
        direction = (1 - a_prev - sigma**2).clamp(min=0).sqrt()  # rounding takes it just below 0 where a_t = 0
        return per_image(a_prev.sqrt(), latents) * x0 + per_image(direction, latents) * eps

    def denoise(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> tuple[Tensor, Tensor]:
        """The model's prediction, of whatever type, as (x_0, eps), each (B, C, H, W)."""
        x_t, out = latents.float(), model_output.float()
        a, b = self._signal_and_noise(timesteps, latents)
        if self.prediction_type == "epsilon":
            return (x_t - b * out) / a, out
        if self.prediction_type == "sample":
            return out, (x_t - a * out) / b
        return a * x_t - b * out, a * out + b * x_t

    def predict_x0(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_0 as the model predicts it, (B, C, H, W) in float32."""
        return self.denoise(model_output, latents, timesteps)[0]

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, (B, C, H, W) in float32."""
        a, b = self._signal_and_noise(timesteps, x0)
        return a * x0.float() + b * noise.float()

    def velocity(self, x0: Tensor, noise: Tensor, timesteps: Tensor | int) -> Tensor:
        """v = sqrt(a_t) eps - sqrt(1 - a_t) x_0, (B, C, H, W) in float32."""
        a, b = self._signal_and_noise(timesteps, x0)
        return a * noise.float() - b * x0.float()

    def to_velocity(self, model_output: Tensor, latents: Tensor, timesteps: Tensor | int) -> Tensor:
        """The model's prediction, of whatever type, as v, (B, C, H, W) in float32."""
        return (
            model_output.float()
            if self.prediction_type == "v_prediction"
            else self.velocity(*self.denoise(model_output, latents, timesteps), timesteps)
        )

    def _alphas(self, timesteps: Tensor | int, num_inference_steps: int) -> tuple[Tensor, Tensor]:
        """(a_t, a_prev), each (B,) or ()."""
        t = torch.as_tensor(timesteps)
        alphas_cumprod = self.alphas_cumprod.to(t.device)
        prev = _next(self, num_inference_steps).to(t.device)[t] if self.chained else t - len(alphas_cumprod) // num_inference_steps
        return alphas_cumprod[t], torch.where(prev >= 0, alphas_cumprod[prev.clamp(min=0)], self.final_alpha_cumprod)

    def _signal_and_noise(self, timesteps: Tensor | int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt(a_t), sqrt(1 - a_t)), shaped to multiply latents."""
        t = torch.as_tensor(timesteps)
        a_t = self.alphas_cumprod.to(t.device)[t]
        return per_image(a_t.sqrt(), latents), per_image((1 - a_t).sqrt(), latents)


DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
}


def _linspace(N: int, T: int, offset: int) -> NDArray[np.int64]:
    return np.linspace(0, N - 1, T).round()[::-1].astype(np.int64)


def _leading(N: int, T: int, offset: int) -> NDArray[np.int64]:
    return np.arange(T, dtype=np.int64)[::-1] * (N // T) + offset


def _trailing(N: int, T: int, offset: int) -> NDArray[np.int64]:
    return np.arange(N, 0, -N / T)[:T].round().astype(np.int64) - 1  # [:T]: rounding adds a timestep of -1 for some T, 61 among them


def _distilled(N: int, T: int, original_steps: int) -> NDArray[np.int64]:
    """T of the timesteps that a latent consistency model was distilled at, the noisiest first."""
    known = np.arange(original_steps, 0, -1, dtype=np.int64) * (N // original_steps) - 1
    return known[np.floor(np.linspace(0, original_steps, T, endpoint=False)).astype(np.int64)]


@lru_cache(maxsize=8)
def _next(schedule: DDIM, num_inference_steps: int) -> Tensor:
    """{timestep: the next one of the rollout}, (num_train_timesteps,) int64; -1 after the last, and for those that are not in it."""
    grid = schedule.timesteps(num_inference_steps)
    following = torch.full((schedule.num_train_timesteps,), -1)
    following[grid[:-1]] = grid[1:]
    return following


# Source: arXiv 2305.08891, table 2.
SPACINGS = {"leading": _leading, "trailing": _trailing, "linspace": _linspace}


def _faults(config: Mapping[str, Any]) -> list[str]:
    """What of a config cannot be used, a clause each."""
    faults = [
        f"{name} '{config[name]}' is not one of {', '.join(known)}"
        for name, known in (("prediction_type", PREDICTION_TYPES), ("timestep_spacing", tuple(SPACINGS)), ("beta_schedule", tuple(BETAS)))
        if config[name] not in known
    ]
    if config["thresholding"]:
        faults.append("thresholding moves each pixel by the others, so a step has no simple density")
    if config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon":
        faults.append("rescale_betas_zero_snr needs v_prediction or sample: at zero signal the noise says nothing of the picture")
    return faults


def _betas(config: Mapping[str, Any]) -> Tensor:
    """beta_t, (num_train_timesteps,) float32."""
    if config["trained_betas"] is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        betas = BETAS[config["beta_schedule"]](config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    return _zero_terminal_snr(betas) if config["rescale_betas_zero_snr"] else betas


def _linear(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float32)


def _scaled_linear(start: float, end: float, n: int) -> Tensor:
    return _linear(start**0.5, end**0.5, n) ** 2


def _cosine(start: float, end: float, n: int) -> Tensor:
    """a(t) = cos^2((t + 0.008) / 1.008 * pi / 2), beta at most 0.999. Source: Nichol and Dhariwal 2021, arXiv 2102.09672."""
    a = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return torch.tensor([min(1 - a[i + 1] / a[i], 0.999) for i in range(n)], dtype=torch.float32)


BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _cosine}


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that it ends at 0 and begins where it did. Source: arXiv 2305.08891, algorithm 1."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas_cumprod = root**2
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
