"""Prompt embeddings on disk, so that a known prompt needs no text encoder: not the seconds of T5, not its memory.

A file's name is the SHA-256 of all that the embeddings follow from; no prompt can be read from it. What cannot be read is encoded again. When
the folder outgrows its limit, what was not used for longest goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

Halves = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]  # what a prompt and a negative prompt are to the denoiser, by its arguments' names
SAMPLE = 32  # values of each weight that tell one text encoder from another


class NoPromptCache:
    """Remembers nothing."""

    def read(self, key: tuple[str, ...]) -> Halves | None:
        """None."""
        return None

    def write(self, key: tuple[str, ...], embeddings: Halves) -> None:
        """Nothing."""


class PromptCache(NoPromptCache):
    """A folder of safetensors. limit: bytes of all files;  model: what the program calls it, a part of every key."""

    def __init__(self, folder: Path, limit: int, model: Iterable[str] = ()) -> None:
        self.folder, self.limit, self.model = folder, limit, tuple(model)

    def read(self, key: tuple[str, ...]) -> Halves | None:
        """What was kept under this key; None where nothing is, or nothing that can be read."""
        path = self._path(key)
        try:
            tensors = load_file(path)
            os.utime(path)
        except (OSError, SafetensorError):
            return None
        # Cloned: aligned as tensors that were just made are, since the last bit can depend on it.
        positive, negative = (
            {name.removeprefix(half): tensor.clone() for name, tensor in tensors.items() if name.startswith(half)}
            for half in ("positive.", "negative.")
        )
        return (positive, negative or positive) if "encoder_hidden_states" in positive else None

    def write(self, key: tuple[str, ...], embeddings: Halves) -> None:
        """Keeps them, whole or not at all; a disk that is full only costs the time of the next encoding."""
        positive, negative = embeddings
        tensors = {f"positive.{name}": tensor for name, tensor in positive.items()}
        if negative is not positive:
            tensors |= {f"negative.{name}": tensor for name, tensor in negative.items()}
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, staging = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            os.close(handle)
            try:
                save_file({name: tensor.contiguous().cpu().clone() for name, tensor in tensors.items()}, staging)  # halves may share some
                os.replace(staging, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(staging)
            self._prune()
        except (OSError, SafetensorError) as error:
            log.warning("Prompt embeddings were not kept in %s: %s", self.folder, error)

    def _path(self, key: tuple[str, ...]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps([self.model, key]).encode()).hexdigest()}.safetensors"

    def _prune(self) -> None:
        files = sorted(((path.stat(), path) for path in self.folder.glob("*.safetensors")), key=lambda file: file[0].st_mtime_ns)
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def digest_of(encoders: Iterable[nn.Module]) -> str:
    """Tells text encoders apart by a sample of every weight, wherever they were loaded from: a folder's content can change under its name."""
    digest = hashlib.sha256()
    for encoder in encoders:
        for name, parameter in encoder.named_parameters():
            sample = parameter.detach().flatten()[:SAMPLE].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
