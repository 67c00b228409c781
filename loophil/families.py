"""What differs between model families: which part of a pipeline denoises and carries the LoRA, and what the family is called.

Only facts, and no diffusers: a pipeline is known by its class name and a few numbers. The policy acts on them. Stable Diffusion
1.x and 2.x (and the embedded model) are one kind of pipeline; others follow.
"""

from dataclasses import dataclass, replace
from typing import Literal

from loophil.errors import ConfigError

SD2_TEXT_WIDTH = 1024  # OpenCLIP ViT-H, against the 768 of CLIP ViT-L in 1.x


@dataclass(frozen=True)
class Family:
    """One kind of pipeline. `component` is the attribute that denoises; `architecture` is what ModelSpec calls its weights."""

    name: str
    component: Literal["unet", "transformer"]
    architecture: str


FAMILIES = {
    "StableDiffusionPipeline": Family("Stable Diffusion 1.x/2.x", "unet", "stable-diffusion-v1"),
}


def family_of(pipeline_class: str, *, text_width: int = 768, prediction_type: str = "epsilon") -> Family:
    """The family of a pipeline by its class name; ConfigError names what is supported.

    text_width (of the embeddings) and prediction_type tell 1.x, 2.x at 512 pixels and 2.x at 768 apart, which share a class.
    """
    if pipeline_class not in FAMILIES:
        raise ConfigError(f"A {pipeline_class} cannot be tuned yet. Supported: {', '.join(sorted(FAMILIES))}.")
    family = FAMILIES[pipeline_class]
    if family.architecture == "stable-diffusion-v1" and text_width == SD2_TEXT_WIDTH:
        return replace(family, architecture="stable-diffusion-v2-768-v" if prediction_type == "v_prediction" else "stable-diffusion-v2-512")
    return family
