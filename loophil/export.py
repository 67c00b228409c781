"""A tuned adapter as files that other programs load: diffusers, peft and kohya (ComfyUI, A1111), each with a model card.

Not a checkpoint: a run keeps its own versions with optimizer and RNG; nothing here is read back by LoopHIL. And not an upload.
Why by hand: the stock writers lose alpha (diffusers without its metadata), write alpha = rank (the kohya converter), or list every field
of today's LoraConfig, which older releases refuse. Here each file is a pure function of the Adapter: the same version gives the same bytes.

    Adapter, pictures -> {name: bytes} -> staged beside the target, fsynced, read back -> renamed into place
"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from huggingface_hub import ModelCardData
from PIL import Image
from safetensors.torch import save

from loophil.config import RUN_NAME
from loophil.errors import InvalidInput

STAGING = ".loophil-export"
THUMBNAIL = 256  # ModelSpec's largest side
LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
KOHYA_BASES = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}
Files = dict[str, bytes]


@dataclass(frozen=True)
class Adapter:
    """One version's LoRA and what is known about it. None = not measured; only what stands here can reach an exported file.

    weights       {"<module>.lora_A.weight": (rank, in[, h, w]), "<module>.lora_B.weight": (out, rank[, 1, 1])}, peft's bare keys
    base_model    Hub id, or a folder, of which only the last part is ever written
    architecture  ModelSpec's name of the base's class, by which A1111 knows what the file fits
    created       when the version was published, Unix seconds
    rewards       weight of each source in the reward mix; people are written as one "human"
    win_rate      share of blind pairs won against the base, with its interval: (share, low, high)
    """

    weights: Mapping[str, torch.Tensor]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_model: str
    revision: str | None
    version: int
    ratings: int
    run: str
    component: Literal["unet", "transformer"] = "unet"
    trigger: str = ""
    licence: str = "other"
    resolution: int = 512
    architecture: str = "stable-diffusion-v1"
    created: float | None = None
    raters: int | None = None
    updates: int | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    win_rate: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt at one seed, drawn by the base and by the tuned model. The prompt is shown on the card."""

    prompt: str
    seed: int
    base: Image.Image
    tuned: Image.Image


def export(adapter: Adapter, format: str, to: Path, *, pictures: Sequence[BeforeAfter] = ()) -> Path:
    """Write `to/<run>-v<version>-<format>/` complete or not at all; return the one file to hand on.

    That file is `<folder>.zip` for "diffusers" and "peft", and `<folder>/<run>-v<version>-kohya.safetensors` for "kohya".
    The same version again leaves equal files untouched, so that whoever is reading them can go on.
    Raises InvalidInput for an unknown format or an adapter that no program could load, OSError when the disk refuses.
    """
    if format not in FORMATS:
        raise InvalidInput(f"Unknown format {format!r}. Choose from: {', '.join(FORMATS)}.")
    _check(adapter)
    name = f"{adapter.run}-v{adapter.version}-{format}"
    files = FORMATS[format](adapter, name, _modelspec(adapter, pictures)) | _images(pictures)
    files["README.md"] = _card(adapter, format, name, pictures).encode()
    with _staging(to) as stage:
        single = {} if format == "kohya" else {f"{name}.zip": _zip(files)}
        _write(stage / "folder", files)
        _write(stage / "single", single)
        _publish_folder(stage / "folder", to / name, files)
        for file in single:
            os.replace(stage / "single" / file, to / file)
        _sync(to)
    return to / next(iter(single), f"{name}/{name}.safetensors")


def _check(adapter: Adapter) -> None:
    """Refuse what would make a broken or misleading file."""
    if not re.fullmatch(RUN_NAME, adapter.run):
        raise InvalidInput(f"{adapter.run!r} cannot name a file: use up to 64 of a-z, 0-9, _ and -.")
    if not (adapter.trigger + adapter.licence).isprintable():
        raise InvalidInput(f"Trigger {adapter.trigger!r} or licence {adapter.licence!r} has unprintable characters: leave them out.")
    if not adapter.weights:
        raise InvalidInput(f"Version {adapter.version} has no LoRA weights: rate a few groups first, then export.")
    for key, weight in adapter.weights.items():
        _check_weight(adapter, key, weight)


def _check_weight(adapter: Adapter, key: str, weight: torch.Tensor) -> None:
    match = LORA_KEY.fullmatch(key)
    if not match:
        raise InvalidInput(f"{key!r} is not a LoRA weight: peft's bare keys end in .lora_A.weight or .lora_B.weight.")
    module, half = match["module"], match["half"]
    if f"{module}.lora_{'B' if half == 'A' else 'A'}.weight" not in adapter.weights:
        raise InvalidInput(f"{key!r} has no other half: export A and B of every module.")
    if not any(f".{module}".endswith(f".{target}") for target in adapter.targets):
        raise InvalidInput(f"{module!r} is not among the targets {', '.join(adapter.targets)}: programs would drop it.")
    if weight.ndim not in (2, 4) or weight.shape[0 if half == "A" else 1] != adapter.rank:
        raise InvalidInput(f"{key!r} has shape {tuple(weight.shape)}, which does not fit rank {adapter.rank}.")
    if not torch.isfinite(weight).all():
        raise InvalidInput(f"{key!r} of version {adapter.version} is not finite: roll back to an earlier version.")


# What stands in the files


def _diffusers(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`<component>.<module>.lora_A.weight`; alpha survives only by the header's lora_adapter_metadata."""
    tensors = {f"{adapter.component}.{key}": weight for key, weight in adapter.weights.items()}
    config = {f"{adapter.component}.{key}": value for key, value in _lora_config(adapter).items()}
    metadata = {**metadata, "lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    return {"pytorch_lora_weights.safetensors": _safetensors(tensors, metadata)}


def _peft(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`base_model.model.<module>.lora_A.weight` and peft's adapter_config.json."""
    tensors = {f"base_model.model.{key}": weight for key, weight in adapter.weights.items()}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": _public_name(adapter.base_model),
        "revision": adapter.revision,
        **_lora_config(adapter),
    }
    return {
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "adapter_model.safetensors": _safetensors(tensors, metadata),
    }


def _kohya(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`lora_unet_<module with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`, and the ss_* header that A1111 reads."""
    if adapter.component != "unet":
        raise InvalidInput(f"The kohya format names the modules of a UNet, and this base has a {adapter.component}: choose diffusers or peft.")
    tensors = {}
    for key, weight in adapter.weights.items():
        module, half = key.removesuffix(".weight").rsplit(".lora_", 1)
        kohya = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{kohya}.lora_{'down' if half == 'A' else 'up'}.weight"] = weight
        tensors[f"{kohya}.alpha"] = torch.tensor(float(adapter.alpha))
    convolution = any(weight.ndim == 4 and weight.shape[2:] != (1, 1) for weight in adapter.weights.values())
    network_args = {"conv_dim": str(adapter.rank), "conv_alpha": str(adapter.alpha)} if convolution else {}
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha),
        "ss_network_args": json.dumps(network_args),
        "ss_base_model_version": KOHYA_BASES.get(adapter.architecture, adapter.architecture),
        "ss_v2": str("-v2" in adapter.architecture),
        "ss_sd_model_name": _public_name(adapter.base_model),
        "ss_output_name": name,
        "ss_resolution": f"({adapter.resolution}, {adapter.resolution})",
        "ss_training_comment": metadata["modelspec.description"],
    }
    return {f"{name}.safetensors": _safetensors(tensors, {**metadata, **header})}


FORMATS: dict[str, Callable[[Adapter, str, dict[str, str]], Files]] = {"diffusers": _diffusers, "peft": _peft, "kohya": _kohya}


def _lora_config(adapter: Adapter) -> dict[str, object]:
    """The fields of peft's LoraConfig that matter; the rest is left to each release's defaults."""
    return {
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted(adapter.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def _modelspec(adapter: Adapter, pictures: Sequence[BeforeAfter]) -> dict[str, str]:
    """The header of every format: ModelSpec 1.0.1 and LoopHIL's own facts. All values are strings."""
    base = _public_name(adapter.base_model)
    facts = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{adapter.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{adapter.run} v{adapter.version}",
        "modelspec.resolution": f"{adapter.resolution}x{adapter.resolution}",
        "modelspec.description": f"LoRA for {base}, tuned with LoopHIL on {adapter.ratings} rated images.",
        "modelspec.license": adapter.licence,
        "modelspec.tags": "text-to-image, lora, loophil",
        "loophil.base_model": base,
        "loophil.rank": str(adapter.rank),
        "loophil.alpha": str(adapter.alpha),
        "loophil.version": str(adapter.version),
        "loophil.ratings": str(adapter.ratings),
        "loophil.run": adapter.run,
    }
    if adapter.revision is not None:
        facts["loophil.revision"] = adapter.revision
    if adapter.created is not None:
        facts["modelspec.date"] = datetime.fromtimestamp(adapter.created, UTC).isoformat(timespec="seconds")
    if adapter.trigger:
        facts["modelspec.trigger_phrase"] = adapter.trigger
        facts["modelspec.usage_hint"] = f"Put '{adapter.trigger}' into the prompt."
    if pictures:
        facts["modelspec.thumbnail"] = _thumbnail(pictures[0].tuned)
    return facts


def _safetensors(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file in float32 with its keys in order (the library shuffles metadata) and the hash of its data in the header."""
    raw = save({key: weight.detach().to("cpu", torch.float32, copy=True).contiguous() for key, weight in tensors.items()})
    end = 8 + int.from_bytes(raw[:8], "little")
    index, data = json.loads(raw[8:end]), raw[end:]
    digest = hashlib.sha256(data).hexdigest()
    metadata = {**metadata, "format": "pt", "modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    header = json.dumps({"__metadata__": metadata, **index}, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # data stays 8-byte aligned
    return len(header).to_bytes(8, "little") + header + data


def _images(pictures: Sequence[BeforeAfter]) -> Files:
    sides = [(f"images/{side}_{i}.png", image) for i, p in enumerate(pictures) for side, image in (("base", p.base), ("tuned", p.tuned))]
    return {name: _encode(image, "PNG") for name, image in sides}


def _encode(image: Image.Image, format: str) -> bytes:
    """The pixels alone: comments, EXIF and colour profiles of the original stay behind."""
    pixels = Image.new("RGB", image.size)
    pixels.paste(image)
    buffer = io.BytesIO()
    pixels.save(buffer, format)
    return buffer.getvalue()


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return "data:image/jpeg;base64," + base64.b64encode(_encode(small, "JPEG")).decode()


# The card

LOADING = {
    "diffusers": {"diffusers": 'pipe.load_lora_weights("FOLDER")', "kohya": 'pipe.load_lora_weights("FOLDER", weight_name="{name}.safetensors")'},
    "ComfyUI": {"kohya": "copy {name}.safetensors to models/loras, and put a Load LoRA node behind the checkpoint"},
    "A1111": {"kohya": "copy {name}.safetensors to models/Lora, and write <lora:{name}:1> into the prompt"},
    "peft": {"peft": 'PeftModel.from_pretrained(pipe.{component}, "FOLDER")'},
}
CARD = """---
{front}
---

# {run} v{version}
{gallery}
A LoRA for {base}, tuned with LoopHIL: people rated pictures, and leave-one-out PPO (LOOP, arXiv 2503.00897) followed their taste.

## What it learned from

| | |
|---|---|
{facts}
{grid}
## How to load it

`pipe` is `AutoPipelineForText2Image.from_pretrained("{model}")`, and FOLDER is where this file lies.

| | |
|---|---|
{loading}

These files hold no names of people, no paths, and no prompts but those shown above.
"""
GRID = """
## Before and after

The same prompt and seed, drawn by the base and by the tuned model.

| prompt | seed | base | tuned |
|---|---|---|---|
{rows}
"""


def _card(adapter: Adapter, format: str, name: str, pictures: Sequence[BeforeAfter]) -> str:
    """README.md as the Hub reads it: front matter, what was learned from what, pictures, how to load it."""
    base = _public_name(adapter.base_model)
    front = ModelCardData(
        base_model=base,
        library_name="peft" if format == "peft" else "diffusers",
        license=adapter.licence,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "lora", "diffusers", "diffusers-training", "template:sd-lora", "loophil"],
        instance_prompt=adapter.trigger or None,
        widget=[{"text": p.prompt, "output": {"url": f"images/tuned_{i}.png"}} for i, p in enumerate(pictures)] or None,
    )
    rows = [f"| {_plain(p.prompt)} | {p.seed} | ![base](images/base_{i}.png) | ![tuned](images/tuned_{i}.png) |" for i, p in enumerate(pictures)]
    return CARD.format(
        front=front.to_yaml(),
        run=adapter.run,
        version=adapter.version,
        base=_plain(base),
        model=base.replace("`", ""),
        gallery="\n<Gallery />\n" if pictures else "",
        facts="\n".join(f"| {fact} | {value} |" for fact, value in _facts(adapter).items()),
        grid=GRID.format(rows="\n".join(rows)) if pictures else "",
        loading="\n".join(f"| {program} | {_loading(ways, format, name, adapter.component)} |" for program, ways in LOADING.items()),
    )


def _facts(adapter: Adapter) -> dict[str, str]:
    """The card's table, only of what is known."""
    facts = {"ratings": f"{adapter.ratings} rated images" + ("" if adapter.raters is None else f", {adapter.raters} raters")}
    facts["version"] = f"{adapter.version}" + ("" if adapter.updates is None else f", after {adapter.updates} updates")
    if adapter.rewards:
        facts["reward mix"] = ", ".join(f"{_plain(source)} {weight:g}" for source, weight in _public_rewards(adapter.rewards).items())
    if adapter.win_rate is not None:
        share, low, high = adapter.win_rate
        facts["better than the base"] = f"{share:.0%} of blind pairs ({low:.0%} to {high:.0%})"
    facts["base model"] = _plain(_public_name(adapter.base_model)) + ("" if adapter.revision is None else f", revision {_plain(adapter.revision)}")
    facts["LoRA"] = f"rank {adapter.rank}, alpha {adapter.alpha:g} (it acts with alpha / rank = {adapter.alpha / adapter.rank:g})"
    facts["modules"] = _plain(", ".join(adapter.targets))
    facts["resolution"] = f"{adapter.resolution} x {adapter.resolution}"
    facts["trigger phrase"] = _plain(adapter.trigger) or "none: it acts on every prompt"
    facts["licence"] = _plain(adapter.licence)
    return facts


def _loading(ways: Mapping[str, str], format: str, name: str, component: str) -> str:
    """How one program loads this file, or which format it needs instead."""
    return f"`{ways[format].format(name=name, component=component)}`" if format in ways else f"export this version as {next(iter(ways))}"


def _plain(text: str) -> str:
    """User text as Markdown that shows it and does nothing: one line, punctuation with a meaning escaped."""
    return re.sub(r"([\\`*_\[\]<>|&~#$])", r"\\\1", " ".join(text.split()))


def _public_name(base_model: str) -> str:
    """A Hub id as it is; of a path, which may tell a user's name, the last part."""
    if HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        return base_model
    return _last_part(base_model)


def _public_rewards(rewards: Mapping[str, float]) -> dict[str, float]:
    """{"human:alice": 1, "/home/alice/my.py:blue": .5} -> {"human": 1, "my.py:blue": .5}. Raters of one group share the human weight."""
    return {"human" if source.startswith("human") else _last_part(source): weight for source, weight in rewards.items()}


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "base"


# How they get to disk


@contextmanager
def _staging(to: Path) -> Iterator[Path]:
    """A folder on the target's own file system, for one export at a time; whatever a killed one left is cleared away."""
    shelter = to / STAGING
    shelter.mkdir(parents=True, exist_ok=True)
    with FileLock(shelter / "lock"):
        for orphan in shelter.iterdir():
            if orphan.is_dir():
                shutil.rmtree(orphan)
        stage = Path(tempfile.mkdtemp(dir=shelter))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _write(folder: Path, files: Files) -> None:
    """Write, fsync, and read back; nothing of it is visible yet."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for made in {(folder / name).parent for name in files} | {folder}:
        _sync(made)
    if not _holds(folder, files):
        raise OSError(f"{', '.join(files)} did not read back as written: check the disk, then export again.")


def _holds(folder: Path, files: Files) -> bool:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return found.keys() == files.keys() and all(path.read_bytes() == files[name] for name, path in found.items())


def _publish_folder(staged: Path, target: Path, files: Files) -> None:
    """Rename into place. An older export of the same name is moved away whole first: what is visible is complete or absent."""
    if target.is_dir():
        if _holds(target, files):
            return
        os.rename(target, staged.with_name("old"))
    os.rename(staged, target)


def _sync(folder: Path) -> None:
    """Make names durable. Windows cannot open folders and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _zip(files: Files) -> bytes:
    """The files at the top of a zip, with fixed dates so that equal files give equal archives; stored, since weights do not compress."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
