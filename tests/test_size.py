"""`bench model MODEL`: models of the published sizes, and figures of a tiny one."""

import re
from pathlib import Path

import pytest
import torch

from bench import model, size
from bench.random_models import PUBLISHED, random_pipeline
from tests.tiny import tiny_pipeline

# Millions of parameters of the denoiser: what its published weights hold (of SD3.5 medium without the table of positions).
SIZES = {"sd15": 859.5, "sdxl": 2567.5, "sd35-medium": 2243.2, "flux-dev": 11901.4}


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_models_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        pipeline, words = random_pipeline(name, half=True)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    assert sum(parameter.numel() for parameter in denoiser.parameters()) / 1e6 == pytest.approx(SIZES[name], abs=0.1)
    assert {tensor.shape[0] for tensor in words.values()} == {1}
    assert torch.get_default_dtype() == torch.float32


def test_a_model_s_cost_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(size, "SQUARE", 64)
    tiny_pipeline().save_pretrained(tmp_path)
    knobs = ["--device", "cpu", "--draw.num-inference-steps", "2", "--draw.num-images-per-prompt", "2"]
    assert model.run([str(tmp_path), "--repeats", "1", *knobs]) == 0
    said = capsys.readouterr().out
    assert "float32, k = 2, 2 steps" in said
    assert re.search(r"draw a group: [\d.]+ s; [\d.e+]+ images/s; [\d.e+]+ image-steps/s; peak [\d.]+ GB", said)
    assert re.search(r"update on it: [\d.]+ s; peak [\d.]+ GB; 8 images at a time", said)
    assert re.search(r"one denoiser call: [\d.]+ GFLOP; drawing: \d+ GFLOP/s, \d+% of matrix products' \d+", said)


def test_a_model_of_the_published_size_needs_no_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from loophil.config import Settings

    words = {"encoder_hidden_states": torch.zeros(1, 16, 32)}
    monkeypatch.setattr(size, "random_pipeline", lambda name, half: (tiny_pipeline(), words))
    settings, cpu = Settings(), torch.device("cpu")
    policy = size._placed(*size._loaded("sd15", settings, cpu), settings, cpu)
    assert torch.equal(policy.encode_prompt("a red circle").positive["encoder_hidden_states"], words["encoder_hidden_states"])
    assert policy.offload == "none"
