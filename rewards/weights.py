"""Where the weights of a reward model come from: a folder, or the Hugging Face Hub at a pinned revision. Safetensors only.

A few models are published as a pickle alone. Such a file is read once, by `torch.load(weights_only=True)`, which refuses everything but
tensors in plain containers, and kept as safetensors in the cache folder; the pickle is not opened again. This module alone opens pickles.

Revisions are commits of the Hub, so that what is loaded never changes unseen. There was no hub at hand when they were written down: they are
those that several independent public projects pin. Where a file's SHA-256 is given too, a file of other content is refused.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from rewards.base import RewardError

if TYPE_CHECKING:
    import torch

BATCH = 16  # pictures at once: a group, and little memory


@dataclass(frozen=True)
class Source:
    """A model's folder, or its name on the Hub with the commit."""

    model: str
    revision: str = "main"

    def file(self, name: str) -> Path:
        """The path of one of its files; downloaded where it is not a folder. RewardError: it is not there."""
        if Path(self.model).is_dir():
            path = Path(self.model) / name
            if not path.is_file():
                raise RewardError(f"The folder {self.model} has no file {name}.")
            return path
        from huggingface_hub import hf_hub_download

        with self.loading():
            return Path(hf_hub_download(self.model, name, revision=self.revision))

    def pretrained(self, kind: Any, **settings: Any) -> Any:
        """`kind.from_pretrained` of transformers. RewardError: it cannot be loaded."""
        with self.loading():
            return kind.from_pretrained(self.model, revision=self.revision, **settings)

    def model_in_half(self, kind: Any, device: str) -> Any:
        """A model of transformers from safetensors, on the device, in the precision that belongs to it, for evaluation only."""
        model, found = self.pretrained(kind, use_safetensors=True, dtype=precision(device), output_loading_info=True)
        if missing := sorted(found["missing_keys"]):  # transformers would make them up
            raise RewardError(f"The model '{self.model}' has no weights for {missing[0]} and {len(missing) - 1} more: it is another kind of model.")
        return model.to(device).eval().requires_grad_(False)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Turns what goes wrong in there into a RewardError: the Hub, transformers and safetensors each have their own."""
        try:
            yield
        except Exception as error:
            remedy = "It is downloaded at its first use, which needs a connection to the Hugging Face Hub."
            raise RewardError(f"The model '{self.model}' ({self.revision}) cannot be loaded: {error} {remedy}") from error


@dataclass(frozen=True)
class Pickled:
    """Weights that are published as a pickle alone.

    part: the key under which the file holds them, "" = it is them;  sha256: of the file, None = any;  cache: where the safetensors are kept
    """

    source: Source
    file: str
    sha256: str | None = None
    part: str = ""
    cache: Path | None = None

    def safetensors(self) -> Path:
        """The weights as a safetensors file, made of the pickle unless it is there. RewardError: another file, or not only tensors."""
        digest = self.sha256 or _sha256(self.source.file(self.file))
        folder = self.cache or user_cache_path("loophil") / "rewards"
        kept = folder / f"{Path(self.file).stem}-{digest[:16]}.safetensors"
        if not kept.exists():
            self._convert(self.source.file(self.file), kept)
        return kept

    def tensors(self) -> "dict[str, torch.Tensor]":
        """{name: tensor} on the CPU."""
        from safetensors.torch import load_file

        return load_file(self.safetensors())

    def _convert(self, pickle: Path, kept: Path) -> None:
        import torch
        from safetensors.torch import save_file

        if self.sha256 and (found := _sha256(pickle)) != self.sha256:
            raise RewardError(f"{pickle.name} of '{self.source.model}' is another file than the one published: SHA-256 {found}, not {self.sha256}.")
        try:
            loaded = torch.load(pickle, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RewardError(f"{pickle.name} of '{self.source.model}' holds more than weights, and is not opened: {error}") from error
        weights = loaded.get(self.part) if self.part and isinstance(loaded, dict) else loaded
        if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
            raise RewardError(f"{pickle.name} of '{self.source.model}' holds no weights{f' under {self.part!r}' if self.part else ''}.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        staging = kept.with_suffix(".tmp")
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, staging)
        staging.replace(kept)


def precision(device: str) -> "torch.dtype":
    """Half on a GPU, where it takes half of the memory and time; float32 on a CPU, where it saves neither."""
    import torch

    return torch.float32 if str(device).startswith("cpu") else torch.float16


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
