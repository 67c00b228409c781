"""The trainer on a tiny pipeline: gradients, ratios, guards, resuming, and that every objective raises a reward that is known."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from loophil.config import Learn, Lora, Memory
from loophil.errors import ConfigError, LearningError
from loophil.lessons import lessons_of
from loophil.memory import Gauge, Room
from loophil.objectives import OBJECTIVES, forward_process
from loophil.policy import LEARNER, PUBLISHED, Policy
from loophil.sampler import Sampler
from loophil.scheduler import DDIM
from loophil.store import Taught
from loophil.trainer import FORWARD, TRAJECTORY, Example, Steps, Trainer, Weights
from loophil.types import Drawing, DrawSettings, Group, ImageRef, Lesson, UpdateStats
from tests.tiny import tiny_pipeline

SETTINGS = DrawSettings(4, 3.0, 1.0)
PURE: dict[str, Any] = {"forward_passes": 0, "trajectory_passes": 1}
FORWARD_ONLY: dict[str, Any] = {"forward_passes": 1, "trajectory_passes": 0, "forward_batch": 8}
BOTH: dict[str, Any] = {"forward_passes": 1, "trajectory_passes": 1, "forward_batch": 8}
FORWARD_PROCESS = "loophil.trainer.forward_process"


class Bench:
    """A policy with its sampler and trainer. `start`: seed of the weights that it starts from, published; 0 = those of version 0."""

    def __init__(self, *, start: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0, memory: Memory | None = None, **learn: Any) -> None:
        pipeline = tiny_pipeline(prediction_type="v_prediction")
        self.policy = Policy(pipeline if dtype == torch.float32 else pipeline.to(dtype), Lora(rank=4, alpha=8), memory=memory)
        if start:
            generator = torch.Generator().manual_seed(start)
            self.policy.load_weights({key: 0.1 * torch.randn(w.shape, generator=generator) for key, w in self.policy.weights().items()}, 1)
        schedule = DDIM.from_config(self.policy.pipeline.scheduler.config)
        self.sampler = Sampler(self.policy, schedule, timestep_fraction=0.75)
        self.trainer = Trainer(self.policy, schedule, Learn(**learn), seed=seed)

    def example(self, advantages: Sequence[float] = (2, 0, -2, 0.5), *, age: int = 0, fresh: bool = True, name: str = "g", **changes: Any) -> Example:
        """A group of the published policy, drawn with the seeds 1.. , and its lesson."""
        drawing = self.sampler.draw("a red circle", SETTINGS, tuple(range(1, 1 + len(advantages))))
        lesson = Lesson(group_of(drawing, name), np.array(advantages, float), {"human:me": 0.75, "jpeg": 0.25}, age, (1,), fresh)
        return self.trainer.example(lesson, replace(drawing.trajectory, **changes))

    def train(self, *examples: Example) -> UpdateStats:
        return finish(self.trainer.update(examples))

    def gradient(self) -> torch.Tensor:
        """The last step's gradient, all LoRA matrices in one vector."""
        return torch.cat([p.grad.flatten() for p in self.policy.parameters() if p.grad is not None])

    def state(self) -> list[torch.Tensor]:
        """Everything that a failed update must leave as it was."""
        states = [state for o in self.trainer.optimizers.values() for _, state in sorted(o.state_dict()["state"].items())]
        slots = [torch.as_tensor(state[name]) for state in states for name in sorted(state)]
        weights = [value for who in (PUBLISHED, LEARNER) for value in self.policy.weights(who).values()]
        return [tensor.clone() for tensor in (*slots, *weights)]


def group_of(drawing: Drawing, name: str = "g") -> Group:
    images = tuple(ImageRef(f"{name}{seed}", seed, f"{name}{seed}.png") for seed in drawing.seeds)
    return Group(name, drawing.prompt, drawing.settings, drawing.policy_version, images)


def finish(steps: Steps) -> UpdateStats:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stats: UpdateStats = end.value
            return stats


def equal(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ---- ratios ----


def test_replay_in_the_batch_of_the_drawing_has_ratio_1_to_the_last_bit() -> None:
    bench = Bench(micro_batch=4, **PURE)
    stats = bench.train(bench.example([1, 2, -1, -2]))
    assert (stats.ratio_mean, stats.ratio_std, stats.approx_kl) == (1, 0, 0)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_replay_in_another_batch_is_within_a_thousandth_of_a_nat(micro_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=micro_batch, **PURE)
    monkeypatch.setitem(OBJECTIVES, "loop", spy := Mock(wraps=OBJECTIVES["loop"]))
    bench.train(bench.example([1, 2, -1, -2]))
    nats = torch.cat([(call.args[0] - call.args[1]).detach() for call in spy.call_args_list]) * bench.policy.dimensions
    assert len(nats) == 4 * 3
    assert nats.abs().max() < 1e-3


def test_a_half_precision_base_replays_exactly_and_learns_in_float32() -> None:
    bench = Bench(dtype=torch.bfloat16, micro_batch=4, **BOTH)
    stats = bench.train(bench.example([1, 2, -1, -2]))
    assert (stats.ratio_mean, stats.ratio_std) == (1, 0)
    assert {value.dtype for value in bench.policy.weights(LEARNER).values()} == {torch.float32}
    assert all(bool((value != bench.policy.weights()[key]).any()) for key, value in bench.policy.weights(LEARNER).items())


def test_old_log_probs_are_those_that_were_stored() -> None:
    # stored ones lower by 0.5 nats: every ratio is exp(0.5 / 256)
    bench = Bench(micro_batch=4, **PURE)
    honest = bench.example([1, 2, -1, -2])
    stats = bench.train(bench.example([1, 2, -1, -2], log_probs=honest.trajectory.log_probs - 0.5 / 256))
    assert stats.ratio_mean == pytest.approx(math.exp(0.5 / 256), abs=1e-6)
    assert stats.approx_kl == pytest.approx(0.125, rel=1e-3)


def test_stored_numbers_are_never_written_to() -> None:
    bench = Bench(**BOTH)
    example = bench.example()
    before = [tensor.clone() for tensor in vars(example.trajectory).values()]
    bench.train(example)
    assert equal(list(vars(example.trajectory).values()), before)


# ---- drift ----


def test_drift_is_0_at_the_base_and_grows_with_the_square_of_what_was_learned() -> None:
    bench = Bench(start=0, micro_batch=4)
    assert bench.trainer.drift(bench.example([0] * 4)) == 0.0
    tuned = Bench()
    weights = tuned.policy.weights()
    drifts = []
    for strength in (1.0, 2.0):
        tuned.policy.load_weights({key: value * strength**0.5 for key, value in weights.items()}, 1)  # of A and of B: the square of it counts
        drifts.append(tuned.trainer.drift(tuned.example([0] * 16)))
    assert drifts[0] > 0
    assert 2.5 < drifts[1] / drifts[0] < 6


def test_drift_is_unknown_without_transitions() -> None:
    bench = Bench()
    example = bench.example()
    assert math.isnan(bench.trainer.drift(replace(example, trajectory=bench.sampler.clean_only(example.trajectory))))


def test_a_lora_that_the_run_began_from_is_no_drift_and_is_not_unlearned() -> None:
    """Next to nothing was said (advantages of 1e-4), so the forward process and the KL must leave the LoRA as it is, not lead it back to the base."""
    drifts: dict[bool, float] = {}
    pulls: dict[bool, list[float]] = {}
    for to_origin in (True, False):
        bench = Bench(base_kl=1.0, micro_batch=4, **BOTH)
        bench.policy.begin_from(bench.policy.weights())
        bench.policy.refer(to_origin)
        drifts[to_origin] = bench.trainer.drift(bench.example([0] * 4))
        pulls[to_origin] = []
        for learn in (PURE, FORWARD_ONLY):
            bench.trainer.adjust(bench.trainer.learn.model_copy(update=learn))
            pulls[to_origin].append(bench.train(bench.example([1e-4, -1e-4, 1e-4, -1e-4])).grad_norm)
            bench.policy.discard()
    assert (drifts[True], drifts[False] > 1e-3) == (0.0, True)
    assert all(held < 0.01 * pulled for held, pulled in zip(pulls[True], pulls[False], strict=True))


# ---- gradients ----


def trajectory_gradient(objective: str, *, updates: int = 1, **learn: Any) -> torch.Tensor:
    bench = Bench(objective=objective, grad_clip=1e9, **{"micro_batch": 4, **PURE, **learn})
    example = bench.example()
    for _ in range(updates):
        bench.train(example)
    return bench.gradient()


def test_loop_s_first_gradient_is_rloo_s() -> None:
    torch.testing.assert_close(trajectory_gradient("loop"), trajectory_gradient("rloo"))


def test_loop_s_second_gradient_is_not_rloo_s() -> None:
    one, two = (trajectory_gradient(objective, updates=2, learning_rate=0.01, clip_nats=0.1) for objective in ("loop", "rloo"))
    assert (one - two).norm() > 0.01 * two.norm()


def test_the_gradient_is_that_of_the_loss_that_is_reported() -> None:
    # along its gradient g the loss rises by |g|^2: a central difference of RLOO's loss, which is smooth
    bench = Bench(objective="rloo", grad_clip=1e9, learning_rate=1e-12, dropout_nats=1e9, **PURE)
    example, weights = bench.example(), bench.policy.weights(LEARNER)
    bench.train(example)
    gradient = dict(zip(sorted(weights), (p.grad.clone() for p in bench.policy.parameters() if p.grad is not None), strict=True))
    losses = []
    for step in (0.003, -0.003):
        bench.policy.train_from({key: value + step * gradient[key] for key, value in weights.items()})
        losses.append(bench.train(example).loss)
    slope = sum(float(g.square().sum()) for g in gradient.values())
    assert (losses[0] - losses[1]) / 0.006 == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize(("objective", "micro_batch"), [("loop", 1), ("loop", 3), ("rloo", 3)])  # the two losses there are
def test_micro_batches_add_up_to_the_same_trajectory_gradient(objective: str, micro_batch: int) -> None:
    whole, parts = (trajectory_gradient(objective, micro_batch=size) for size in (4, micro_batch))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up_to_the_same_forward_gradient(micro_batch: int) -> None:
    gradients = []
    for size in (64, micro_batch):
        bench = Bench(grad_clip=1e9, micro_batch=size, **FORWARD_ONLY)
        drawer = {key: weight.flip(0) for key, weight in bench.policy.weights().items()}
        bench.train(bench.example(), replace(bench.example([1, -1, 3]), drawn_by=partial(dict, drawer)))
        gradients.append(bench.gradient())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("part", [PURE, FORWARD_ONLY])
def test_no_micro_batch_is_larger_than_asked_for(part: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=3, **part)
    example = bench.example()
    monkeypatch.setattr(bench.policy, "predict", spy := Mock(wraps=bench.policy.predict))
    bench.train(example)
    assert max(len(call.args[0]) for call in spy.call_args_list) == 3


def test_other_knobs_hold_from_the_next_update_on_and_the_optimizers_remember() -> None:
    bench = Bench(**BOTH)
    bench.train(bench.example())
    memory = {part: copy.deepcopy(optimizer.state_dict()["state"]) for part, optimizer in bench.trainer.optimizers.items()}
    bench.trainer.adjust(bench.trainer.learn.model_copy(update={"learning_rate": 3e-3, "forward_learning_rate": 4e-3, "trajectory_passes": 0}))
    rates = {part: optimizer.param_groups[0]["lr"] for part, optimizer in bench.trainer.optimizers.items()}
    assert sorted(rates.values()) == [3e-3, 4e-3]
    for part, optimizer in bench.trainer.optimizers.items():
        for i, state in optimizer.state_dict()["state"].items():
            assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(memory[part][i][name])) for name, value in state.items())
    assert set(bench.train(bench.example()).taught) == {"forward_process"}


def test_an_update_yields_between_micro_batches() -> None:
    # trajectory: 3 images with an advantage x 3 steps = 9 in batches of 4; forward: 8 images in batches of 4
    bench = Bench(micro_batch=4, **BOTH)
    assert list(bench.trainer.update([bench.example()])) == [(i, 3 + 2) for i in range(1, 6)]


def test_two_groups_weigh_as_one_twice_as_large() -> None:
    gradients = []
    for advantages in ([[2, 0, -2, 0.5]], [[2, 0, -2, 0.5], [2, 0, -2, 0.5]]):
        bench = Bench(grad_clip=1e9, micro_batch=4, **PURE)
        bench.train(*(bench.example(a) for a in advantages))
        gradients.append(bench.gradient())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_an_image_without_an_advantage_costs_nothing_and_counts_in_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(grad_clip=1e9, micro_batch=64, **PURE)
    monkeypatch.setitem(OBJECTIVES, "loop", spy := Mock(wraps=OBJECTIVES["loop"]))
    bench.train(bench.example([2, 0, -2, 0]))
    assert spy.call_args.args[2].tolist() == [2, -2] * 3
    assert spy.call_args.kwargs["total"] == 4 * 3


def test_gradients_are_clipped_and_their_norm_before_is_reported() -> None:
    free, clipped = Bench(grad_clip=1e9, **PURE), Bench(grad_clip=1e-3, **PURE)
    norms = [bench.train(bench.example()).grad_norm for bench in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1]) == pytest.approx(float(free.gradient().norm()))
    assert clipped.gradient().norm() == pytest.approx(1e-3, rel=1e-3)


def test_each_part_has_an_optimizer_of_its_own() -> None:
    # AdamW divides by its own past: with the trajectories' in it, the forward process would take other steps
    tiny: dict[str, Any] = {"learning_rate": 1e-6, "forward_learning_rate": 1e-6}
    alone, beside = Bench(**tiny, **FORWARD_ONLY), Bench(**tiny, **BOTH)
    for bench in (alone, beside):
        bench.train(bench.example())
    first, second = ([s["exp_avg_sq"] for s in b.trainer.optimizers[FORWARD].state_dict()["state"].values()] for b in (alone, beside))
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2 * float(one.abs().max()))


# ---- what is trained, and when ----


def test_groups_too_old_for_trajectories_still_teach_by_the_forward_process() -> None:
    old = Bench(max_staleness=4, **BOTH)
    before = old.policy.weights(LEARNER)
    stats = old.train(old.example(age=5))
    assert math.isnan(stats.ratio_mean)
    assert math.isnan(stats.approx_kl)
    assert stats.kept == 0
    assert not equal(list(before.values()), list(old.policy.weights(LEARNER).values()))
    assert not old.trainer.optimizers[TRAJECTORY].state_dict()["state"]


def test_a_group_as_old_as_allowed_is_trained() -> None:
    bench = Bench(max_staleness=4, **PURE)
    assert bench.train(bench.example(age=4)).kept == 1


def test_clean_latents_alone_are_enough_for_the_forward_process() -> None:
    bench = Bench(**BOTH)
    example = bench.example()
    stats = bench.train(replace(example, trajectory=bench.sampler.clean_only(example.trajectory)))
    assert stats.kept == 0
    assert bench.trainer.optimizers[FORWARD].state_dict()["state"]


def test_kept_is_the_share_of_new_images_that_trajectories_could_use() -> None:
    # new: 4 images too old, 2 young; the replayed ones do not count
    bench = Bench(max_staleness=2, micro_batch=4, **PURE)
    new, old = [bench.example(age=3, name="a"), bench.example([1, -1], name="b")], [bench.example(age=9, fresh=False), bench.example(fresh=False)]
    stats = bench.train(*new, *old)
    assert stats.kept == pytest.approx(2 / 6)
    assert stats.images == 14


def test_transitions_far_from_the_policy_that_drew_them_are_dropped() -> None:
    bench = Bench(micro_batch=4, dropout_nats=0.4, **PURE)
    log_probs = bench.example().trajectory.log_probs.clone()
    log_probs[:, 0] -= 0.5 / 256
    stats = bench.train(bench.example([1, 2, -1, -2], log_probs=log_probs))
    assert stats.kept == pytest.approx(2 / 3)
    assert stats.ratio_mean == 1


def test_where_every_transition_is_dropped_nothing_moves_not_even_by_momentum() -> None:
    bench = Bench(dropout_nats=0.4, **PURE)
    bench.train(bench.example())
    bench.policy.refresh(bench.policy.next_weights(), 2)
    before = bench.state()
    honest = bench.example()
    stats = bench.train(bench.example(log_probs=honest.trajectory.log_probs - 0.5 / 256))
    assert stats.kept == 0
    assert equal(bench.state(), before)


def test_the_kl_cap_ends_the_passes_before_another_step() -> None:
    one, capped = Bench(learning_rate=0.01, **PURE), Bench(learning_rate=0.01, kl_cap_nats=1e-4, **{**PURE, "trajectory_passes": 5})
    stats = [bench.train(bench.example()) for bench in (one, capped)]
    assert equal(list(one.policy.weights(LEARNER).values()), list(capped.policy.weights(LEARNER).values()))
    assert stats[0].approx_kl < 1e-4 < stats[1].approx_kl


def test_passes_below_the_kl_cap_are_all_taken() -> None:
    bench = Bench(learning_rate=1e-4, kl_cap_nats=100, **{**PURE, "trajectory_passes": 3})
    bench.train(bench.example())
    assert {int(s["step"]) for s in bench.trainer.optimizers[TRAJECTORY].state_dict()["state"].values()} == {3}


def test_base_kl_takes_the_policy_back_to_the_base() -> None:
    drifts = []
    for weight in (0.0, 100.0):
        bench = Bench(base_kl=weight, learning_rate=0.01, kl_cap_nats=1e9, dropout_nats=1e9, **{**PURE, "trajectory_passes": 6})
        bench.train(bench.example([1, -1, 1, -1]))
        bench.policy.refresh(bench.policy.next_weights(), 2)
        drifts.append(bench.trainer.drift(bench.example([0] * 8)))
    assert drifts[1] < drifts[0] / 2


@pytest.mark.parametrize("knobs", [{"base_kl": 3.0, **PURE}, {"sft": 3.0, **FORWARD_ONLY}, {"forward_objective": "fpo", **FORWARD_ONLY}])
def test_every_guard_has_the_same_gradient_in_one_batch_and_in_many(knobs: dict[str, Any]) -> None:
    gradients = []
    for size in (2, 64):
        bench = Bench(micro_batch=size, grad_clip=1e9, **knobs)
        bench.train(bench.example([1, 2, -1, -2]))
        gradients.append(bench.gradient())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    plain = Bench(
        micro_batch=64, grad_clip=1e9, **{name: value for name, value in knobs.items() if name not in ("base_kl", "sft", "forward_objective")}
    )
    plain.train(plain.example([1, 2, -1, -2]))
    assert not torch.allclose(plain.gradient(), gradients[1], rtol=0.05)


def test_siblings_share_time_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    # with equal clean latents the targets of siblings are equal too; those of another turn are not
    bench = Bench(micro_batch=64, **FORWARD_ONLY)
    monkeypatch.setattr(FORWARD_PROCESS, spy := Mock(wraps=forward_process))
    bench.train(bench.example(clean_latents=torch.zeros(4, 4, 8, 8)))
    one, other = spy.call_args.args[2].split(4)
    assert all(torch.equal(row, one[0]) for row in one)
    assert not torch.equal(other[0], one[0])


def test_the_reference_of_the_forward_process_is_the_policy_that_drew_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(start=0, **{**FORWARD_ONLY, "forward_batch": 4})
    monkeypatch.setattr(FORWARD_PROCESS, spy := Mock(wraps=forward_process))
    generator, base = torch.Generator().manual_seed(9), bench.policy.weights()
    drawer = {key: 0.1 * torch.randn(w.shape, generator=generator) for key, w in base.items()}
    readers: list[Callable[[], Weights | None]] = [lambda: None, lambda: drawer]
    for learner, drawn_by, same in ((base, 0, True), (drawer, 0, False), (base, 1, False), (drawer, 1, True)):
        bench.policy.train_from(learner)
        bench.train(replace(bench.example(), drawn_by=readers[drawn_by]))
        v_theta, v_ref = spy.call_args.args[:2]
        assert torch.equal(v_theta, v_ref) == same
        assert (v_theta.requires_grad, v_ref.requires_grad) == (True, False)
        assert equal([*bench.policy.weights().values()], [*base.values()])  # what is published wore the other weights only meanwhile


def test_groups_share_a_batch_of_the_learner_and_those_of_one_policy_one_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=8, **{**FORWARD_ONLY, "forward_batch": 16})
    drawer = bench.policy.weights()
    examples = [replace(bench.example(), drawn_by=reader) for reader in (lambda: None, lambda: drawer)]
    acting: list[str] = []
    real = bench.policy.predict

    def predict(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        acting.append(f"{bench.policy._active} {len(latents)}")
        return real(latents, *rest)

    monkeypatch.setattr(bench.policy, "predict", predict)
    monkeypatch.setattr(bench.trainer, "_turns", lambda *_, **__: [examples[0], examples[0], examples[0], examples[1]])
    bench.train(*examples)
    assert acting == ["base 8", "learner 8", "base 4", "published 4", "learner 8"]


def test_what_is_new_comes_first_in_the_forward_process(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=64, **FORWARD_ONLY)  # room for 2 groups of 4
    monkeypatch.setattr(FORWARD_PROCESS, spy := Mock(wraps=forward_process))
    old, new = bench.example([1, -1, 1, -1], fresh=False), bench.example([3, 0, 0, -3])
    for _ in range(3):
        bench.train(old, old, old, new, old)
        assert spy.call_args.args[3].tolist() == [3, 0, 0, -3, 1, -1, 1, -1]


def test_after_the_first_pass_what_is_new_counts_as_what_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=64, **{**FORWARD_ONLY, "forward_batch": 4, "forward_passes": 9})  # 9 steps of one group
    monkeypatch.setattr(FORWARD_PROCESS, spy := Mock(wraps=forward_process))
    bench.train(*(bench.example([1, -1, 1, -1], fresh=False) for _ in range(3)), bench.example([3, 0, 0, -3]))
    new = [call.args[3].tolist() == [3, 0, 0, -3] for call in spy.call_args_list]
    assert (len(new), new[0]) == (9, True)
    assert 0 < sum(new[1:]) < 6


def test_a_single_group_fills_the_forward_batch_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=64, **FORWARD_ONLY)
    monkeypatch.setattr(FORWARD_PROCESS, spy := Mock(wraps=forward_process))
    bench.train(bench.example([1, -1]))
    assert [call.args[3].tolist() for call in spy.call_args_list] == [[1, -1] * 4]


def test_nothing_new_is_passed_over_however_small_the_forward_batch() -> None:
    bench = Bench(**{**FORWARD_ONLY, "forward_batch": 4})
    news, old = [bench.example(name=name) for name in "abc"], bench.example(name="z", fresh=False)
    assert bench.train(old, *news).taught == {"forward_process": ["a", "b", "c"]}


@pytest.mark.parametrize(("part", "taught"), [(PURE, {"rloo": ["a"]}), (FORWARD_ONLY, {"forward_process": ["a", "b"]})])
def test_what_each_objective_learned_from_is_reported(part: dict[str, Any], taught: dict[str, list[str]]) -> None:
    bench = Bench(objective="rloo", max_staleness=1, **part)
    assert bench.train(bench.example(name="a"), bench.example(name="b", age=2), bench.example([0, 0, 0, 0], name="c")).taught == taught


def test_groups_of_different_sizes_learn_together() -> None:
    bench = Bench(**BOTH)
    stats = bench.train(bench.example([1, -1]), bench.example([1, 0, -1]))
    assert stats.images == 5
    assert math.isfinite(stats.loss)


def test_times_of_the_forward_process_cover_all_noise_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 turns: one time in each tenth of the noisier half, 500..999, in random order
    bench = Bench(micro_batch=64, forward_fraction=0.5, **{**FORWARD_ONLY, "forward_batch": 20})
    example = bench.example([1, -1])
    monkeypatch.setattr(bench.policy, "predict", spy := Mock(wraps=bench.policy.predict))
    bench.train(example)
    times = spy.call_args.args[1][::2].tolist()  # siblings share theirs
    assert sorted(time // 50 for time in times) == list(range(10, 20))
    assert times != sorted(times)


# ---- no signal ----


def test_equal_rewards_change_nothing() -> None:
    bench = Bench(**BOTH)
    bench.train(bench.example())  # so that there is momentum that could move something
    before, rng = bench.state(), bench.trainer.rng.get_state()
    stats = bench.train(bench.example([0, 0, 0, 0]), bench.example([0, 0]))
    assert equal(bench.state(), before)
    assert torch.equal(bench.trainer.rng.get_state(), rng)
    assert (stats.no_signal, stats.images, stats.loss) == (2, 6, 0)


def test_a_group_without_signal_does_not_dilute_one_that_has_it() -> None:
    gradients = []
    for silent in ([], [[0.0, 0.0, 0.0, 0.0]]):
        bench = Bench(grad_clip=1e9, **PURE)
        stats = bench.train(bench.example(), *(bench.example(a) for a in silent))
        gradients.append(bench.gradient())
        assert stats.no_signal == len(silent)
    assert torch.equal(gradients[0], gradients[1])


def test_nothing_to_learn_from_is_an_update_that_does_nothing() -> None:
    bench = Bench(**BOTH)
    before = bench.state()
    stats = bench.train()
    assert equal(bench.state(), before)
    assert (stats.images, stats.no_signal, stats.kept, stats.shares) == (0, 0, 0, {})


def test_shares_are_the_mean_over_groups_and_seconds_are_counted() -> None:
    bench = Bench(**PURE)
    one, two = bench.example(), bench.example()
    two = replace(two, lesson=replace(two.lesson, shares={"human:me": 0.25, "aesthetic": 0.75}))
    stats = bench.train(one, two)
    assert stats.shares == pytest.approx({"human:me": 0.5, "jpeg": 0.125, "aesthetic": 0.375})
    assert stats.seconds > 0


# ---- guards ----


def spoil_advantage(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    return bench.example([1, math.nan, -1, 0])


def spoil_latents(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    latents = bench.example().trajectory.latents.clone()
    latents[1, 2, 0, 0, 0] = math.nan
    return bench.example(latents=latents)


def spoil_clean_latents(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    return bench.example(clean_latents=torch.full((4, 4, 8, 8), math.inf))


def spoil_log_probs(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    return bench.example(log_probs=torch.full((4, 3), math.nan))


def spoil_loss(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    """The second part's: the first has moved the weights by then."""
    patch.setattr(FORWARD_PROCESS, lambda v_theta, *args, **kwargs: (v_theta.flatten(1).mean(1) * math.nan, {}))
    return bench.example()


def spoil_gradient(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    """A finite loss with an infinite slope."""
    patch.setattr(FORWARD_PROCESS, lambda v_theta, v_ref, *args, **kwargs: ((v_theta - v_theta.detach()).abs().sqrt().flatten(1).sum(1), {}))
    return bench.example()


def spoil_weights(bench: Bench, patch: pytest.MonkeyPatch) -> Example:
    bench.trainer.optimizers[FORWARD].param_groups[0]["lr"] = math.inf
    return bench.example()


SPOILERS: list[tuple[Callable[[Bench, pytest.MonkeyPatch], Example], str]] = [
    (spoil_advantage, "Group g has an advantage that is not finite"),
    (spoil_latents, "Group g has a latent that is not finite"),
    (spoil_clean_latents, "Group g has a clean latent that is not finite"),
    (spoil_log_probs, "Group g has a log-probability that is not finite"),
    (spoil_loss, "The loss of an update was not finite"),
    (spoil_gradient, "A gradient was not finite"),
    (spoil_weights, "A weight became non-finite"),
]


@pytest.mark.parametrize(("spoil", "sentence"), SPOILERS)
def test_what_is_not_finite_leaves_everything_as_it_was(
    spoil: Callable[[Bench, pytest.MonkeyPatch], Example], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(**BOTH)
    bench.train(bench.example())  # not published: the learner is ahead, and the optimizers have a past
    example, before, published = spoil(bench, monkeypatch), bench.state(), bench.policy.fingerprint()
    with pytest.raises(LearningError, match=sentence):
        bench.train(bench.example(name="good"), example)
    assert equal(bench.state(), before)
    assert bench.policy.fingerprint() == published


def test_after_a_failed_update_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(**BOTH)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LearningError):
        bench.train(spoil_loss(bench, patch))
    before = bench.policy.weights(LEARNER)
    assert math.isfinite(bench.train(bench.example()).loss)
    assert not equal(list(before.values()), list(bench.policy.weights(LEARNER).values()))


def test_running_out_of_memory_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(**BOTH)
    example, before = bench.example(), bench.state()
    monkeypatch.setattr(FORWARD_PROCESS, Mock(side_effect=torch.OutOfMemoryError("no memory left")))
    with pytest.raises(torch.OutOfMemoryError):
        bench.train(example)
    assert equal(bench.state(), before)


class Small:
    """A device on which a backward pass of more than `most` images runs out of memory, as torch says it or as a CPU does."""

    def __init__(self, bench: Bench, most: int, patch: pytest.MonkeyPatch, error: Exception) -> None:
        self.sizes: list[int] = []
        predict = bench.policy.predict

        def predicting(latents: torch.Tensor, *args: Any) -> torch.Tensor:
            if torch.is_grad_enabled():
                self.sizes.append(len(latents))
                if len(latents) > most:
                    raise error
            return predict(latents, *args)

        patch.setattr(bench.policy, "predict", predicting)


NO_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")]


@pytest.mark.parametrize(("most", "size", "error"), [(3, 2, NO_MEMORY[0]), (1, 1, NO_MEMORY[1])], ids=["GPU", "CPU"])
def test_where_memory_runs_out_the_update_begins_again_with_smaller_micro_batches(
    most: int, size: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs: dict[str, Any] = {**BOTH, "seed": 5}
    small, exact = Bench(micro_batch=size, **knobs), Bench(micro_batch=size, **knobs)
    for bench in (small, exact):  # a past, so that optimizers and noise have something to go back to
        bench.train(bench.example([1, -1]))
    small.trainer.adjust(small.trainer.learn.model_copy(update={"micro_batch": 8}))
    device = Small(small, most, monkeypatch, error)
    said = list(small.trainer.update([small.example([2, 0.5, -2, -0.5])]))
    exact.train(exact.example([2, 0.5, -2, -0.5]))
    assert small.trainer.room.size == size
    assert equal(small.state(), exact.state())  # weights, optimizers: as if it had been the size from the start
    assert torch.equal(small.trainer.rng.get_state(), exact.trainer.rng.get_state())
    assert device.sizes[0] == 8
    images = "1 image" if size == 1 else f"{size} images"
    assert said[-1][2:] == (f"{images} at a time since memory ran out",)


def test_memory_that_runs_out_in_the_forward_process_undoes_the_trajectory_step(monkeypatch: pytest.MonkeyPatch) -> None:
    small, exact = (Bench(micro_batch=size, seed=5, **{**BOTH, "forward_batch": 6}) for size in (6, 3))
    device = Small(small, 3, monkeypatch, NO_MEMORY[0])
    advantages = [1, 0, 0, 0, 0, 0]
    small.train(small.example(advantages))  # 3 transitions, then 6 noised images, more than 3 at once
    exact.train(exact.example(advantages))
    assert equal(small.state(), exact.state())
    assert device.sizes == [3, 6, 3, 3, 3]


def test_a_size_that_was_found_out_holds_until_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=8, **BOTH)
    device = Small(bench, 2, monkeypatch, NO_MEMORY[0])
    bench.train(bench.example())
    tried = len(device.sizes)
    bench.train(bench.example())
    assert max(device.sizes[tried:]) == 2
    bench.trainer.adjust(bench.trainer.learn.model_copy(update={"beta": 1.0}))
    assert bench.trainer.room.size == 2
    bench.trainer.adjust(bench.trainer.learn.model_copy(update={"micro_batch": 4}))
    assert bench.trainer.room.size == 4


def test_the_last_thing_tried_is_to_recompute_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=2, **BOTH)
    example, before = bench.example(), bench.state()
    Small(bench, 0, monkeypatch, NO_MEMORY[0])
    with pytest.raises(torch.OutOfMemoryError):
        bench.train(example)
    assert (bench.trainer.room.size, bench.policy.checkpointing) == (1, True)
    assert equal(bench.state(), before)


def test_the_default_on_a_cpu_is_eight() -> None:
    one, two = Bench(seed=5, **BOTH), Bench(seed=5, micro_batch=8, **BOTH)
    for bench in (one, two):
        bench.train(bench.example())
    assert Learn().micro_batch == 0
    assert equal(one.state(), two.state())


def test_on_a_gpu_the_first_update_measures_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(**BOTH)
    example = bench.example()
    bench.trainer.room = Room(0, gauge := Mock(spec=Gauge, free=lambda: 1000))
    gauge.peak = Mock(side_effect=lambda work: work() or 280)  # three fit, and with activations recomputed still three
    device = Small(bench, 99, monkeypatch, NO_MEMORY[0])
    bench.train(example)
    bench.train(example)
    assert device.sizes[:2] == [1, 1]  # the rehearsals
    assert (max(device.sizes), gauge.peak.call_count, bench.policy.checkpointing) == (3, 2, True)


def test_recomputed_activations_teach_the_same_to_the_last_bit() -> None:
    plain, recomputed = (Bench(memory=Memory(checkpointing=choice), base_kl=0.5, **BOTH) for choice in ("off", "on"))
    for bench in (plain, recomputed):
        bench.train(bench.example())
    assert equal(plain.state(), recomputed.state())


def test_the_first_compiled_update_says_that_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(micro_batch=64, **PURE)
    bench.policy.memory = Memory(compile=True)
    trainer = Trainer(bench.policy, bench.trainer.schedule, bench.trainer.learn)
    words = "compiling the model: the first update is slow"
    assert [list(trainer.update([bench.example()])) for _ in range(2)] == [[(0, 1, words), (1, 1)], [(1, 1)]]


def test_an_update_that_is_closed_half_way_has_published_nothing_and_can_be_discarded() -> None:
    bench = Bench(micro_batch=4, **BOTH)
    published = bench.policy.weights()
    steps = bench.trainer.update([bench.example()])
    for _ in range(4):  # the trajectory step is taken, the forward step is not
        next(steps)
    steps.close()
    assert not equal(list(bench.policy.weights(LEARNER).values()), list(published.values()))
    assert equal(list(bench.policy.weights().values()), list(published.values()))
    bench.policy.discard()
    assert equal(list(bench.policy.weights(LEARNER).values()), list(published.values()))


# ---- resuming ----


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_resumed_run_goes_on_bit_by_bit(ema: float, tmp_path: Path) -> None:
    first = Bench(seed=3, **BOTH)
    first.train(first.example())
    first.policy.refresh(first.policy.next_weights(ema), 2)
    first.trainer.save(tmp_path)
    second = Bench(seed=99, **BOTH)
    second.policy.load_weights(first.policy.weights(), 2)
    second.trainer.load(tmp_path)
    for bench in (first, second):
        bench.train(bench.example())
    assert equal(first.state(), second.state())
    assert torch.equal(first.trainer.rng.get_state(), second.trainer.rng.get_state())


def test_where_the_training_state_is_gone_the_optimizers_start_afresh(tmp_path: Path) -> None:
    bench = Bench(**BOTH)
    bench.train(bench.example())
    rng = bench.trainer.rng.get_state()
    bench.trainer.load(tmp_path)
    assert all(not optimizer.state_dict()["state"] for optimizer in bench.trainer.optimizers.values())
    assert torch.equal(bench.trainer.rng.get_state(), rng)
    assert equal(list(bench.policy.weights(LEARNER).values()), list(bench.policy.weights().values()))


def test_an_optimizer_that_has_not_stepped_is_kept_too(tmp_path: Path) -> None:
    Bench(seed=3, **BOTH).trainer.save(tmp_path)
    bench = Bench(seed=4, **BOTH)
    bench.train(bench.example())
    bench.trainer.load(tmp_path)
    assert all(not optimizer.state_dict()["state"] for optimizer in bench.trainer.optimizers.values())


def test_the_learning_rate_is_the_setting_s_not_the_file_s(tmp_path: Path) -> None:
    slow, fast = Bench(learning_rate=1e-4, **BOTH), Bench(learning_rate=1e-2, forward_learning_rate=2e-2, **BOTH)
    slow.train(slow.example())
    slow.trainer.save(tmp_path)
    fast.trainer.load(tmp_path)
    assert [fast.trainer.optimizers[part].param_groups[0]["lr"] for part in (TRAJECTORY, FORWARD)] == [1e-2, 2e-2]


def test_training_state_of_another_adapter_is_refused(tmp_path: Path) -> None:
    bench = Bench(**PURE)
    bench.trainer.save(tmp_path)
    policy = Policy(tiny_pipeline(), Lora(rank=2, alpha=8))
    with pytest.raises(ConfigError, match="does not fit"):
        Trainer(policy, bench.trainer.schedule, Learn()).load(tmp_path)


# ---- it learns ----


def brightness(drawing: Drawing) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(k,), 0..255."""
    return np.array([np.asarray(image, float).mean() for image in drawing.images])


TOYS: list[tuple[str, dict[str, Any]]] = [
    *((objective, {"objective": objective, "trajectory_passes": 2, "forward_passes": 0}) for objective in OBJECTIVES),
    ("forward process", {"trajectory_passes": 0, "forward_passes": 2, "beta": 0.2}),
]


ALIKE = ("ppo", "reinforce")  # other baselines for the losses of loop and rloo, which have tests of their own: for make test-all


@pytest.mark.parametrize("learn", [pytest.param(learn, id=name, marks=pytest.mark.slow if name in ALIKE else ()) for name, learn in TOYS])
def test_a_known_reward_rises(learn: dict[str, Any]) -> None:
    """Brighter pictures are better; ten groups of 8, each trained once. The effect is in the base's standard deviations."""
    settings, measured = DrawSettings(3, 1.0, 1.0), tuple(range(1000, 1032))
    bench = Bench(start=0, learning_rate=5e-3, forward_learning_rate=5e-3, forward_batch=16, micro_batch=16, **learn)
    base = brightness(bench.sampler.draw("x", settings, measured))
    taught = []
    for number in range(10):
        drawing = bench.sampler.draw("x", settings, tuple(range(8 * number, 8 * number + 8)))
        taught.append(Taught(group_of(drawing), {}, {"brightness": brightness(drawing)}, (), True))
        lessons = lessons_of(taught, learn=bench.trainer.learn, rewards={"brightness": 1.0}, scales={"brightness": float(base.std())}, version=number)
        bench.train(bench.trainer.example(lessons[-1], drawing.trajectory))
        bench.policy.refresh(bench.policy.next_weights(), number + 1)
    tuned = brightness(bench.sampler.draw("x", settings, measured))
    effect = (tuned - base).mean() / base.std()
    assert effect > 0.3
