"""One denoising step as a Gaussian that is drawn from or scored: the policy of LOOP.

    step.py   step_with_log_prob: the one place where a step is drawn, and where it is scored again; what a schedule must say of its process
    ddim.py   DDIM: Stable Diffusion, SDXL
    flow.py   flow matching as a stochastic process: SD3, FLUX

The ratio of an unchanged policy is exactly 1. These are not diffusers' schedulers, whose steps have no density and do their arithmetic in half
precision; they equal them in float32, and need nothing but their configs, so that nothing here imports diffusers.

B images, T denoising steps, latents (B, C, H, W), D = C*H*W. Arithmetic is in float32 whatever comes in; latents leave in the dtype they had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loophil.scheduler.ddim import BETAS, DDIM, DEFAULTS, PREDICTION_TYPES, SPACINGS
from loophil.scheduler.flow import FlowMatching
from loophil.scheduler.step import Schedule, randn, step_with_log_prob, stratified, trainable

__all__ = [
    "BETAS",
    "DDIM",
    "DEFAULTS",
    "PREDICTION_TYPES",
    "SPACINGS",
    "FlowMatching",
    "Schedule",
    "randn",
    "schedule_of",
    "step_with_log_prob",
    "stratified",
    "trainable",
]


def schedule_of(noise: Mapping[str, Any]) -> Schedule:
    """The schedule of a base, from its scheduler's class and config (`Family.noise`): flow matching, or DDIM for all others. Raises ConfigError."""
    return FlowMatching.from_config(noise) if str(noise.get("_class_name", "")).startswith("FlowMatch") else DDIM.from_config(noise)
