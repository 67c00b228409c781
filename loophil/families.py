"""What differs between model families: which part of the pipeline denoises, its latents, and where a LoRA goes.

Only facts; the policy acts on them. Stable Diffusion 1.x and 2.x (and the embedded model) are one family; others follow.
"""

from dataclasses import dataclass
from typing import Literal

from loophil.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """One kind of pipeline. `component` is the attribute that denoises and carries the LoRA."""

    name: str
    component: Literal["unet", "transformer"]
    architecture: str  # as ModelSpec names it


FAMILIES = {
    "StableDiffusionPipeline": Family("Stable Diffusion 1.x/2.x", "unet", "stable-diffusion-v1"),
}


def family_of(pipeline_class: str) -> Family:
    """The family of a pipeline by its class name; ConfigError names what is supported."""
    if pipeline_class not in FAMILIES:
        raise ConfigError(f"A {pipeline_class} cannot be tuned yet. Supported: {', '.join(sorted(FAMILIES))}.")
    return FAMILIES[pipeline_class]
