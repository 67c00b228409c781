"""Whether a LoRA that was read fits a model: its weights by the names of the model's layers, or one sentence on what differs and what may help.

All or nothing: a layer that is left out or passed over in silence would be a LoRA that does something else. No torch, no model: names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loophil.errors import ConfigError
from loophil.kohya import Array, named
from loophil.lora_file import LoraFile


def fit(lora: LoraFile, component: str, layers: Mapping[str, tuple[int, ...]], modules: Sequence[str]) -> dict[str, Array]:
    """The LoRA's weights by a model's names; ConfigError unless they are exactly those of the layers that the run trains.

    component: what of the model carries the LoRA;  layers: {"<module>.lora_A.weight": shape} of these;  modules: names of all of its modules
    """
    if lora.component and lora.component != component:
        raise _misfit(lora, f"it is of a {'UNet' if lora.component == 'unet' else 'transformer'}, and this model has a {component}.")
    names = named(modules) if lora.kohya else {name: name for name in modules}
    theirs = {key.partition(".lora_")[0] for key in lora.weights}
    if strange := sorted(theirs - set(names)):
        raise _misfit(lora, f"this model has no {_some(strange)}. It was made for another.")
    found = {f"{names[module]}.lora_{rest}": array for key, array in lora.weights.items() for module, _, rest in [key.partition(".lora_")]}
    mine, brought = ({key.partition(".lora_")[0] for key in keys} for keys in (layers, found))
    remedy = _remedy(brought, modules)
    if extra := sorted(brought - mine):
        raise _misfit(lora, f"it changes layers that this run does not train: {_some(extra)}. {remedy}")
    if missing := sorted(mine - brought):
        raise _misfit(lora, f"it leaves out layers that this run trains: {_some(missing)}. {remedy}")
    for key, shape in layers.items():
        if found[key].shape != shape:
            raise _misfit(lora, f"{key!r} has the shape {found[key].shape}, and here it would be {shape}. It was made for another model.")
    return found


def _misfit(lora: LoraFile, fault: str) -> ConfigError:
    return ConfigError(f"The LoRA {lora.name} does not fit: {fault}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"


def _remedy(brought: set[str], modules: Sequence[str]) -> str:
    """The --lora.targets that are its layers, if a few endings of names can say so."""
    for parts in (1, 2, 3):
        endings = {_ending(name, parts) for name in brought}
        if {name for name in modules if any(f".{name}".endswith(f".{ending}") for ending in endings)} == brought:
            return f"Begin the run with --lora.targets {','.join(sorted(endings))}."
    return "It is of single blocks: LoopHIL trains layers of a kind in all of them."


def _ending(name: str, parts: int) -> str:
    """The last parts of a dotted name; a number alone says nothing."""
    pieces = name.split(".")
    return ".".join(pieces[-(parts + pieces[-1].isdigit()) :])
