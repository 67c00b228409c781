"""Whether a LoRA fits a model: all of its layers or a sentence on which differ, and the names that kohya's trainers give them."""

import numpy as np
import pytest

from loophil.errors import ConfigError
from loophil.lora_file import LoraFile
from loophil.lora_fit import fit

RANK = 2
# SDXL's blocks: (block, attentions, residual layers) of each side.
DOWN, UP = ((0, 0, 2), (1, 2, 2), (2, 2, 2)), ((0, 3, 3), (1, 3, 3), (2, 0, 3))
SDXL = [
    *(f"{side}.{block}.resnets.{i}" for side, blocks in (("down_blocks", DOWN), ("up_blocks", UP)) for block, _, n in blocks for i in range(n)),
    *(
        f"{side}.{block}.attentions.{i}.to_q"
        for side, blocks in (("down_blocks", DOWN), ("up_blocks", UP))
        for block, n, _ in blocks
        for i in range(n)
    ),
    "mid_block.attentions.0.to_q",
]
MODULES = ["a.attn1", "a.attn1.to_q", "a.attn1.to_out.0", "a.attn2.to_q", "b.attn1.to_q", "b.ff.net.0.proj", "b.conv1"]


def lora(*names: str, kohya: bool = False, component: str = "", wide: int = 4) -> LoraFile:
    """Of these modules, each wide in, 5 out."""
    weights = {f"{name}.lora_{half}.weight": np.ones(shape, np.float32) for name in names for half, shape in (("A", (RANK, wide)), ("B", (5, RANK)))}
    return LoraFile("mine.zip", weights, kohya, component, RANK, None, "")


def layers(*names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_{half}.weight": shape for name in names for half, shape in (("A", (RANK, 4)), ("B", (5, RANK)))}


def names(found: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.partition(".lora_")[0] for key in found})


def test_weights_of_the_very_layers_are_taken() -> None:
    mine = lora("a.attn1.to_q", "a.attn1.to_out.0")
    assert fit(mine, "unet", layers("a.attn1.to_q", "a.attn1.to_out.0"), MODULES) == mine.weights
    flat = lora("a_attn1_to_q", "a_attn1_to_out_0", kohya=True, component="unet")
    assert names(fit(flat, "unet", layers("a.attn1.to_q", "a.attn1.to_out.0"), MODULES)) == ["a.attn1.to_out.0", "a.attn1.to_q"]


def test_kohya_s_trainers_name_sdxl_s_layers_as_stability_did() -> None:
    """As in published LoRAs: of 9 input blocks 4, 5, 7 and 8 have attention, of 9 output blocks 0 to 5."""
    theirs = [f"input_blocks_{i}_1" for i in (4, 5, 7, 8)] + ["middle_block_1"] + [f"output_blocks_{i}_1" for i in range(6)]
    mine = [f"down_blocks.{i}.attentions.{j}" for i in (1, 2) for j in (0, 1)] + ["mid_block.attentions.0"]
    mine += [f"up_blocks.{i}.attentions.{j}" for i in (0, 1) for j in (0, 1, 2)]
    for one, other in zip(theirs, mine, strict=True):
        found = fit(lora(f"{one}_to_q", kohya=True, component="unet"), "unet", layers(f"{other}.to_q"), SDXL)
        assert names(found) == [f"{other}.to_q"]


@pytest.mark.parametrize(
    ("brought", "sentence"),
    [
        (lora("a.attn1.to_q", component="transformer"), "it is of a transformer, and this model has a unet"),
        (lora("a.attn1.to_q", "c.attn9.to_q", "d.x"), r"this model has no 'c\.attn9\.to_q' and 1 more\. It was made for another"),
        (lora("x_to_q", kohya=True), "this model has no 'x_to_q'"),
        (lora("a.attn1.to_q", wide=8), r"'a\.attn1\.to_q\.lora_A\.weight' has the shape \(2, 8\), and here it would be \(2, 4\)"),
    ],
)
def test_a_lora_of_another_model_is_refused(brought: LoraFile, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^The LoRA mine\.zip does not fit: .*{sentence}"):
        fit(brought, "unet", layers("a.attn1.to_q"), MODULES)


def test_layers_that_the_run_does_not_train_are_named_with_the_flag_that_trains_them() -> None:
    every_q, run = ("a.attn1.to_q", "a.attn2.to_q", "b.attn1.to_q"), layers("a.attn1.to_q", "a.attn2.to_q", "b.attn1.to_q")
    with pytest.raises(ConfigError, match=r"does not train: 'b\.conv1' and 1 more\. Begin the run with --lora\.targets conv1,proj,to_q\.$"):
        fit(lora(*every_q, "b.conv1", "b.ff.net.0.proj"), "unet", run, MODULES)


def test_layers_that_the_lora_leaves_out_are_named() -> None:
    run = layers("a.attn1.to_q", "a.attn2.to_q", "b.attn1.to_q", "a.attn1.to_out.0")
    with pytest.raises(
        ConfigError, match=r"leaves out layers that this run trains: 'a\.attn1\.to_out\.0'\. Begin the run with --lora\.targets to_q\.$"
    ):
        fit(lora("a.attn1.to_q", "a.attn2.to_q", "b.attn1.to_q"), "unet", run, MODULES)
    with pytest.raises(ConfigError, match=r"'a\.attn1\.to_out\.0' and 1 more\. Begin the run with --lora\.targets attn1\.to_q\.$"):
        fit(lora("a.attn1.to_q", "b.attn1.to_q"), "unet", run, MODULES)


def test_a_lora_of_single_blocks_has_no_flag() -> None:
    deep = [f"{block}.x.y.z.to_q" for block in "abc"]
    with pytest.raises(ConfigError, match="It is of single blocks"):
        fit(lora(deep[0]), "unet", layers(*deep), deep)
