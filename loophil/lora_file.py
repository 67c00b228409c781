"""A LoRA that somebody brings: a file that nobody vouches for, read without torch into checked float32 arrays, or refused in one sentence.

A .safetensors file, a folder or a zip with one, as diffusers, peft and kohya's trainers write it, and as export.py does. Nothing is unpacked to
the disk, nothing is run, and nothing is left out: what cannot be taken whole is refused, because a LoRA that loads and does half is worse than none.

    FILE -> the bytes of one .safetensors -> header -> names -> shapes -> numbers: a LoraFile. Whether it fits a model is lora_fit.py's to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loophil.errors import ConfigError
from loophil.kohya import Array, apart, is_flux
from loophil.lora_source import CONFIG, MOST_BYTES, MOST_HEADER, Refused, quoted, read_source

MOST_TENSORS, MOST_NAME, MOST_DIMENSIONS = 4000, 500, 4
LARGEST = 1e4  # of a weight that anybody has trained
SIZES = {"F32": 4, "F16": 2, "BF16": 2}
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}

HALVES = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B", "lora.down": "A", "lora.up": "B"}
PEFT = re.compile(r"(?P<prefix>base_model\.model\.|unet\.|transformer\.)(?P<module>[\w.]+)\.(?P<half>lora_A|lora_B)\.weight")
OLDER = re.compile(r"(?P<prefix>unet\.|transformer\.|)(?P<module>[\w.]+)\.(?P<half>lora\.down|lora\.up)\.weight")  # diffusers before peft
PROCESSOR = re.compile(r"(?P<prefix>unet\.|)(?P<block>[\w.]+)\.processor\.(?P<name>to_[qkv]|to_out)_lora\.(?P<half>down|up)\.weight")
KOHYA = re.compile(r"(?P<prefix>lora_unet_)(?P<module>\w+)\.(?P<half>lora_down|lora_up)\.weight")
ALPHA = re.compile(r"(?P<prefix>lora_unet_|unet\.|transformer\.|)(?P<module>[\w.]+?)(\.lora)?\.alpha")
TEXT_ENCODER = re.compile(r"(lora_te\d?_|text_encoder(_\d)?\.|base_model\.model\.text_model\.|text_model\.)")
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon with a Tucker core",
    "oft_": "OFT",
    "ia3_": "IA3",
    r"\.diff(_b)?$": "a difference of whole weights",
    r"lora_B\.bias": "a LoRA with biases",
    "lora_embedding_": "a LoRA of embeddings",
}
# What a LoraConfig must say, if anything, for the weights alone to be the whole LoRA.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "alpha_pattern": {},
    "rank_pattern": {},
    "modules_to_save": [],
    "layer_replication": None,
    "target_parameters": [],
    "trainable_token_indices": None,
    "use_qalora": False,
    "use_bdlora": False,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
REBASING = ("pissa", "olora", "loftq", "corda", "lora_ga")  # ways to start a LoRA that change the base beneath it


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it was found. `alpha` is None where the file says none; programs then take the rank for it.

    weights    {"<module>.lora_A.weight": (rank, in[, h, w]), "<module>.lora_B.weight": (out, rank[, 1, 1])}, modules named as in the file,
               but for FLUX in kohya's format, whose fused layers are taken apart
    kohya      whether they are named as kohya does, with _ for .
    component  "unet" or "transformer", "" = it does not say
    sha256     of the .safetensors, whatever it lies in
    """

    name: str
    weights: Mapping[str, Array]
    kohya: bool
    component: str
    rank: int
    alpha: float | None
    sha256: str


def read_lora(path: Path) -> LoraFile:
    """The LoRA of a .safetensors file, or of a folder or a zip that holds one; ConfigError says what is wrong with it."""
    try:
        raw, config = read_source(path)
        return _Reader(raw, config).lora(path.name)
    except Refused as fault:
        raise ConfigError(f"The LoRA {path} cannot be used: {fault}") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:  # whatever else somebody thinks of
        raise ConfigError(f"The LoRA {path} cannot be used: it is malformed ({type(error).__name__}).") from error
    except OSError as error:
        raise ConfigError(f"The LoRA {path} cannot be read ({error.strerror or error}): give a file that is there by --lora FILE.") from error


# ---- what it says ----


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Reader:
    """One .safetensors: `tensors` and `metadata` as its header has them, checked against the length of the data."""

    def __init__(self, raw: bytes, config: bytes | None) -> None:
        self.raw, self.config = raw, config
        length = int.from_bytes(raw[:8], "little")
        if len(raw) < 16 or raw[8:9] != b"{":
            raise Refused("it is not a .safetensors file.")
        if length > MOST_HEADER or 8 + length > len(raw):
            raise Refused(f"its header of {length:,} bytes is too long, or the file was cut off.")
        self.begin = 8 + length
        header = _json(raw[8 : self.begin], "its header")
        self.metadata = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(value, str) for value in self.metadata.values()):
            raise Refused("the metadata in its header are not text.")
        if not header:
            raise Refused("it holds no weights.")
        if len(header) > MOST_TENSORS:
            raise Refused(f"it holds {len(header)} tensors, more than {MOST_TENSORS}.")
        self.tensors = {name: _tensor(name, said) for name, said in header.items()}
        self._check_layout()

    def _check_layout(self) -> None:
        """Every byte of the data belongs to one tensor."""
        at = 0
        for tensor in sorted(self.tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
            if tensor.begin != at:
                raise Refused("its header does not describe its data: tensors overlap, or leave a gap.")
            at = tensor.end
        if at != len(self.raw) - self.begin:
            raise Refused("its header does not describe its data: the file was cut off, or something was added.")

    def lora(self, name: str) -> LoraFile:
        parsed = {key: _parse(key) for key in self.tensors}
        prefixes = {prefix for prefix, _, half in parsed.values() if half}
        if len(prefixes) != 1:
            raise Refused(f"it mixes keys of several kinds: {', '.join(repr(prefix) for prefix in sorted(prefixes)) or 'alphas alone'}.")
        prefix = prefixes.pop()
        names = {key: f"{module}.lora_{half}.weight" for key, (_, module, half) in parsed.items() if half}
        if len(set(names.values())) != len(names):
            raise Refused("it holds one weight under two names.")
        _check_halves(names.values())
        _check_shapes({names[key]: self.tensors[key].shape for key in names})
        weights = {names[key]: self._values(key) for key in names}
        alphas = {module: self._scalar(key) for key, (_, module, half) in parsed.items() if not half}
        modules = {key.partition(".lora_")[0] for key in weights}
        if alphas and set(alphas) != modules:
            raise Refused("some of its modules have an alpha, and others none.")
        if flux := prefix == "lora_unet_" and is_flux(modules):
            weights, alphas = apart(weights, alphas)
        rank = _rank({key: array.shape for key, array in weights.items()})
        alpha = self._alpha(rank, prefix, set(alphas.values()))
        return LoraFile(
            name=name,
            weights=weights,
            kohya=prefix == "lora_unet_" and not flux,
            component="transformer" if flux else {"lora_unet_": "unet", "unet.": "unet", "transformer.": "transformer"}.get(prefix, ""),
            rank=rank,
            alpha=alpha,
            sha256=hashlib.sha256(self.raw).hexdigest(),
        )

    def _values(self, key: str) -> Array:
        """A tensor in float32."""
        tensor = self.tensors[key]
        flat = np.frombuffer(self.raw, DTYPES[tensor.dtype], math.prod(tensor.shape), self.begin + tensor.begin)
        if tensor.dtype == "BF16":  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        values = flat.astype(np.float32).reshape(tensor.shape)
        if not (np.abs(values) <= LARGEST).all():
            raise Refused(f"{quoted(key)} is not finite, or larger than {LARGEST:g}.")
        return values

    def _scalar(self, key: str) -> float:
        """An alpha among the tensors."""
        if math.prod(self.tensors[key].shape) != 1:
            raise Refused("an alpha in it is no number.")
        return _number(self._values(key).item())

    def _alpha(self, rank: int, prefix: str, alphas: set[float]) -> float | None:
        """What the LoRA says of its alpha, in its tensors or its config; None = nothing."""
        config = self._config(prefix)
        for field, plain in PLAIN.items():
            if config.get(field, plain) not in (plain, None):
                raise Refused(f"its config says {field} {quoted(config[field])}, and LoopHIL tunes plain LoRAs of one rank and alpha.")
        if str(config.get("init_lora_weights", "")).lower().startswith(REBASING):
            raise Refused(f"its config says init_lora_weights {quoted(config['init_lora_weights'])}: it belongs to a base that was changed for it.")
        if config.get("r", rank) != rank:
            raise Refused(f"its config says rank {quoted(config['r'])}, and its weights have {rank}.")
        said = alphas | ({_number(config["lora_alpha"])} if "lora_alpha" in config else set())
        if len(said) > 1:
            raise Refused(f"it says several alphas: {_some(said)}.")
        return said.pop() if said else None

    def _config(self, prefix: str) -> dict[str, Any]:
        """The LoraConfig: beside peft's weights, in the header of diffusers'."""
        if prefix == "base_model.model.":
            if self.config is None:
                raise Refused(f"{CONFIG} is missing, without which nobody knows peft's alpha: keep the two files together.")
            return _json(self.config, CONFIG)
        if "lora_adapter_metadata" not in self.metadata or prefix not in ("unet.", "transformer."):
            return {}
        config = _json(self.metadata["lora_adapter_metadata"], "lora_adapter_metadata in its header")
        return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def _number(said: Any) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float):
        raise Refused(f"its alpha is {quoted(said)}, which is no number.")
    if not 0 < said <= LARGEST:
        raise Refused(f"its alpha is {quoted(said)}.")
    return float(said)


def _some(numbers: Iterable[float]) -> str:
    """Ten of them at most, in order."""
    first, more = sorted(numbers)[:10], len(set(numbers)) - 10
    return ", ".join(f"{number:g}" for number in first) + (f" and {more} more" if more > 0 else "")


def _json(text: bytes | str, what: str) -> dict[str, Any]:
    """An object without a name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Refused(f"{what} says one name twice.")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise Refused(f"{what} is not JSON.") from None
    if not isinstance(found, dict):
        raise Refused(f"{what} is not a JSON object.")
    return found


def _tensor(name: str, said: Any) -> _Tensor:
    """One entry of a header."""
    if len(name) > MOST_NAME:
        raise Refused(f"its header has a name of {len(name)} characters, and no layer's is longer than {MOST_NAME}.")
    said = said if isinstance(said, dict) else {}
    dtype, shape, offsets = said.get("dtype"), said.get("shape"), said.get("data_offsets")
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise Refused(f"its header does not describe {quoted(name)}.")
    if len(shape) > MOST_DIMENSIONS:
        raise Refused(f"{quoted(name)} has {len(shape)} dimensions, and no layer's LoRA has more than {MOST_DIMENSIONS}.")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise Refused(f"{quoted(name)} is of type {quoted(dtype)}, and a LoRA is of {', '.join(SIZES)}.")
    if offsets[1] - offsets[0] != SIZES[dtype] * math.prod(shape):
        raise Refused(f"its header does not describe {quoted(name)}: shape {shape} takes another number of bytes.")
    return _Tensor(dtype, tuple(shape), *offsets)


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number <= MOST_BYTES for number in numbers)


def _parse(key: str) -> tuple[str, str, str]:
    """(prefix, module, "A" or "B", "" = it is an alpha) of a key in any of the formats."""
    if TEXT_ENCODER.match(key):
        raise Refused(f"{quoted(key)} is of a text encoder, which LoopHIL does not tune: save the LoRA of the UNet or transformer alone.")
    for mark, method in OTHER_METHODS.items():
        if re.search(mark, key):
            raise Refused(f"{quoted(key)} is of {method}, and LoopHIL tunes plain LoRAs alone.")
    if match := PROCESSOR.fullmatch(key):
        name = "to_out.0" if match["name"] == "to_out" else match["name"]
        return match["prefix"], f"{match['block']}.{name}", HALVES[f"lora.{match['half']}"]
    if match := KOHYA.fullmatch(key) or PEFT.fullmatch(key) or OLDER.fullmatch(key):
        return match["prefix"], match["module"], HALVES[match["half"]]
    if match := ALPHA.fullmatch(key):
        return match["prefix"], match["module"], ""
    raise Refused(f"{quoted(key)} is not a LoRA's key in diffusers', peft's or kohya's format.")


def _check_halves(names: Collection[str]) -> None:
    """Every module has both."""
    for name in names:
        half = name.removesuffix(".weight")[-1]
        if name.replace(f".lora_{half}.weight", f".lora_{'B' if half == 'A' else 'A'}.weight") not in names:
            raise Refused(f"{quoted(name)} has no other half.")


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every half is of a linear layer or a convolution."""
    for key, shape in shapes.items():
        if len(shape) not in (2, 4) or 0 in shape:
            raise Refused(f"{quoted(key)} has the shape {shape}, and no layer's LoRA has.")


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The one rank of all modules."""
    ranks = set()
    for key, shape in shapes.items():
        half = key.removesuffix(".weight")[-1]
        ranks.add(shape[0 if half == "A" else 1])
    if len(ranks) != 1:
        raise Refused(f"its modules have different ranks ({_some(ranks)}), and LoopHIL's have one.")
    return ranks.pop()
