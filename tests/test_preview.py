"""Rough pictures of a drawing that goes on, by a tiny autoencoder that the test builds and saves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from loophil.build import load_engine
from loophil.config import Settings
from loophil.errors import ConfigError
from loophil.preview import load_preview
from tests.tiny import tiny_pipeline

CPU = torch.device("cpu")


def saved(folder: Path, **config: Any) -> str:
    """The folder of a tiny autoencoder with random weights, which makes latents eight times as wide."""
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4}
    AutoencoderTiny(**widths, num_decoder_blocks=(1,) * 4, **config).save_pretrained(folder)
    return str(folder)


def test_a_preview_is_the_tiny_autoencoder_s_picture_made_small(tmp_path: Path) -> None:
    where, latents = saved(tmp_path), torch.randn(2, 4, 40, 40)
    pictures = load_preview(where, 4, CPU, torch.float32)(latents)
    assert [picture.size for picture in pictures] == [(256, 256)] * 2
    whole = (AutoencoderTiny.from_pretrained(where).decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.tensor(list(pictures[1].convert("RGB").getdata())).float().mean(0) / 255 == pytest.approx(whole[1].mean((1, 2)).tolist(), abs=0.02)


def test_a_preview_that_fails_is_none_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preview = load_preview(saved(tmp_path), 4, CPU, torch.float32)
    assert preview(torch.zeros(1, 5, 8, 8)) == []
    assert "no preview" in caplog.text


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--draw.preview .* is for latents of 16 channels, and this model's have 4\."):
        load_preview(saved(tmp_path, latent_channels=16), 4, CPU, torch.float32)


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_preview(str(tmp_path), 4, CPU, torch.float32)


def test_the_engine_has_the_preview_that_the_settings_name(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    settings = Settings.read([], model=str(tmp_path / "model"), draw={"preview": saved(tmp_path / "tiny")})
    preview = load_engine(settings).preview
    assert preview is not None
    assert [picture.size for picture in preview(torch.zeros(3, 4, 8, 8))] == [(64, 64)] * 3
    assert load_engine(Settings.read([], model=str(tmp_path / "model"))).preview is None
