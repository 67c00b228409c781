"""Groups with advantages -> new learner weights and UpdateStats. One trainer for every objective; it publishes nothing.

An update has two parts on the same advantages:
1. the trajectory objective (LOOP by default) on the stored transitions of groups young enough, each transition once a pass;
2. the forward-process objective on the clean latents of all groups, however old: so that no rating is ever used up.

Both accumulate gradients over micro-batches (their size changes memory, not the result) and yield between them, so that a
waiting person's drawing can slip in. Nothing non-finite reaches the weights: the learner goes back to what is published.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loophil.config import Learn
from loophil.errors import LearningError
from loophil.objectives import OBJECTIVES, ObjectiveStats, forward_process, per_dimension, sample_dropout
from loophil.policy import LEARNER, PUBLISHED, Embeddings, Policy
from loophil.scheduler import Schedule, randn, step_with_log_prob
from loophil.types import Lesson, Trajectory, UpdateStats

Steps = Generator[None, None, UpdateStats]


@dataclass(frozen=True)
class Example:
    """A lesson with its stored tensors and prompt embeddings, ready for the device. `trajectory.latents` may be empty (S = 0)."""

    lesson: Lesson
    trajectory: Trajectory
    embeddings: Embeddings

    @property
    def advantages(self) -> torch.Tensor:
        """(k,) float32."""
        return torch.from_numpy(self.lesson.advantages).float()


class Trainer:
    """AdamW on the learner's LoRA. `rng` drives the times and the noise of the forward process and is part of what is saved."""

    def __init__(self, policy: Policy, schedule: Schedule, learn: Learn, *, seed: int = 0) -> None:
        self.policy = policy
        self.schedule = schedule
        self.learn = learn
        self.rng = torch.Generator().manual_seed(seed)
        self.restart()

    def restart(self) -> None:
        """A fresh optimizer, as for version 0."""
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=self.learn.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def example(self, lesson: Lesson, trajectory: Trajectory) -> Example:
        """A lesson made ready: its tensors and its prompt's embeddings."""
        group = lesson.group
        return Example(lesson, trajectory, self.policy.encode_prompt(group.prompt, group.settings.negative_prompt))

    def update(self, examples: Sequence[Example]) -> Steps:
        """Trains the learner on all examples; yields between micro-batches, returns UpdateStats.

        Raises LearningError, with the learner and the optimizer as they were, when anything is not finite.
        """
        started = time.monotonic()
        before = copy.deepcopy(self.optimizer.state_dict())
        telling = [e for e in examples if bool((e.advantages != 0).any())]
        young = [e for e in telling if e.lesson.age <= self.learn.max_staleness and e.trajectory.log_probs.shape[1]]
        meter = _Meter(self.policy.dimensions)
        try:
            for _ in range(self.learn.trajectory_passes if young else 0):
                yield from self._trajectory_pass(young, meter)
                if meter.approx_kl > self.learn.kl_cap_nats:
                    break
            for _ in range(self.learn.forward_passes if telling else 0):
                yield from self._forward_pass(telling, meter)
        except LearningError:
            self.policy.discard()
            self.optimizer.load_state_dict(before)
            raise
        return meter.stats(examples, young, time.monotonic() - started)

    def _trajectory_pass(self, examples: Sequence[Example], meter: _Meter) -> Iterator[None]:
        """One optimizer step of the trajectory objective over every transition of every example."""
        learn, D = self.learn, self.policy.dimensions
        objective = OBJECTIVES[learn.objective]
        total = sum(e.trajectory.log_probs.numel() for e in examples)
        self.optimizer.zero_grad(set_to_none=True)
        joined: ObjectiveStats | None = None
        for example in examples:
            for rows, steps in _micro_batches(example, learn.micro_batch):
                log_probs, old = self._score(example, rows, steps)
                mask = sample_dropout(log_probs, old, per_dimension(learn.dropout_nats, D))
                advantages = example.advantages[rows].to(log_probs.device)
                loss, stats = objective(log_probs, old, advantages, clip_range=per_dimension(learn.clip_nats, D), mask=mask, total=total)
                # The objective's gradient is D times smaller than the log-density's: undone here, so that the step size does not depend on D.
                self._backward(loss * D, meter)
                joined = stats if joined is None else joined + stats
                yield
        if joined is not None:
            meter.trajectory(joined)
        self._step(meter)

    def _score(self, example: Example, rows: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log_probs, old_log_probs), each (n, 1): transitions `steps` of images `rows` under the learner, and as stored."""
        trajectory, settings, device = example.trajectory, example.lesson.group.settings, self.policy.device
        x_t, x_prev = trajectory.latents[rows, steps].to(device), trajectory.latents[rows, steps + 1].to(device)
        timesteps = trajectory.timesteps[steps].to(device)
        with self.policy.acting(LEARNER):
            output = self.policy.predict(x_t, timesteps, example.embeddings, settings.guidance_scale)
        _, log_probs = step_with_log_prob(
            self.schedule, output, timesteps, x_t, num_inference_steps=settings.num_inference_steps, eta=settings.eta, prev_sample=x_prev
        )
        return log_probs[:, None], trajectory.log_probs[rows, steps].to(device)[:, None]

    def _forward_pass(self, examples: Sequence[Example], meter: _Meter) -> Iterator[None]:
        """One optimizer step of the forward-process objective on `forward_batch` noised images.

        Groups are taken by turns at random; siblings share their time and noise, so that what they have in common cancels.
        """
        k = max(len(e.lesson.advantages) for e in examples)
        draws = max(1, self.learn.forward_batch // k)
        order = torch.randperm(len(examples), generator=self.rng).tolist()
        times = _stratified(draws, self.schedule.num_train_timesteps, self.rng)
        self.optimizer.zero_grad(set_to_none=True)
        per_batch = max(1, self.learn.micro_batch // k)
        drift = 0.0
        for start in range(0, draws, per_batch):
            chosen = [(examples[order[i % len(order)]], times[i]) for i in range(start, min(draws, start + per_batch))]
            loss, moved = self._forward_loss(chosen)
            self._backward(loss.sum() / (draws * k), meter)
            drift += moved / (draws * k)
            yield
        meter.drift = drift
        self._step(meter)

    def _forward_loss(self, chosen: Sequence[tuple[Example, torch.Tensor]]) -> tuple[torch.Tensor, float]:
        """Loss per image over all images of the chosen (example, time) pairs, and the summed squared drift."""
        device = self.policy.device
        clean = [e.trajectory.clean_latents for e, _ in chosen]
        x0 = torch.cat(clean).to(device).float()
        noise = torch.cat([randn(c.shape[1:], self.rng, c.device, torch.float32).expand_as(c) for c in clean]).to(device)
        t = torch.cat([time.expand(len(c)) for (_, time), c in zip(chosen, clean, strict=True)]).to(device)
        words = torch.cat([e.embeddings[0].expand(len(c), -1, -1) for (e, _), c in zip(chosen, clean, strict=True)])
        x_t = self.schedule.add_noise(x0, noise, t).to(self.policy.dtype)
        with torch.no_grad(), self.policy.acting(PUBLISHED):
            v_ref = self.schedule.to_velocity(self.policy.predict(x_t, t, (words, words), 1.0), x_t, t)
        with self.policy.acting(LEARNER):
            v_theta = self.schedule.to_velocity(self.policy.predict(x_t, t, (words, words), 1.0), x_t, t)
        advantages = torch.cat([e.advantages for e, _ in chosen]).to(device)
        loss, stats = forward_process(v_theta, v_ref, self.schedule.velocity(x0, noise, t), advantages, beta=self.learn.beta)
        return loss, float(stats["drift"].sum())

    def _backward(self, loss: torch.Tensor, meter: _Meter) -> None:
        if not torch.isfinite(loss):
            raise LearningError("The loss of an update was not finite; the update was thrown away and nothing was published.")
        loss.backward()
        meter.loss += float(loss.detach())

    def _step(self, meter: _Meter) -> None:
        parameters = self.policy.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.learn.grad_clip)
        if not torch.isfinite(norm):
            raise LearningError("A gradient was not finite; the update was thrown away and nothing was published.")
        meter.grad_norm = float(norm)
        self.optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in parameters):
            raise LearningError("A weight became non-finite; the update was thrown away and nothing was published.")

    def save(self, folder: Path) -> None:
        """Writes optimizer.safetensors and rng.safetensors: with the adapter, all that resuming needs."""
        slots = self.optimizer.state_dict()["state"]
        save_file(
            {f"{i}.{name}": torch.as_tensor(value).cpu() for i, state in slots.items() for name, value in state.items()},
            folder / "optimizer.safetensors",
        )
        save_file({"rng": self.rng.get_state()}, folder / "rng.safetensors")

    def load(self, folder: Path) -> None:
        """Resumes what `save` wrote; where it is gone (an old version's), the optimizer starts afresh."""
        self.restart()
        state: dict[int, dict[str, torch.Tensor]] = {}
        if (folder / "optimizer.safetensors").exists():
            for key, value in load_file(folder / "optimizer.safetensors").items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if (folder / "rng.safetensors").exists():
            self.rng.set_state(load_file(folder / "rng.safetensors")["rng"])


class _Meter:
    """Gathers the numbers of one update."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.loss = self.drift = 0.0
        self.grad_norm = self.approx_kl = math.nan
        self.summary: dict[str, float] = {}

    def trajectory(self, joined: ObjectiveStats) -> None:
        self.summary = joined.summary(self.dimensions)
        self.approx_kl = self.summary["approx_kl"]

    def stats(self, examples: Sequence[Example], young: Sequence[Example], seconds: float) -> UpdateStats:
        """`kept`: the share of all examples' images whose transitions were used, dropout included."""
        images = sum(len(e.lesson.advantages) for e in examples)
        usable = sum(len(e.lesson.advantages) for e in young)
        shares: dict[str, float] = {}
        for example in examples:
            for source, share in example.lesson.shares.items():
                shares[source] = shares.get(source, 0.0) + share / len(examples)
        return UpdateStats(
            loss=self.loss,
            ratio_mean=self.summary.get("ratio_mean", math.nan),
            ratio_std=self.summary.get("ratio_std", math.nan),
            clipfrac_pos=self.summary.get("clipfrac_pos", math.nan),
            clipfrac_neg=self.summary.get("clipfrac_neg", math.nan),
            approx_kl=self.approx_kl,
            grad_norm=self.grad_norm,
            kept=usable / images * self.summary.get("kept", 1.0) if images else 0.0,
            images=images,
            no_signal=sum(not bool((e.advantages != 0).any()) for e in examples),
            seconds=seconds,
            shares=shares,
        )


def _micro_batches(example: Example, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, steps), each (n,), n <= size, over all transitions of the images that have an advantage."""
    images = (example.advantages != 0).nonzero()[:, 0]
    steps = torch.arange(example.trajectory.log_probs.shape[1])
    for pair in torch.cartesian_prod(images, steps).split(size):
        yield pair[:, 0], pair[:, 1]


def _stratified(n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """(n,) timesteps in 0..steps-1, one from each of n equal parts, in random order: every step sees all noise levels."""
    spots = (torch.arange(n) + torch.rand(n, generator=rng)) / n
    return (spots * steps).long().clamp(max=steps - 1)[torch.randperm(n, generator=rng)]
