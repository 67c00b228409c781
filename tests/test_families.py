"""What is supported, what is said of what is not, and the whole way through each family on a tiny pipeline of the very same classes."""

import pytest

from loophil.errors import ConfigError
from loophil.families import FAMILIES, family_of, family_type
from tests.tiny import tiny_pipeline


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
    pipeline = tiny_pipeline(prediction_type=prediction_type)
    pipeline.unet.register_to_config(cross_attention_dim=text_width)
    assert family_of(pipeline).architecture == architecture


def test_an_unsupported_pipeline_is_refused_with_what_is_supported() -> None:
    with pytest.raises(ConfigError, match=rf"A KandinskyPipeline cannot be tuned yet\. Supported: {', '.join(sorted(FAMILIES))}\."):
        family_type("KandinskyPipeline")
