"""What of a pipeline lies on the device and what waits in the computer's own memory.

    none    everything on the device
    model   text encoders and VAE wait, and come in when they have something to do
    group   the denoiser's large weights wait, too, and come in one layer at a time, each time that it is called

The hooks that diffusers and accelerate have for this move a layer with all its parameters, LoRA matrices included, and take the weights away
before a backward pass has used them. Here a layer's frozen weight is copied to the device for one call, and the copy lives as long as the
autograd graph needs it: without a graph until the call is over, with gradient checkpointing for one block's backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

Offload = Literal["none", "model", "group"]
LARGE = 2**16  # elements of a weight that is worth a journey
RESIDENT = 0.6  # of a GPU's memory: a denoiser that takes more leaves too little for gradients
DECODING = 4 * 10**9  # bytes that pictures need beside the denoiser: SDXL's VAE works in float32
SLICED, TILED = 2**21, 2**21  # pixels: of a group that is decoded picture by picture, of a picture that is decoded in tiles


def offload_of(choice: Literal["auto", "none", "model", "group"], denoiser: int, memory: int | None) -> Offload:
    """What a choice means for a denoiser of so many bytes on a device with so many; None: it has no memory of its own."""
    if memory is None or choice == "none":
        return "none"
    if choice == "auto":
        return "group" if denoiser > RESIDENT * memory or denoiser + DECODING > memory else "model"
    return choice


def size_of(*parts: nn.Module) -> int:
    """Bytes of their weights."""
    return sum(parameter.numel() * parameter.element_size() for part in parts for parameter in part.parameters())


@contextmanager
def visiting(parts: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Within the block these parts are on the device; afterwards where each of them was."""
    homes = {part: next(part.parameters()).device for part in parts}
    away = {part: home for part, home in homes.items() if home != device}
    try:
        for part in away:
            part.to(device)
        yield
    finally:
        for part, home in away.items():
            part.to(home)


def park(denoiser: nn.Module, device: torch.device) -> None:
    """The denoiser's large frozen weights stay where they are, in pinned memory if there is a GPU; everything else goes to the device."""
    for layer in list(_frozen_layers(denoiser)):
        if device.type == "cuda":
            with suppress(RuntimeError):  # no more memory may be pinned: slower, and all the same
                layer.weight.data = layer.weight.data.pin_memory()
        parametrize.register_parametrization(layer, "weight", _Visit(device), unsafe=True)
    for module in denoiser.modules():
        if not isinstance(module, parametrize.ParametrizationList):
            module._apply(lambda tensor: tensor.to(device), recurse=False)


def _frozen_layers(denoiser: nn.Module) -> Iterable[nn.Linear | nn.Conv2d]:
    """Its linear and convolution layers with a large weight of the base: all but a thousandth of it."""
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name and module.weight.numel() >= LARGE:
            yield module


class _Visit(nn.Module):
    """Gives a copy on the device, for whoever asks for the weight."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy even where it is there already, so that on a CPU, too, a test can see how long it lives."""
        return weight.to(self.device, non_blocking=True, copy=True)


def in_parts(n: int, pixels: int) -> tuple[bool, bool]:
    """Whether to decode n pictures of so many pixels one at a time, and each in tiles: its activations outgrow the VAE's weights many times."""
    return n * pixels > SLICED, pixels > TILED
