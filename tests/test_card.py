"""A card that is only counted: what lies on it, what no longer does, what does not fit; and the whole loop of each family on it."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from bench import card as module
from bench import model
from bench.card import BLOCK, ON_CARD, Card, card_of, load
from loophil import offload
from loophil.config import Memory
from loophil.memory import Room, out_of_memory
from loophil.policy import Policy
from loophil.types import DrawSettings
from tests.test_families import KINDS, LORA, SEEDS, Bench, Kind, each_family
from tests.tiny import tiny_flux, tiny_pipeline

PAGE = 100 * BLOCK  # bytes, and so many numbers of one byte


@pytest.fixture
def card() -> Iterator[Card]:
    with card_of(10 * PAGE) as card:
        yield card


def made(pages: int = 1) -> torch.Tensor:
    return torch.empty(pages * PAGE, dtype=torch.uint8, device=ON_CARD)


# ---- what counts ----


def test_a_storage_counts_once_and_until_nobody_holds_it(card: Card) -> None:
    first, second = made(2), made(3)
    part, turned = first[:10], second.view(-1, 5).T
    assert card.in_use() == (5 * PAGE, 10 * PAGE)
    del first, second, turned
    assert card.free() == 8 * PAGE  # a part keeps all of it
    del part
    assert card.free() == 10 * PAGE


def test_it_counts_in_blocks_and_nothing_of_the_computer_s_own_memory(card: Card) -> None:
    kept = [torch.empty(1, device=ON_CARD), torch.empty(PAGE)]
    assert card.used == BLOCK
    assert len(kept) == 2


def test_a_peak_is_what_was_held_at_once(card: Card) -> None:
    kept = made()
    assert card.peak(lambda: [made(4).nbytes for _ in range(3)]) == 4 * PAGE
    assert card.peak(lambda: (made(2), made(3))) == 5 * PAGE
    assert card.used == PAGE == kept.nbytes


def test_more_than_it_has_is_refused_as_cuda_refuses_it(card: Card) -> None:
    kept = made(8)
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory: 0\.00 GB of 0\.00 in use") as refused:
        made(3)
    assert out_of_memory(refused.value)
    assert card.used == kept.nbytes
    made(2)


def test_what_is_read_back_is_ones(card: Card) -> None:
    whole, real, here = torch.zeros(3, 2, dtype=torch.int64, device=ON_CARD), torch.zeros(3, 2, device=ON_CARD), torch.zeros(3, 2)
    assert (whole.cpu().tolist(), real.sum().item(), bool((real == 7).all())) == ([[1, 1]] * 3, 1.0, True)
    assert real.cpu().double().dtype == real.to("cpu", torch.float64).dtype == torch.float64
    here.copy_(real)
    assert here.eq(1).all()
    assert real.copy_(here).device == ON_CARD


def test_what_is_there_and_what_is_here_cannot_be_mixed(card: Card) -> None:
    there, here = torch.zeros(3, 3, device=ON_CARD), torch.zeros(3, 3)
    mixtures: list[Callable[[], Any]] = [
        lambda: there @ here,
        lambda: there + here,
        lambda: functional.linear(there, here),
        lambda: here[there[0].long()],
    ]
    for mixed in mixtures:
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mixed()
    assert (there * torch.tensor(2.0) + 1)[torch.tensor([0])].device == ON_CARD
    assert there.copy_(here) is there


def test_a_model_that_is_loaded_takes_up_no_memory_until_it_is_moved_there(card: Card) -> None:
    layer = torch.nn.Linear(PAGE // 4, 1, device=ON_CARD)
    load(layer)
    assert (card.used, layer.weight.shape, layer.weight.untyped_storage().nbytes()) == (0, (1, PAGE // 4), 4)
    layer.to(ON_CARD)
    assert card.used == PAGE + BLOCK
    layer.to("cpu")
    assert (card.used, layer.weight.device.type) == (0, "cpu")


def test_attention_holds_no_matrix_of_scores_and_is_the_stock_one_elsewhere() -> None:
    q = torch.randn(1, 1, 4096, 8)
    outside = functional.scaled_dot_product_attention(q, q, q)
    with card_of(10**9) as card:
        there = q.to(ON_CARD).requires_grad_()
        assert card.peak(lambda: functional.scaled_dot_product_attention(there, there, there).sum().backward()) < q.nbytes * 10 < 4096**2
        assert torch.equal(functional.scaled_dot_product_attention(q, q, q), outside)
    assert torch.equal(functional.scaled_dot_product_attention(q, q, q), outside)


@pytest.mark.parametrize(("build", "size"), [(tiny_pipeline, 64), (tiny_flux, 256)])
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_it_counts_what_a_cpu_allocates(build: Callable[[], Any], size: int, checkpointing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1)
    memory = Memory(checkpointing=checkpointing)
    here = Policy(build(), LORA, size=size, memory=memory)
    words = here.encode_prompt("a red circle")
    allocated = _allocated(partial(here.rehearse, words, 3.0))  # with half a megabyte that attention on a CPU works in
    with card_of(10**9) as card:
        there = Policy(build(), LORA, size=size, memory=memory, device=ON_CARD, gauge=card)
        assert card.peak(partial(there.rehearse, words, 3.0)) == pytest.approx(allocated, rel=0.05)


def _allocated(work: Callable[[], None]) -> int:
    """Peak bytes by torch's own account of a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    now = most = 0
    assert profiled.profiler is not None
    for event in sorted((e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


# ---- the loop on it ----


@each_family
def test_the_loop_of_each_family_is_counted(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(offload, "LARGE", 1)
    kind.build().save_pretrained(tmp_path)
    knobs = [
        "--draw.size",
        "16",
        "--draw.num-inference-steps",
        "2",
        "--draw.num-images-per-prompt",
        "2",
        "--memory.offload",
        "group",
        "--learn.forward-passes",
        "1",
    ]
    assert model.run([str(tmp_path), "--card", "2", *knobs]) == 0
    said = capsys.readouterr().out
    assert re.search(r"on a card that is only counted, (float|bfloat)16, k = 2, 2 steps", said)
    assert "offload: group; 2 GB of memory" in said
    assert re.search(r"draw a group: peak [\d.]+ GB\none denoiser call: [\d.]+ GFLOP\nupdate on it: peak [\d.]+ GB; 16 images at a time", said)


@each_family
def test_what_waits_elsewhere_is_not_on_it(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "LARGE", 1)
    used = []
    for away in ("none", "model", "group"):
        with card_of(10**9) as card:
            policy = Policy(kind.build(), LORA, size=16, device=ON_CARD, memory=Memory(offload=away), gauge=card)
            used.append(card.used)
            policy.decode(torch.zeros(2, *policy.latent_shape, device=ON_CARD))
            assert card.used == used[-1]
    assert used[0] > used[1] > used[2] > 0


def test_memory_that_runs_out_makes_micro_batches_smaller_and_says_so() -> None:
    plenty, need = _update(10**11)
    scarce, _ = _update(need - need // 4)
    assert (plenty.size, plenty.words) == (16, ())
    assert (scarce.size, scarce.words) == (2, ("2 images at a time since memory ran out",))


def _update(size: int) -> tuple[Room, int]:
    """What an update on a card of this size says of memory, and what it took in all."""
    with card_of(size) as card:
        memory = Memory(offload="none", checkpointing="off")
        bench = Bench(KINDS["Stable Diffusion"], size=256, device=ON_CARD, memory=memory, gauge=card, micro_batch=16, forward_passes=0)
        drawing = bench.sampler.draw("a red circle", DrawSettings(3, 1.0, 1.0), SEEDS)
        held = card.used
        return bench.trainer.room, held + card.peak(lambda: bench.train(drawing))
