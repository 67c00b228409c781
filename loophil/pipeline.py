"""The base pipeline, loaded: from a folder, the Hub or one checkpoint, safetensors only, for a device that is there.

It lies in the computer's memory afterwards; what of it goes to the device is the policy's to say. Why something could not be loaded is put into
words by load_failure.py.
"""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from loophil.errors import ConfigError
from loophil.families import family_type
from loophil.load_failure import FAILURES, why

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
# What a checkpoint's keys hold, and the pipeline that it is of.
CHECKPOINTS = {
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}


def choose_device(name: str) -> torch.device:
    """ "auto" -> cuda, else mps, else cpu; a device that is not there is a ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"Device '{name}' is not there. Use --device auto or --device cpu.")
    return device


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """(bytes in use by anybody, bytes in all) of a GPU; None where the device has no memory of its own."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def load_pipeline(model: str, revision: str | None, device: torch.device) -> DiffusionPipeline:
    """The base pipeline, safetensors only; half precision for a GPU, float32 elsewhere. ConfigError says what went wrong.

    It lies in the computer's memory: `Policy` moves to the device what is to be there.

    model: a folder in diffusers' format, a Hub id, or one .safetensors with everything in it. A kind that is not supported is refused before its
    weights are read.
    """
    if model.endswith(PICKLES):
        raise ConfigError(f"The model '{model}' is a pickle, which can run programs: give it as .safetensors, or as a folder in diffusers' format.")
    for logging in (diffusers_logging, transformers_logging):  # bars of files read from disk; those of downloads stay
        logging.disable_progress_bar()
    try:
        pipeline = _from_single_file(Path(model), device) if model.endswith(".safetensors") else _from_folder(model, revision, device)
    except (*FAILURES, SafetensorError) as error:
        raise ConfigError(f"The model '{model}' cannot be loaded: {why(error, model, revision)}") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(memory_format=torch.channels_last)  # convolutions are an eighth faster so
    return pipeline


def _from_folder(model: str, revision: str | None, device: torch.device) -> DiffusionPipeline:
    """A pipeline of a folder, or of the Hub."""
    kind = _kind_of(model, revision)
    return DiffusionPipeline.from_pretrained(model, revision=revision, use_safetensors=True, **_wanted(kind, device))


def _from_single_file(file: Path, device: torch.device) -> DiffusionPipeline:
    """A pipeline of one checkpoint. Its configs lie in a folder beside it, of its name or its own; else they are the Hub's for what its keys say."""
    with safe_open(file, framework="pt") as content:
        keys = content.keys()
    beside = next((folder for folder in (file.with_suffix(""), file.parent) if (folder / "model_index.json").is_file()), None)
    kind = _kind_of(str(beside)) if beside else next((kind for mark, kind in CHECKPOINTS.items() if any(mark in key for key in keys)), "")
    if not kind:
        raise ConfigError(f"'{file}' is no checkpoint of a whole model that can be tuned (Stable Diffusion, SDXL, SD3, FLUX).")
    wanted = _wanted(kind, device)
    try:
        given = {"config": str(beside), "local_files_only": True} if beside else {}
        pipeline: DiffusionPipeline = getattr(diffusers, kind).from_single_file(str(file), **given, **wanted)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        place = file.with_suffix("")
        raise ConfigError(f"The configs of '{file}' are not here, and no Hub is reached: put its model's folder at {place}.") from error
    except SingleFileComponentError as error:
        raise ConfigError(f"'{file}' is no whole model: {error.message.splitlines()[0]} Give a checkpoint that is, or a folder.") from error
    except NotImplementedError as error:  # of torch: some layers have got no weights
        raise ConfigError(f"'{file}' has no weights for some layers: it is of another model than its configs, or damaged.") from error
    return pipeline


def _kind_of(model: str, revision: str | None = None) -> str:
    """The class of a pipeline, by its config alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own call
        return str(DiffusionPipeline.load_config(model, revision=revision)["_class_name"])


def _wanted(kind: str, device: torch.device) -> dict[str, Any]:
    """How a pipeline of this class is to be loaded; ConfigError for one that is not supported."""
    family = family_type(kind)
    return {"dtype": family.half if device.type == "cuda" else torch.float32, **dict.fromkeys(family.without)}
