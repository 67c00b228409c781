"""AdamW of 32 bits, and of 8 by a stand-in that keeps its state as bitsandbytes does: a plain step count, bytes, and a scale for each block."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from loophil.errors import ConfigError
from loophil.optimizers import adamw, restore, state_of


class Eight(torch.optim.Optimizer):
    """Momentum in bytes."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state.setdefault("step", 0)
            state.setdefault("state1", torch.zeros_like(parameter, dtype=torch.uint8))
            state.setdefault("absmax1", torch.zeros(1))
            assert type(state["step"]) is int
            state["step"] += 1
            state["absmax1"] = state["absmax1"] / 2 + parameter.grad.abs().max()
            state["state1"] = (255 * parameter.grad.abs() / state["absmax1"]).to(torch.uint8)
            parameter -= self.param_groups[0]["lr"] * state["absmax1"] * state["state1"] / 255


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("bitsandbytes"), SimpleNamespace(AdamW8bit=Eight)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inner)


class Run:
    """Two optimizers on two parameters; only the first has stepped."""

    def __init__(self, *, eight_bit: bool) -> None:
        self.parameters = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (3, 5)]
        self.optimizers = {part: adamw(self.parameters, 0.1, eight_bit=eight_bit) for part in ("trajectory", "forward")}

    def step(self, times: int) -> None:
        for _ in range(times):
            self.optimizers["trajectory"].zero_grad()
            torch.stack([(p**2).sum() for p in self.parameters]).sum().backward()
            self.optimizers["trajectory"].step()


@pytest.mark.parametrize("eight_bit", [False, True])
def test_what_was_kept_goes_on_to_the_last_bit(eight_bit: bool, bitsandbytes: None) -> None:
    first, second = Run(eight_bit=eight_bit), Run(eight_bit=eight_bit)
    first.step(3)
    restore(second.optimizers, load(save(state_of(first.optimizers))), eight_bit=eight_bit)
    with torch.no_grad():
        for mine, theirs in zip(second.parameters, first.parameters, strict=True):
            mine.copy_(theirs)
    first.step(2)
    second.step(2)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters, second.parameters, strict=True))
    assert not second.optimizers["forward"].state
    one, two = state_of(first.optimizers), state_of(second.optimizers)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


@pytest.mark.parametrize(("kept", "said"), [(True, "on"), (False, "off")])
def test_states_of_other_bits_are_refused(kept: bool, said: str, bitsandbytes: None) -> None:
    run = Run(eight_bit=kept)
    run.step(1)
    with pytest.raises(ConfigError, match=rf"This run has learned with --memory\.adam-8bit {said}: open it so, or begin a new run\."):
        restore(Run(eight_bit=not kept).optimizers, state_of(run.optimizers), eight_bit=not kept)


def test_eight_bits_without_their_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"--memory\.adam-8bit needs bitsandbytes, which is not installed: pip install bitsandbytes"):
        adamw([torch.nn.Parameter(torch.ones(1))], 0.1, eight_bit=True)
