"""What differs between model families, a small class each: how it encodes, predicts and decodes, what of it carries the LoRA, what it is called.

    base.py               what every family says of itself, and classifier-free guidance for those that have it
    stable_diffusion.py   Stable Diffusion 1.x and 2.x, the embedded model, latent consistency models
    sdxl.py               SDXL: two text encoders, added conditions
    sd3.py                SD3, SD3.5: flow matching; three encoders, of which T5 may be missing
    flux.py               FLUX.1-dev and -schnell: flow matching; guidance embedded, or none

A family is known by the class of its pipeline. Nothing outside this package knows which one it has: a new family is a file here and a row in
FAMILIES. No diffusers and no peft in it: a family speaks to the parts of a pipeline that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loophil.errors import ConfigError
from loophil.families.base import Embeddings, Family, Words, expand, join, placed
from loophil.families.flux import Flux
from loophil.families.sd3 import SD3
from loophil.families.sdxl import SDXL
from loophil.families.stable_diffusion import StableDiffusion

__all__ = ["FAMILIES", "Embeddings", "Family", "Words", "drawing_of", "expand", "family_of", "family_type", "join", "placed"]

FAMILIES: dict[str, type[Family]] = {
    "FluxPipeline": Flux,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusion3Pipeline": SD3,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": SDXL,
}

# In the name of a few-step model or of its scheduler.
FEW_STEPS = re.compile(r"turbo|lightning|schnell|hyper-?sd|(?<![a-z])(lcm|tcd|dmd2?)(?![a-z])|(LCM|TCD)Scheduler", re.IGNORECASE)


def family_type(pipeline_class: str) -> type[Family]:
    """The family of pipelines of this class; ConfigError lists those that are known."""
    if pipeline_class not in FAMILIES:
        raise ConfigError(f"A {pipeline_class} cannot be tuned yet. Supported: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[pipeline_class]


def family_of(pipeline: Any, size: int = 0, device: torch.device | None = None) -> Family:
    """The family of a pipeline, set up for pictures of `size` pixels, 0 = the model's own. ConfigError as `family_type` and `Family` say."""
    return family_type(type(pipeline).__name__)(pipeline, size, device)


def drawing_of(family: Family, model: str) -> Mapping[str, float]:
    """Knobs of drawing that a model has its own values of: a few-step one draws in four steps, without guidance unless it is told of it."""
    told = bool(family.guidance(1.0))
    if (family.distilled and not told) or FEW_STEPS.search(f"{Path(model).name} {type(family.pipeline.scheduler).__name__}"):
        return {**family.drawing, "draw.num_inference_steps": 4, **({} if told else {"draw.guidance_scale": 1.0})}
    return family.drawing
