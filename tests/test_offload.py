"""What waits and what comes in. No GPU: on a CPU a copy is made all the same, so that who lives how long can be seen."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from loophil import offload
from loophil.config import Lora, Memory
from loophil.families import Embeddings
from loophil.offload import LARGE, in_parts, offload_of, park, size_of, visiting
from loophil.policy import LEARNER, Policy
from tests.tiny import tiny_flux, tiny_pipeline, tiny_sd3

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
LORA = Lora(rank=4, alpha=8)
FAMILIES = {"Stable Diffusion": tiny_pipeline, "SD3": tiny_sd3, "FLUX": tiny_flux}
each_family = pytest.mark.parametrize("build", FAMILIES.values(), ids=list(FAMILIES))


@pytest.mark.parametrize(
    ("choice", "denoiser", "memory", "found"),
    [
        ("auto", 99, None, "none"),
        ("group", 1, None, "none"),
        ("auto", 24, 40, "model"),
        ("auto", 25, 40, "group"),  # more than 60%
        ("auto", 4, 8, "model"),
        ("auto", 5, 8, "group"),  # no room for decoding
        ("none", 39, 40, "none"),
        ("model", 39, 40, "model"),
        ("group", 1, 40, "group"),
    ],
)
def test_what_a_choice_means_depends_on_the_device_s_memory_and_the_denoiser(choice: Any, denoiser: int, memory: int | None, found: str) -> None:
    assert offload_of(choice, denoiser * 10**9, None if memory is None else memory * 10**9) == found


def test_the_size_is_that_of_the_weights() -> None:
    assert size_of(nn.Linear(3, 5), nn.Linear(2, 2, bias=False).half()) == 4 * (3 * 5 + 5) + 2 * 4


def test_who_visits_goes_home_also_after_an_error() -> None:
    away, here = nn.Linear(2, 2), nn.Linear(2, 2, device="meta")

    def visit() -> None:
        with visiting([away, here], META):
            assert {away.weight.device, here.weight.device} == {META}
            away.to_empty(device="cpu")  # meta keeps no values to go home with
            raise KeyError

    with pytest.raises(KeyError):
        visit()
    assert (away.weight.device, here.weight.device) == (CPU, META)


@pytest.mark.parametrize(
    ("n", "side", "found"), [(4, 512, (False, False)), (4, 1024, (True, False)), (1, 1536, (True, True)), (8, 256, (False, False))]
)
def test_large_groups_are_decoded_one_by_one_and_large_pictures_in_tiles(n: int, side: int, found: tuple[bool, bool]) -> None:
    assert in_parts(n, side * side) == found


# ---- layers that come in one at a time ----


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers count as large, since there are no others."""
    monkeypatch.setattr(offload, "LARGE", 1)


def told(policy: Policy) -> tuple[torch.Tensor, torch.Tensor, Embeddings]:
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return latents, torch.tensor(500), policy.encode_prompt("a red circle")


def learned(policy: Policy) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(output, gradients) of a backward pass that comes after another adapter has become active."""
    with policy.acting(LEARNER):
        output = policy.predict(*told(policy), 3.0)
    output.square().mean().backward()
    return output.detach(), [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


def tuned(build: Any, checkpointing: Any = "off") -> Policy:
    policy = Policy(build(), LORA, size=16, memory=Memory(checkpointing=checkpointing))
    generator = torch.Generator().manual_seed(1)
    policy.train_from({key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in policy.weights().items()})
    return policy


@each_family
@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_parked_weights_give_the_same_outputs_and_gradients_and_the_lora_stays(build: Any, checkpointing: Any, everything: None) -> None:
    plain, parked = tuned(build), tuned(build, checkpointing)
    before = parked.parameters()
    park(parked.denoiser, CPU)
    (output, gradients), (want, wanted) = learned(parked), learned(plain)
    assert torch.equal(output, want)
    assert len(gradients) == len(wanted) > 0
    assert all(torch.equal(one, two) for one, two in zip(gradients, wanted, strict=True))
    assert all(one is two for one, two in zip(parked.parameters(), before, strict=True))
    assert not [name for name, _ in parked.denoiser.named_parameters() if ".lora_" in name and "parametrizations" in name]


def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of copies that are alive, each time that one more was made."""
    alive: list[weakref.ref[torch.Tensor]] = []
    counted: list[int] = []
    forward = offload._Visit.forward

    def counting(self: Any, weight: torch.Tensor) -> torch.Tensor:
        copy = forward(self, weight)
        alive.append(weakref.ref(copy))
        counted.append(sum(reference() is not None for reference in alive))
        return copy

    monkeypatch.setattr(offload._Visit, "forward", counting)
    gc.collect()
    return counted


def test_without_a_graph_one_layer_at_a_time_is_there(everything: None, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tuned(tiny_flux)
    park(policy.denoiser, CPU)
    counted = copies(monkeypatch)
    with torch.no_grad():
        policy.predict(*told(policy), 3.0)
    assert len(counted) > 20
    assert max(counted) == 1


def test_small_weights_stay_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tuned(tiny_flux)
    park(policy.denoiser, CPU)
    large = [parameter for name, parameter in policy.denoiser.named_parameters() if parameter.numel() >= LARGE]
    assert large == []
    assert not [name for name, _ in policy.denoiser.named_parameters() if "parametrizations" in name]


def test_on_another_device_everything_but_the_parked_weights_moves(everything: None) -> None:
    policy = tuned(tiny_sd3)
    park(policy.denoiser, META)
    where = {name: parameter.device for name, parameter in policy.denoiser.named_parameters()}
    assert {device for name, device in where.items() if name.endswith("parametrizations.weight.original")} == {CPU}
    assert {device for name, device in where.items() if not name.endswith("parametrizations.weight.original")} == {META}
    assert {buffer.device for buffer in policy.denoiser.buffers()} == {META}
    layer = next(module for module in policy.denoiser.modules() if isinstance(module, nn.Linear) and nn.utils.parametrize.is_parametrized(module))
    assert layer.weight.device == META
