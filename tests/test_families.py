"""What is supported, and what is said of what is not."""

import pytest

from loophil.errors import ConfigError
from loophil.families import FAMILIES, family_of


def test_stable_diffusion_denoises_by_its_unet() -> None:
    assert family_of("StableDiffusionPipeline").component == "unet"


@pytest.mark.parametrize(
    ("text_width", "prediction_type", "architecture"),
    [
        (768, "epsilon", "stable-diffusion-v1"),
        (1024, "epsilon", "stable-diffusion-v2-512"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v"),
        (32, "v_prediction", "stable-diffusion-v1"),  # the embedded model: no other program knows it anyway
    ],
)
def test_generations_of_one_pipeline_are_told_apart_by_their_numbers(text_width: int, prediction_type: str, architecture: str) -> None:
    assert family_of("StableDiffusionPipeline", text_width=text_width, prediction_type=prediction_type).architecture == architecture


def test_an_unsupported_pipeline_is_refused_with_what_is_supported() -> None:
    with pytest.raises(ConfigError, match=r"A KandinskyPipeline cannot be tuned yet\. Supported: StableDiffusionPipeline\."):
        family_of("KandinskyPipeline")


def test_every_family_names_the_part_that_carries_the_lora() -> None:
    assert {family.component for family in FAMILIES.values()} <= {"unet", "transformer"}
