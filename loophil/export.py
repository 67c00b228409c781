"""A tuned adapter as files that other programs load: diffusers, peft and kohya (ComfyUI, A1111), each with a model card.

Not a checkpoint: a run keeps its own versions with optimizer and RNG; nothing here is read back by LoopHIL. And not an upload: hub.py.
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
from datetime import UTC, datetime
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save

from loophil import kohya
from loophil.errors import InvalidInput
from loophil.model_card import WEIGHTS, Adapter, BeforeAfter, check_label, hub_id, model_card, public

STAGING = ".loophil-export"
LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
KOHYA_BASES = {
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
}
Files = dict[str, bytes]


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
    files = FORMATS[format](adapter, name, _modelspec(adapter, pictures))
    files["README.md"] = model_card(adapter, format, name, pictures).encode()
    for i, picture in enumerate(pictures):
        files |= {f"images/base_{i}.png": _encode(picture.base, "PNG"), f"images/tuned_{i}.png": _encode(picture.tuned, "PNG")}
    with _staging(to) as stage:
        single = {} if format == "kohya" else {f"{name}.zip": _zip(files)}
        _write(stage / "folder", files)
        _write(stage / "single", single)
        _publish(stage, to, name, files)
    return to / next(iter(single), f"{name}/{name}.safetensors")


def _check(adapter: Adapter) -> None:
    """Refuse what would make a broken or misleading file."""
    check_label(adapter.run, adapter.trigger, adapter.licence)
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


def _diffusers(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`<component>.<module>.lora_A.weight`; alpha survives only by the header's lora_adapter_metadata."""
    tensors = {f"{adapter.component}.{key}": weight for key, weight in adapter.weights.items()}
    config = {f"{adapter.component}.{key}": value for key, value in _lora_config(adapter).items()}
    metadata = {**metadata, "lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    return {WEIGHTS: _safetensors(tensors, metadata)}


def _peft(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`base_model.model.<module>.lora_A.weight` and peft's adapter_config.json."""
    tensors = {f"base_model.model.{key}": weight for key, weight in adapter.weights.items()}
    known = hub_id(adapter.base_model)
    base = {"base_model_name_or_path": known, "revision": adapter.revision if known else None}
    config = json.dumps({"peft_type": "LORA", "inference_mode": True, **base, **_lora_config(adapter)}, indent=2, sort_keys=True)
    return {"adapter_config.json": config.encode(), "adapter_model.safetensors": _safetensors(tensors, metadata)}


def _kohya(adapter: Adapter, name: str, metadata: dict[str, str]) -> Files:
    """`lora_unet_<module with _>.lora_down.weight`, `.lora_up.weight`, `.alpha` by kohya.py, and the ss_* header that A1111 reads."""
    arrays = {key: weight.detach().to("cpu", torch.float32).numpy() for key, weight in adapter.weights.items()}
    tensors = {key: torch.from_numpy(array) for key, array in kohya.tensors(arrays, adapter.alpha, adapter.architecture).items()}
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha),
        "ss_base_model_version": KOHYA_BASES.get(adapter.architecture, adapter.architecture),
        "ss_v2": str("-v2" in adapter.architecture),
        "ss_sd_model_name": public(adapter.base_model),
        "ss_output_name": name,
        "ss_resolution": f"({adapter.resolution}, {adapter.resolution})",
    }
    return {f"{name}.safetensors": _safetensors(tensors, {**metadata, **header})}


FORMATS: dict[str, Callable[[Adapter, str, dict[str, str]], Files]] = {"diffusers": _diffusers, "peft": _peft, "kohya": _kohya}


def _lora_config(adapter: Adapter) -> dict[str, object]:
    """The fields of peft's LoraConfig that matter; the rest is left to each release's defaults."""
    return {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": sorted(adapter.targets), "lora_dropout": 0.0, "bias": "none"}


def _modelspec(adapter: Adapter, pictures: Sequence[BeforeAfter]) -> dict[str, str]:
    """The header of every format: ModelSpec 1.0.1 and LoopHIL's own facts. All values are strings."""
    base = public(adapter.base_model)
    facts = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{adapter.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{adapter.run} v{adapter.version}",
        "modelspec.resolution": f"{adapter.resolution}x{adapter.resolution}",
        "modelspec.description": f"LoRA for {base}, tuned with LoopHIL on {adapter.ratings} rated images.",
        "modelspec.license": adapter.licence_name or adapter.licence,
        "loophil.base_model": base,
        "loophil.revision": adapter.revision or "",
        "loophil.rank": str(adapter.rank),
        "loophil.alpha": str(adapter.alpha),
        "loophil.version": str(adapter.version),
        "loophil.ratings": str(adapter.ratings),
    }
    if adapter.created is not None:
        facts["modelspec.date"] = datetime.fromtimestamp(adapter.created, UTC).isoformat(timespec="seconds")
    if adapter.trigger:
        facts["modelspec.trigger_phrase"] = adapter.trigger
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


def _encode(image: Image.Image, format: str) -> bytes:
    """The pixels alone: comments, EXIF and colour profiles of the original stay behind."""
    pixels = Image.new("RGB", image.size)
    pixels.paste(image)
    buffer = io.BytesIO()
    pixels.save(buffer, format)
    return buffer.getvalue()


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((256, 256))  # ModelSpec's largest
    return "data:image/jpeg;base64," + base64.b64encode(_encode(small, "JPEG")).decode()


@contextmanager
def _staging(to: Path) -> Iterator[Path]:
    """A folder on the target's own file system, for one export at a time; whatever a killed one left is cleared away."""
    shelter = to / STAGING
    shelter.mkdir(parents=True, exist_ok=True)
    with FileLock(shelter / "lock"):
        for orphan in shelter.iterdir():
            if orphan.is_dir():
                shutil.rmtree(orphan)
        with tempfile.TemporaryDirectory(dir=shelter, ignore_cleanup_errors=True) as stage:
            yield Path(stage)


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


def _publish(stage: Path, to: Path, name: str, files: Files) -> None:
    """Rename into place. An older folder of the same name is moved away whole first: what is visible is complete or absent."""
    target = to / name
    if not target.is_dir() or not _holds(target, files):
        if target.is_dir():
            os.rename(target, stage / "old")
        os.rename(stage / "folder", target)
    for single in (stage / "single").iterdir():
        os.replace(single, to / single.name)
    _sync(to)


def _sync(folder: Path) -> None:
    """Make names durable. Windows cannot open folders and needs no such call."""
    if os.name != "nt":
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
