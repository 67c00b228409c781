"""How kohya's trainers, and with them ComfyUI, A1111 and Forge, name a LoRA's layers. Names and arrays alone: no torch, no files.

They name a layer by its place in the code that a model was published with, `_` for `.`, after `lora_unet_`. Of a UNet, diffusers' own names are
known there, too. FLUX has layers there that diffusers has apart: q, k and v, in its single blocks also the MLP, are one matrix. LoRAs of these are
exactly one LoRA of the fused layer, of as many times the rank: their A stacked, their B the blocks of a diagonal, B A = diag(B_i) [A_1; A_2; ..].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from loophil.errors import InvalidInput

Array = NDArray[np.float32]

HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}
DOUBLE, SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
# {a layer of FLUX as it was published, {} for the block's number: the layers in diffusers that it consists of, from its first row to its last}
FLUX = {
    "double_blocks_{}_img_attn_qkv": tuple(f"{DOUBLE}attn.to_{name}" for name in "qkv"),
    "double_blocks_{}_txt_attn_qkv": tuple(f"{DOUBLE}attn.add_{name}_proj" for name in "qkv"),
    "double_blocks_{}_img_attn_proj": (f"{DOUBLE}attn.to_out.0",),
    "double_blocks_{}_txt_attn_proj": (f"{DOUBLE}attn.to_add_out",),
    "double_blocks_{}_img_mlp_0": (f"{DOUBLE}ff.net.0.proj",),
    "double_blocks_{}_img_mlp_2": (f"{DOUBLE}ff.net.2",),
    "double_blocks_{}_txt_mlp_0": (f"{DOUBLE}ff_context.net.0.proj",),
    "double_blocks_{}_txt_mlp_2": (f"{DOUBLE}ff_context.net.2",),
    "double_blocks_{}_img_mod_lin": (f"{DOUBLE}norm1.linear",),
    "double_blocks_{}_txt_mod_lin": (f"{DOUBLE}norm1_context.linear",),
    "single_blocks_{}_linear1": (*(f"{SINGLE}attn.to_{name}" for name in "qkv"), f"{SINGLE}proj_mlp"),
    "single_blocks_{}_linear2": (f"{SINGLE}proj_out",),
    "single_blocks_{}_modulation_lin": (f"{SINGLE}norm.linear",),
}
FUSED = {part: name for name, parts in FLUX.items() for part in parts}


def is_flux(names: Iterable[str]) -> bool:
    """Whether layers are named as FLUX was published."""
    return any(_of_block(name)[0] in FLUX for name in names)


def tensors(weights: Mapping[str, Array], alpha: float, architecture: str) -> dict[str, Array]:
    """A LoRA as kohya's format has it: `.lora_down.weight`, `.lora_up.weight` and `.alpha` of each layer. InvalidInput for SD3, whose names no
    loader could be tried with, and for layers without one.

    weights: {"<module>.lora_A.weight": (rank, in[, h, w]), "<module>.lora_B.weight": (out, rank[, 1, 1])} in diffusers' names
    architecture: ModelSpec's name of the base's class
    """
    if architecture.startswith("stable-diffusion-3"):
        strength = alpha / len(next(array for key, array in weights.items() if ".lora_A." in key))
        raise InvalidInput(f"Of SD3 diffusers reads no kohya names: choose the diffusers format, which ComfyUI reads, too, at strength {strength:g}.")
    alphas = {key.partition(".lora_")[0]: alpha for key in weights}
    if architecture.startswith("flux"):
        weights, alphas = fuse(weights, alpha)
    prefixed = {name: f"lora_unet_{name.replace('.', '_')}" for name in alphas}
    halves = {f"{prefixed[name]}.{half}.weight": weights[f"{name}.{ours}.weight"] for name in alphas for ours, half in HALVES.items()}
    return halves | {f"{prefixed[name]}.alpha": np.array(value, np.float32) for name, value in alphas.items()}


def fuse(weights: Mapping[str, Array], alpha: float) -> tuple[dict[str, Array], dict[str, float]]:
    """FLUX's layers as it was published: ({"<name>.lora_A.weight": array, ...}, {name: alpha}), alpha / rank as before.

    weights: {"<module>.lora_A.weight": (rank, in), "<module>.lora_B.weight": (out, rank)} in diffusers' names. InvalidInput for a module that has no
    name there.
    """
    layers: dict[str, tuple[str, str]] = {}
    for module in dict.fromkeys(key.partition(".lora_")[0] for key in weights):
        part, block = _of_block(module)
        if part not in FUSED:
            raise InvalidInput(f"The kohya format has no name for FLUX's {module!r}: choose diffusers or peft.")
        layers[FUSED[part].format(block)] = FUSED[part], block
    fused: dict[str, Array] = {}
    alphas: dict[str, float] = {}
    for name, (kind, block) in layers.items():
        parts = [part.format(block) for part in FLUX[kind]]
        trained = [part for part in parts if f"{part}.lora_A.weight" in weights]
        a = np.concatenate([weights[f"{part}.lora_A.weight"] for part in trained])
        sizes = [len(weights[f"{trained[0]}.lora_B.weight"])] if len(parts) == 1 else _rows(kind, a.shape[1])
        b = np.zeros((sum(sizes), len(a)), np.float32)
        row, rank = 0, len(a) // len(trained)
        for part, size in zip(parts, sizes, strict=True):
            if part in trained:
                column = rank * trained.index(part)
                b[row : row + size, column : column + rank] = weights[f"{part}.lora_B.weight"]
            row += size
        fused |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        alphas[name] = alpha * len(trained)
    return fused, alphas


def apart(weights: Mapping[str, Array], alphas: Mapping[str, float]) -> tuple[dict[str, Array], dict[str, float]]:
    """What `fuse` makes, or one of kohya's trainers whose fused layers share one A, in diffusers' names; others stay as they are, to be refused.

    Layers that a fused one does nothing to, B = 0, are none of the LoRA's.
    """
    found: dict[str, Array] = {}
    their: dict[str, float] = {}
    for name in dict.fromkeys(key.partition(".lora_")[0] for key in weights):
        kind, block = _of_block(name)
        a, b = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        parts = [part.format(block) for part in FLUX.get(kind, (name,))]
        sizes = [len(b)] if len(parts) == 1 else _rows(kind, a.shape[1])
        if a.ndim != 2 or b.ndim != 2 or sum(sizes) != len(b):
            parts, sizes = [name], [len(b)]  # of no FLUX that was published
        rows = dict(zip(parts, np.split(b, np.cumsum(sizes)[:-1]), strict=True))
        changed = [part for part in parts if rows[part].any()] or parts
        pieces = _diagonal([rows[part] for part in changed], len(a))
        for i, layer in enumerate(changed):
            columns = slice(i * pieces, (i + 1) * pieces) if pieces else slice(None)
            found |= {f"{layer}.lora_A.weight": a[columns].copy(), f"{layer}.lora_B.weight": rows[layer][:, columns].copy()}
            if name in alphas:
                their[layer] = alphas[name] / (len(changed) if pieces else 1)
    return found, their


def _rows(kind: str, width: int) -> list[int]:
    """How many rows each part of a fused layer has, in a FLUX of this width: its MLP is four times as wide."""
    return [width * (4 if part.endswith("proj_mlp") else 1) for part in FLUX[kind]]


def _diagonal(rows: Sequence[Array], rank: int) -> int:
    """The rank of each part where B consists of the blocks of a diagonal; 0 where all parts share one A."""
    each, rest = divmod(rank, len(rows))
    if len(rows) == 1 or rest:
        return 0
    separate = all(not np.delete(block, np.s_[i * each : (i + 1) * each], axis=1).any() for i, block in enumerate(rows))
    return each if separate else 0


def _of_block(name: str) -> tuple[str, str]:
    """A layer's name with {} for the number of its block, and that number."""
    match = re.fullmatch(r"(double_blocks_|single_blocks_|transformer_blocks\.|single_transformer_blocks\.)(\d+)([._].+)", name)
    return (f"{match[1]}{{}}{match[3]}", match[2]) if match else (name, "")


def named(modules: Sequence[str]) -> dict[str, str]:
    """{name in kohya's files: name in a UNet}, by diffusers' blocks and, as for SDXL, by the original's."""
    resnets = _resnets(modules)
    return {known.replace(".", "_"): name for name in modules for known in (name, _original(name, resnets))}


def _resnets(modules: Iterable[str]) -> dict[tuple[str, int], int]:
    """How many residual layers each block has: {("down_blocks", 0): 2, ...}."""
    counts: dict[tuple[str, int], int] = {}
    for name in modules:
        if match := re.fullmatch(r"(down_blocks|up_blocks)\.(\d+)\.resnets\.\d+", name):
            block = (match[1], int(match[2]))
            counts[block] = counts.get(block, 0) + 1
    return counts


def _original(name: str, resnets: Mapping[tuple[str, int], int]) -> str:
    """What Stability's code calls the layers of a UNet's attention; other names as they are.

    It counts all layers of a side through: the first convolution, and a resampling at the end of each block, are layers, too.
    """
    if name.startswith("mid_block.attentions.0."):
        return name.replace("mid_block.attentions.0.", "middle_block.1.")
    match = re.match(r"(down_blocks|up_blocks)\.(\d+)\.attentions\.(\d+)\.", name)
    if not match:
        return name
    side, block, layer = match[1], int(match[2]), int(match[3])
    down = side == "down_blocks"
    number = layer + down + sum(resnets.get((side, i), 0) + down for i in range(block))
    return f"{'input_blocks' if down else 'output_blocks'}.{number}.1.{name[match.end() :]}"
