"""AdamW, with states of 32 or of 8 bits, and how they are kept as safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from loophil.errors import ConfigError

FIRST_MOMENT = {False: "exp_avg", True: "state1"}  # its name in torch's AdamW, and in that of bitsandbytes
Optimizers = Mapping[str, torch.optim.Optimizer]  # by the part of an update that each is of


def adamw(parameters: Sequence[torch.nn.Parameter], rate: float, *, eight_bit: bool = False) -> torch.optim.Optimizer:
    """AdamW without weight decay; ConfigError where its 8-bit form is not installed."""
    how: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.99), "weight_decay": 0.0}
    if not eight_bit:
        return torch.optim.AdamW(parameters, **how)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError("--memory.adam-8bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or leave it off.") from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **how)
    return optimizer


def state_of(optimizers: Optimizers) -> dict[str, torch.Tensor]:
    """{"part.parameter's number.name": value}, on the CPU, of everything that they remember."""
    return {
        f"{part}.{i}.{name}": torch.as_tensor(value).cpu()
        for part, optimizer in optimizers.items()
        for i, parameter in enumerate(optimizer.param_groups[0]["params"])
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def restore(optimizers: Optimizers, tensors: Mapping[str, torch.Tensor], *, eight_bit: bool = False) -> None:
    """Gives them back what `state_of` said; ConfigError where that was of optimizers with other bits."""
    states: dict[str, dict[int, dict[str, Any]]] = {part: {} for part in optimizers}
    for key, value in tensors.items():
        part, index, name = key.split(".")
        # bitsandbytes counts its steps in a plain number. Tensors are cloned so that they are aligned as the optimizer's own: the last bit can
        # depend on it.
        states[part].setdefault(int(index), {})[name] = int(value) if eight_bit and name == "step" else value.clone()
    if any(FIRST_MOMENT[eight_bit] not in state for each in states.values() for state in each.values()):
        was = "off" if eight_bit else "on"
        raise ConfigError(f"This run has learned with --memory.adam-8bit {was}: open it so, or begin a new run.")
    for part, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[part], "param_groups": optimizer.state_dict()["param_groups"]})
