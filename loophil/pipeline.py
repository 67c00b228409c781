"""The base pipeline, loaded: from a folder, the Hub or one checkpoint, safetensors only, for a device that is there.

It lies in the computer's memory afterwards; what of it goes to the device is the policy's to say. Why something could not be loaded is put into
words by load_failure.py.

    a Hub id -> commit_of -> its parts, downloaded one after the other -> diffusers loads each of them: all of it is said while it goes on
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import resolve_revision, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import tqdm
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from loophil.errors import ConfigError
from loophil.families import family_type
from loophil.load_failure import FAILURES, why

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
MEGABYTE = 1_000_000
ONE_AT_A_TIME = threading.Lock()  # transformers and diffusers change torch itself while they load
# What of a part is downloaded: no pickles, and not its variants, as diffusion_pytorch_model.fp16.safetensors.
FILES, VARIANTS = ("*.safetensors", "*.json", "*.txt", "*.model"), ["*.*.safetensors", "*.index.*.json"]
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


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit that a branch, a tag or None (the newest) of a Hub model means: by the Hub, else as it was when it was reached last.

    None for what lies on this disk. ConfigError as `load_pipeline`.
    """
    if Path(model).exists() or model.endswith((*PICKLES, ".safetensors")):
        return None
    with told(model, revision):
        commit: str = resolve_revision(model, revision=revision).resolved
    return commit


def load_pipeline(model: str, revision: str | None, device: torch.device, say: Callable[[str], None] = lambda part: None) -> DiffusionPipeline:
    """The base pipeline, safetensors only; half precision for a GPU, float32 elsewhere. ConfigError says what went wrong.

    It lies in the computer's memory: `Policy` moves to the device what is to be there.

    model: a folder in diffusers' format, a Hub id, or one .safetensors with everything in it. A kind that is not supported is refused before its
    weights are read.  say: is told which of its parts is being downloaded or loaded, and in a download by whatever thread does it
    """
    if model.endswith(PICKLES):
        raise ConfigError(f"The model '{model}' is a pickle, which can run programs: give it as .safetensors, or as a folder in diffusers' format.")
    for logging in (diffusers_logging, transformers_logging):  # bars of files read from disk; those of downloads stay
        logging.disable_progress_bar()
    with told(model, revision), ONE_AT_A_TIME:
        pipeline = _from_single_file(Path(model), device, say) if model.endswith(".safetensors") else _from_folder(model, revision, device, say)
        _refuse_without_words(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(memory_format=torch.channels_last)  # convolutions are an eighth faster so
    return pipeline


@contextmanager
def told(model: str, revision: str | None) -> Iterator[None]:
    """What fails inside is a ConfigError with the reason and the remedy."""
    try:
        yield
    except (*FAILURES, SafetensorError) as error:
        raise ConfigError(f"The model '{model}' cannot be loaded: {why(error, model, revision)}") from error


def _from_folder(model: str, revision: str | None, device: torch.device, say: Callable[[str], None]) -> DiffusionPipeline:
    """A pipeline of a folder, or of the Hub."""
    index = _index_of(model, revision)
    wanted = _wanted(_class_of(index), device)
    if not Path(model).is_dir():
        _download(model, revision, [name for name, kind in index.items() if isinstance(kind, list) and kind[0] and name not in wanted], say)
    with _parts_said(say):
        return DiffusionPipeline.from_pretrained(model, revision=revision, use_safetensors=True, **wanted)


def _download(model: str, revision: str | None, parts: list[str], say: Callable[[str], None]) -> None:
    """These parts of a Hub model, into its cache. What cannot be had, or is left out here, is diffusers' to ask for, and its error to tell."""
    for i, part in enumerate(parts, start=1):
        words = f"downloading {i} of {len(parts)} parts"
        say(words)
        with suppress(LocalEntryNotFoundError):
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=[f"{part}/{files}" for files in FILES],
                ignore_patterns=VARIANTS,
                tqdm_class=_megabytes_said(lambda done, words=words: say(f"{words}; {done}")),  # type: ignore[misc]
            )


def _megabytes_said(say: Callable[[str], None]) -> type[tqdm]:
    """The Hub's own bar, that of the bytes of a download also in words, at each hundredth of them."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            self.bytes, self.hundredth = 0, -1
            self.of_bytes = more.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*args, **more)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.bytes += int(n or 0)
            if self.of_bytes and self.total >= MEGABYTE and (hundredth := 100 * self.bytes // int(self.total)) != self.hundredth:
                self.hundredth = hundredth
                say(f"{self.bytes / MEGABYTE:.0f} of {self.total / MEGABYTE:.0f} MB")
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


@contextmanager
def _parts_said(say: Callable[[str], None]) -> Iterator[None]:
    """Which part of a pipeline diffusers is loading, inside: it counts them by the bar of its logging module alone, so that one is replaced."""
    bar = diffusers_logging.tqdm

    def counted(*args: Any, **more: Any) -> Iterable[Any]:
        if not str(more.get("desc", "")).startswith("Loading pipeline components"):
            shown: Iterable[Any] = bar(*args, **more)
            return shown
        return one_by_one(list(args[0]))

    def one_by_one(parts: list[Any]) -> Iterator[Any]:
        for i, part in enumerate(parts, start=1):
            say(f"loading {i} of {len(parts)} parts")
            yield part

    diffusers_logging.tqdm = counted
    try:
        yield
    finally:
        diffusers_logging.tqdm = bar


def _from_single_file(file: Path, device: torch.device, say: Callable[[str], None]) -> DiffusionPipeline:
    """A pipeline of one checkpoint. Its configs lie in a folder beside it, of its name or its own; else they are the Hub's for what its keys say."""
    with safe_open(file, framework="pt") as content:
        keys = content.keys()
    beside = next((folder for folder in (file.with_suffix(""), file.parent) if (folder / "model_index.json").is_file()), None)
    kind = _class_of(_index_of(str(beside))) if beside else next((kind for mark, kind in CHECKPOINTS.items() if any(mark in key for key in keys)), "")
    if not kind:
        raise ConfigError(f"'{file}' is no checkpoint of a whole model that can be tuned (Stable Diffusion, SDXL, SD3, FLUX).")
    wanted = _wanted(kind, device)
    try:
        given = {"config": str(beside), "local_files_only": True} if beside else {}
        with _parts_said(say):
            pipeline: DiffusionPipeline = getattr(diffusers, kind).from_single_file(str(file), **given, **wanted)
        parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        if any(weight.is_meta for part in parts for weight in part.state_dict().values()):
            raise NotImplementedError
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        place = file.with_suffix("")
        raise ConfigError(f"The configs of '{file}' are not here, and no Hub is reached: put its model's folder at {place}.") from error
    except SingleFileComponentError as error:
        raise ConfigError(f"'{file}' is no whole model: {error.message.splitlines()[0]} Give a checkpoint that is, or a folder.") from error
    except NotImplementedError as error:  # torch's too, where it casts layers that have got no weights
        raise ConfigError(f"'{file}' has no weights for some layers: it is of another model than its configs, or damaged.") from error
    return pipeline


def _refuse_without_words(pipeline: Any) -> None:
    """transformers makes a tokenizer that knows hardly a word where its files are missing: every prompt would mean the same."""
    for name, tokenizer in pipeline.components.items():
        encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"), None) if name.startswith("tokenizer") else None
        if tokenizer is not None and encoder is not None and len(tokenizer) < encoder.config.vocab_size // 2:
            raise ValueError(f"the files of its {name} are missing or damaged")


def _index_of(model: str, revision: str | None = None) -> dict[str, Any]:
    """What a pipeline consists of: {"_class_name": its class, part: [library, class]}, by its config alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own call
        return dict(DiffusionPipeline.load_config(model, revision=revision))


def _class_of(index: dict[str, Any]) -> str:
    return str(index.get("_class_name", "model_index.json without a _class_name"))


def _wanted(kind: str, device: torch.device) -> dict[str, Any]:
    """How a pipeline of this class is to be loaded; ConfigError for one that is not supported."""
    family = family_type(kind)
    return {"dtype": family.half if device.type == "cuda" else torch.float32, **dict.fromkeys(family.without)}
