"""FLUX in kohya's format: fused layers do what their parts did, to stock diffusers, at the published widths, by ComfyUI's rule, and read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from safetensors.torch import load_file

from loophil.errors import InvalidInput
from loophil.export import export
from loophil.families.flux import Flux
from loophil.kohya import apart, fuse
from loophil.lora_file import read_lora
from loophil.model_card import Adapter
from tests.tiny import random_lora, tiny_flux

RANK, ALPHA = 2, 5.0
EVERYTHING = (
    *Flux.targets,
    "proj_mlp",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "norm1.linear",
    "norm1_context.linear",
)
DOUBLE, SINGLE = "transformer_blocks.3.", "single_transformer_blocks.12."
# (out, in) of layers of a FLUX as it was published, by their names in diffusers.
PUBLISHED = {
    **{f"{DOUBLE}attn.{name}": (3072, 3072) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{SINGLE}attn.{name}": (3072, 3072) for name in ("to_q", "to_k", "to_v")},
    f"{SINGLE}proj_mlp": (12288, 3072),
    f"{SINGLE}proj_out": (3072, 15360),
    f"{SINGLE}norm.linear": (9216, 3072),
    f"{DOUBLE}norm1_context.linear": (18432, 3072),
    f"{DOUBLE}ff.net.2": (3072, 12288),
}
MLP = f"{SINGLE}proj_mlp"


def lora(*modules: str, sizes: dict[str, tuple[int, int]] = PUBLISHED) -> dict[str, torch.Tensor]:
    """Random weights of these modules."""
    generator = torch.Generator().manual_seed(0)
    halves = [(f"{module}.lora_{half}.weight", half, sizes[module]) for module in modules for half in "AB"]
    return {key: torch.randn((RANK, size[1]) if half == "A" else (size[0], RANK), generator=generator) for key, half, size in halves}


def adapter_of(weights: dict[str, torch.Tensor], **facts: Any) -> Adapter:
    given: dict[str, Any] = {
        "base_model": "some/flux",
        "revision": None,
        "version": 7,
        "ratings": 8,
        "run": "first",
        "architecture": "flux-1-dev",
    } | facts
    targets = ("to_q", "to_k", "to_v", "to_out.0", *EVERYTHING, "proj_out", "norm.linear", "norm_out.linear")
    return Adapter(weights=weights, rank=RANK, alpha=ALPHA, targets=targets, component="transformer", **given)


def effect(weights: Any, module: str, x: torch.Tensor) -> torch.Tensor:
    """B A x, in float64."""
    out: torch.Tensor = weights[f"{module}.lora_B.weight"].double() @ (weights[f"{module}.lora_A.weight"].double() @ x)
    return out


@pytest.mark.parametrize("left_out", [(), (MLP,), (f"{DOUBLE}attn.to_k", f"{SINGLE}attn.to_q", MLP)], ids=["everything", "no MLP", "parts"])
def test_diffusers_converter_finds_the_very_lora_at_the_published_widths(left_out: tuple[str, ...], tmp_path: Path) -> None:
    weights = lora(*(module for module in PUBLISHED if module not in left_out))
    found = FluxPipeline.lora_state_dict(export(adapter_of(weights), "kohya", tmp_path))
    assert {key.partition(".lora_")[0].removeprefix("transformer.") for key in found} <= set(PUBLISHED)
    for module, (_, width) in PUBLISHED.items():
        x = torch.randn(width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / width**0.5
        if module not in left_out:
            torch.testing.assert_close(effect(found, f"transformer.{module}", x), ALPHA / RANK * effect(weights, module, x), rtol=1e-6, atol=1e-6)
        elif f"transformer.{module}.lora_B.weight" in found:
            assert not effect(found, f"transformer.{module}", x).any()


def test_stock_diffusers_draws_the_same_pictures_from_the_file(tmp_path: Path) -> None:
    """Without single blocks: of these diffusers' converter takes the published widths alone."""

    def drawn(pipeline: Any) -> Any:
        asked = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np", "generator": torch.Generator().manual_seed(5)}
        return pipeline("a red dot", **asked).images

    pipeline, stock = (tiny_flux(single_layers=0) for _ in range(2))
    before = drawn(pipeline)
    weights = random_lora(pipeline.transformer, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(EVERYTHING)))
    after = drawn(pipeline)
    assert np.abs(after - before).max() > 0.02  # else the comparison below could not fail
    stock.load_lora_weights(export(adapter_of(weights), "kohya", tmp_path))
    np.testing.assert_allclose(drawn(stock), after, rtol=0, atol=1e-5)


def test_by_comfyui_s_rule_the_fused_matrix_changes_as_its_parts_did(tmp_path: Path) -> None:
    """It adds alpha / rows of down * up @ down to the layer of that name, which has q, k and v one below the other."""
    sizes = {f"{DOUBLE}attn.{name}": (4, 4) for name in ("to_q", "to_k", "to_v")}
    weights = lora(*sizes, sizes=sizes)
    tensors = load_file(export(adapter_of(weights), "kohya", tmp_path))
    name = "lora_unet_double_blocks_3_img_attn_qkv"
    assert set(tensors) == {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"}
    down, up, alpha = (tensors[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert (down.shape, up.shape, alpha.item()) == ((6, 4), (12, 6), 15.0)  # 3 of rank 2, 3 * 5
    parts = [weights[f"{module}.lora_B.weight"] @ weights[f"{module}.lora_A.weight"] for module in sizes]
    torch.testing.assert_close(alpha / 6 * up @ down, ALPHA / RANK * torch.cat(parts))


@pytest.mark.parametrize("left_out", [(), (MLP,), (f"{SINGLE}attn.to_k",)], ids=["everything", "no MLP", "no k"])
def test_what_was_exported_is_read_back(left_out: tuple[str, ...], tmp_path: Path) -> None:
    weights = lora(*(module for module in PUBLISHED if module not in left_out))
    found = read_lora(export(adapter_of(weights), "kohya", tmp_path))
    assert (found.rank, found.alpha, found.component, found.kohya) == (RANK, ALPHA, "transformer", False)
    assert found.weights.keys() == weights.keys()
    assert all(np.array_equal(found.weights[key], weights[key].numpy()) and found.weights[key].flags.c_contiguous for key in weights)


def test_a_fused_layer_with_one_a_as_kohya_s_trainers_make_it_is_shared_by_its_parts() -> None:
    a, b = np.ones((RANK, 3), np.float32), np.arange(1, 9 * RANK + 1, dtype=np.float32).reshape(9, RANK)
    name = "double_blocks_0_txt_attn_qkv"
    weights, alphas = apart({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, {name: 4.0})
    modules = [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"]
    assert alphas == dict.fromkeys(modules, 4.0)
    for i, module in enumerate(modules):
        assert np.array_equal(weights[f"{module}.lora_A.weight"], a)
        assert np.array_equal(weights[f"{module}.lora_B.weight"], b[3 * i : 3 * i + 3])


def test_a_layer_without_a_name_there_is_refused() -> None:
    weights = {f"norm_out.linear.lora_{half}.weight": np.ones((RANK, RANK), np.float32) for half in "AB"}
    with pytest.raises(InvalidInput, match=r"has no name for FLUX's 'norm_out\.linear': choose diffusers or peft"):
        fuse(weights, ALPHA)


def test_a_fused_layer_of_other_sizes_stays_whole_to_be_refused() -> None:
    """q, k and v of a layer that takes 3 have 9 rows."""
    weights = {f"double_blocks_0_img_attn_qkv.lora_{half}.weight": np.ones(shape, np.float32) for half, shape in (("A", (RANK, 3)), ("B", (8, RANK)))}
    assert apart(weights, {})[0].keys() == weights.keys()
