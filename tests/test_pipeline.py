"""Loading the base: from a folder, the Hub's names or one checkpoint, never a pickle, for a device that is there."""

import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import diffusers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from loophil.errors import ConfigError
from loophil.pipeline import choose_device, load_pipeline
from loophil.policy import BASE, Policy
from tests.checkpoints import single_file
from tests.test_policy import CPU, LORA, predicted, same
from tests.tiny import tiny_flux, tiny_pipeline, tiny_sd3, tiny_sdxl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline in diffusers' folder format; tests that spoil it copy it."""
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def spoiled(folder: Path, tmp_path: Path) -> Path:
    """A copy whose UNet weights may be spoiled."""
    tiny_pipeline().save_pretrained(tmp_path / "spoiled")
    return tmp_path / "spoiled"


def test_auto_is_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:0", "cuda:2"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=f"Device '{name}' is not there. Use --device auto"):
        choose_device(name)


def test_the_last_of_two_cards_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_a_folder_loads_to_the_same_model_in_float32(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # how diffusers says that an argument is on its way out
        pipeline: Any = load_pipeline(str(folder), None, CPU)
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float32
    mine, its = predicted(Policy(tiny_pipeline(), LORA), BASE), predicted(Policy(pipeline, LORA), BASE)
    torch.testing.assert_close(its, mine)  # another memory layout: the last bits differ


@pytest.mark.parametrize("model", ["/no/such/folder", "no-such-organisation/no-such-model"])
def test_a_model_that_is_nowhere_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match=rf"The model '{model}' cannot be loaded: .+ [Gg]ive a .*folder.* by --model\."):
        load_pipeline(model, None, CPU)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pipeline(str(tmp_path), None, CPU)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_half_a_download_is_refused(spoiled: Path, part: str) -> None:
    weights = spoiled / f"{part}.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pipeline(str(spoiled), None, CPU)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_pickle_is_not_an_alternative_to_safetensors(spoiled: Path, part: str) -> None:
    weights = spoiled / f"{part}.safetensors"
    weights.rename(spoiled / (f"{part}.bin" if part.startswith("unet") else "text_encoder/pytorch_model.bin"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_pipeline(str(spoiled), None, CPU)


def saved(pipeline: Any, to: Path) -> Path:
    """model.safetensors with the weights, and a folder of its name with the configs alone."""
    pipeline.save_pretrained(to / "model")
    for weights in (to / "model").rglob("*.safetensors"):
        weights.unlink()
    save_file(single_file(pipeline), to / "model.safetensors")
    return to / "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of Stable Diffusion."""
    return saved(tiny_pipeline(), tmp_path)


@pytest.mark.parametrize("beside", [True, False])
def test_a_single_file_loads_to_the_same_model_by_the_configs_beside_it(checkpoint: Path, beside: bool) -> None:
    if not beside:  # in the folder itself
        checkpoint = checkpoint.rename(checkpoint.parent / "model" / "weights.safetensors")
    pipeline: Any = load_pipeline(str(checkpoint), None, CPU)
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipeline, part).state_dict(), getattr(tiny_pipeline(), part).state_dict())
    Policy(pipeline, LORA)


@pytest.mark.parametrize("build", [tiny_sdxl, tiny_sd3], ids=["SDXL", "SD3"])
def test_a_single_file_of_a_larger_family_loads_to_the_same_model(build: Callable[..., Any], tmp_path: Path) -> None:
    """The text encoders are of different widths, as the published ones, since diffusers tells them apart by these."""
    made, said = build(second=16), list[str]()
    if build is tiny_sd3:  # such files have no projection of the first encoder: diffusers takes the identity
        made.text_encoder.text_projection.weight.data = torch.eye(made.text_encoder.config.projection_dim)
    pipeline: Any = load_pipeline(str(saved(made, tmp_path)), None, CPU, said.append)
    parts = [name for name, part in made.components.items() if isinstance(part, torch.nn.Module)]
    assert len(parts) == 4 + (build is tiny_sd3)
    for part in parts:
        assert same(getattr(pipeline, part).state_dict(), getattr(made, part).state_dict()), part
    assert len({words.partition(" of ")[2] for words in said}) == 1
    assert said[-1] == f"loading {len(said)} of {len(said)} parts"
    Policy(pipeline, LORA)


@pytest.mark.slow  # 3072 columns, since diffusers takes a single block apart at these, whatever its config says: two gigabytes
def test_a_single_file_of_flux_loads_to_the_same_model(tmp_path: Path) -> None:
    made = tiny_flux(heads=24, head=128)
    pipeline: Any = load_pipeline(str(saved(made, tmp_path)), None, CPU)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert same(getattr(pipeline, part).state_dict(), getattr(made, part).state_dict()), part


def without(file: Path, *beginnings: str) -> Path:
    """The checkpoint, less the weights whose names begin so."""
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(beginnings)}
    save_file(kept, file)
    return file


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ("model.diffusion_model.input_blocks.1", "has no weights for some layers: it is of another model than its configs, or damaged"),
        ("cond_stage_model.transformer.text_model.encoder", "has no weights for some layers"),
        ("cond_stage_model", "is no whole model: Failed to load CLIPTextModel"),
    ],
)
def test_a_single_file_that_is_no_whole_model_is_refused(checkpoint: Path, lacking: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_pipeline(str(without(checkpoint, lacking)), None, CPU)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["cond_stage_model.x"], "StableDiffusionPipeline"),
        (["conditioner.embedders.0.x", "conditioner.embedders.1.x"], "StableDiffusionXLPipeline"),
        (["model.diffusion_model.joint_blocks.0.x"], "StableDiffusion3Pipeline"),
        (["double_blocks.0.x"], "FluxPipeline"),
    ],
)
def test_a_single_file_without_configs_is_of_the_kind_that_its_keys_say(
    keys: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configs are the Hub's, which is not reached here."""
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "lone.safetensors")
    monkeypatch.setattr(getattr(diffusers, kind), "from_single_file", asked := Mock(side_effect=LocalEntryNotFoundError("no network")))
    with pytest.raises(ConfigError, match=r"The configs of '.*' are not here, and no Hub is reached: put its model's folder at .*lone\.$"):
        load_pipeline(str(tmp_path / "lone.safetensors"), None, CPU)
    assert asked.call_args.args == (str(tmp_path / "lone.safetensors"),)
    assert "config" not in asked.call_args.kwargs


def test_a_single_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ConfigError, match="is no checkpoint of a whole model that can be tuned"):
        load_pipeline(str(tmp_path / "vae.safetensors"), None, CPU)
    with pytest.raises(ConfigError, match=r"none\.safetensors' cannot be loaded: No such file"):
        load_pipeline(str(tmp_path / "none.safetensors"), None, CPU)


@pytest.mark.parametrize("gone", ["tokenizer", "tokenizer/tokenizer.json"])
def test_a_folder_without_its_tokenizer_is_refused(gone: str, tmp_path: Path) -> None:
    """transformers would make one that knows two words."""
    tiny_pipeline().save_pretrained(tmp_path)
    lost = tmp_path / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(ConfigError, match="the files of its tokenizer are missing or damaged"):
        load_pipeline(str(tmp_path), None, CPU)


def test_two_models_that_are_loaded_at_once_are_both_whole(tmp_path: Path) -> None:
    """transformers and diffusers change torch itself while they load."""
    tiny_pipeline().save_pretrained(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        loaded: list[Any] = list(pool.map(lambda number: load_pipeline(str(tmp_path), None, CPU), range(8)))
    for pipeline in loaded:
        assert same(pipeline.text_encoder.state_dict(), loaded[0].text_encoder.state_dict())
        assert not any(weight.is_meta for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for weight in part.parameters())
    assert torch.nn.Linear(1, 1).weight.device == CPU


def test_a_folder_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(ConfigError, match=r"A model_index\.json without a _class_name cannot be tuned yet\. Supported: "):
        load_pipeline(str(tmp_path), None, CPU)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin"])
def test_a_pickled_checkpoint_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is a pickle, which can run programs: give it as \.safetensors"):
        load_pipeline(name, None, CPU)


def test_another_kind_of_pipeline_is_refused(tmp_path: Path) -> None:
    unet = UNet2DModel(sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=8)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^A DDPMPipeline cannot be tuned yet\. Supported: .*StableDiffusionPipeline"):
        Policy(load_pipeline(str(tmp_path), None, CPU), LORA)
