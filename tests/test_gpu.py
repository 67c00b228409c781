"""The whole way through each family on a CUDA GPU, with each way of keeping weights off it, and memory that really runs out.

Skipped where there is no GPU: what these parts decide is tested without one in test_offload.py and test_memory.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.card import ON_CARD, card_of
from loophil import offload
from loophil.config import Memory
from loophil.export import export
from loophil.families import family_of
from loophil.policy import LEARNER
from loophil.types import DrawSettings
from tests.test_families import ARRAYS, KINDS, SEEDS, Bench, Kind, adapter_of, arrays, each_family, unzipped

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

each_offload = pytest.mark.parametrize("away", ["none", "model", "group"])


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny layers count as large, since there are no others; convolutions and products are exact."""
    monkeypatch.setattr(offload, "LARGE", 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.cuda.empty_cache()


def on_gpu(kind: Kind, away: Any, *, half: bool = False, checkpointing: Any = "auto", **more: Any) -> Bench:
    """A policy on a GPU, so much of it away from there."""
    dtype = family_of(kind.build(), 16).half if half else torch.float32
    return Bench(kind, dtype=dtype, device=torch.device("cuda"), memory=Memory(offload=away, checkpointing=checkpointing), **more)


@each_family
@each_offload
@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_the_ratio_is_1_at_unchanged_weights_in_half_precision(kind: Kind, away: str, checkpointing: str) -> None:
    bench = on_gpu(kind, away, half=True, checkpointing=checkpointing, forward_passes=0)
    stats = bench.train(bench.drawing())
    assert (stats.ratio_mean, stats.ratio_std, stats.kept) == (1, 0, 1)
    assert not torch.equal(*(torch.cat([value.flatten() for value in bench.policy.weights(who).values()]) for who in (LEARNER, "published")))


@each_family
@each_offload
def test_what_is_drawn_and_learned_is_what_a_cpu_draws_and_learns(kind: Kind, away: str) -> None:
    here, there = Bench(kind), on_gpu(kind, away)
    for bench in (here, there):
        bench.train(bench.drawing())
    ours, theirs = here.policy.weights(LEARNER), there.policy.weights(LEARNER)
    for key, value in ours.items():  # Adam's first steps are of one size, in the direction of the gradient's sign
        assert (value - theirs[key]).abs().mean() < 0.2 * 3e-4, key
    np.testing.assert_allclose(arrays(here.drawing()), arrays(there.drawing()), rtol=0, atol=3 / 255)


@each_family
@each_offload
def test_the_lora_draws_the_same_pictures_elsewhere(kind: Kind, away: str, tmp_path: Path) -> None:
    bench = on_gpu(kind, away, learning_rate=0.05, forward_learning_rate=0.05)
    policy = bench.policy
    before = arrays(bench.sampler.draw("a red circle", kind.settings, SEEDS))
    bench.train(bench.drawing())
    policy.refresh(policy.next_weights(), 1)
    tuned = arrays(bench.sampler.draw("a red circle", kind.settings, SEEDS))
    assert np.abs(tuned - before).max() > 0.02
    elsewhere = kind.build().to("cuda")
    elsewhere.load_lora_weights(unzipped(export(adapter_of(policy), "diffusers", tmp_path)), use_safetensors=True)
    np.testing.assert_allclose(kind.stock(elsewhere, **ARRAYS), tuned, rtol=0, atol=3 / 255)


@each_family
def test_parked_weights_are_away_and_pinned(kind: Kind) -> None:
    policy = on_gpu(kind, "group").policy
    parked = [p for name, p in policy.denoiser.named_parameters() if name.endswith("parametrizations.weight.original")]
    assert parked
    assert all(p.device.type == "cpu" and p.is_pinned() for p in parked)
    assert all(p.device.type == "cuda" for p in policy.parameters())


def test_memory_that_runs_out_makes_micro_batches_smaller_and_says_so() -> None:
    bench = on_gpu(KINDS["Stable Diffusion"], "none", size=256, micro_batch=16, forward_passes=0, checkpointing="off")
    drawing = bench.sampler.draw("a red circle", DrawSettings(3, 1.0, 1.0), SEEDS)
    need = _peak(lambda: bench.train(drawing))
    bench.trainer.restart()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.7 * need) / total)
        stats = bench.train(drawing)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert bench.trainer.room.size < 16
    assert "at a time since memory ran out" in bench.trainer.room.words[0]
    assert stats.taught.keys() == {"loop"}


def test_the_first_update_measures_how_many_images_fit() -> None:
    bench = on_gpu(KINDS["SDXL"], "model", micro_batch=0)
    bench.train(bench.drawing())
    assert bench.trainer.room.size == 16  # a tiny model's images all fit


@each_family
def test_what_is_counted_without_a_gpu_is_what_one_allocates(kind: Kind) -> None:
    bench = on_gpu(kind, "none", size=64, forward_passes=0)
    drawing = bench.drawing()
    bench.train(drawing)  # once: the products' workspaces are there then
    allocated = _peak(lambda: bench.train(drawing))
    with card_of(10**10) as card:
        counted = Bench(kind, size=64, device=ON_CARD, memory=Memory(offload="none"), gauge=card, forward_passes=0)
        drawing = counted.drawing()
        counted.train(drawing)
        assert card.peak(lambda: counted.train(drawing)) == pytest.approx(allocated, rel=0.1)


def _peak(work: Any) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
