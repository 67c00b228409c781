"""Groups with advantages -> new learner weights and UpdateStats. One trainer for every objective; it publishes nothing.

An update has two parts on the same advantages:
1. the trajectory objective (LOOP by default) on the stored transitions of groups that come with them, each once a pass, if young enough;
2. the forward-process objective on the clean latents of all groups, however old: so that no rating is ever used up.

Each part has an AdamW of its own: their gradients differ by orders of magnitude, and one that sets the other's step size would
silence it. Both accumulate gradients over micro-batches (their size changes memory, not the result) and yield between them, so that
a waiting person's drawing can slip in; where memory runs out they get smaller. Nothing non-finite reaches the weights: the learner goes back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from loophil.config import Learn
from loophil.errors import LearningError
from loophil.families import Embeddings, Words, expand, join, placed
from loophil.memory import Room, out_of_memory
from loophil.meter import Done, Meter
from loophil.objectives import OBJECTIVES, ObjectiveStats, base_kl, forward_process, fpo, per_dimension, sample_dropout, sft
from loophil.optimizers import adamw, restore, state_of
from loophil.policy import LEARNER, PUBLISHED, Policy
from loophil.scheduler import Schedule, randn, step_with_log_prob, stratified
from loophil.types import Lesson, Trajectory, UpdateStats

Steps = Generator[Done, None, UpdateStats]
Weights = Mapping[str, torch.Tensor]  # of a LoRA
TRAJECTORY, FORWARD = "trajectory", "forward"
FORWARD_PROCESS = "forward_process"


@dataclass(frozen=True, eq=False)
class Example:
    """A lesson with its stored tensors, ready for the device. `trajectory.latents` may be empty (S = 0).

    words: encodes its prompt, if that is not known;  drawn_by: reads the weights of the policy that drew it, None = the reference's
    """

    lesson: Lesson
    trajectory: Trajectory
    words: Callable[[], Embeddings]
    drawn_by: Callable[[], Weights | None] = lambda: None

    @property
    def embeddings(self) -> Embeddings:
        """Of its prompt, when it is its turn: an update knows more groups than it comes to."""
        return self.words()

    @property
    def advantages(self) -> torch.Tensor:
        """(k,) float32."""
        return torch.from_numpy(self.lesson.advantages).float()


@dataclass(frozen=True, eq=False)
class Noised:
    """n images as the forward process meets them: x_t, v (n, C, H, W), t and advantages (n,), the words of n prompts, and who drew them."""

    x_t: torch.Tensor
    t: torch.Tensor
    words: Words
    v: torch.Tensor
    advantages: torch.Tensor
    drawer: Weights | None

    def __len__(self) -> int:
        return len(self.t)


class Trainer:
    """AdamW on the learner's LoRA, one for each part. `rng` drives the times and the noise of the forward process; all of it is saved."""

    def __init__(self, policy: Policy, schedule: Schedule, learn: Learn, *, seed: int = 0) -> None:
        self.policy = policy
        self.schedule = schedule
        self.learn = learn
        self.rng = torch.Generator().manual_seed(seed)
        self.room = Room(learn.micro_batch, policy.gauge)
        self._warm = not policy.memory.compile
        self.restart()

    def restart(self) -> None:
        """Fresh optimizers, as for version 0."""
        parameters, eight_bit = self.policy.parameters(), self.policy.memory.adam_8bit
        self.optimizers = {part: adamw(parameters, rate, eight_bit=eight_bit) for part, rate in self._rates().items()}

    def adjust(self, learn: Learn) -> None:
        """Goes on with other knobs; what the optimizers remember stays."""
        if learn.micro_batch != self.learn.micro_batch:
            self.room = Room(learn.micro_batch, self.policy.gauge)
        self.learn = learn
        for part, rate in self._rates().items():
            for group in self.optimizers[part].param_groups:
                group["lr"] = rate

    def _rates(self) -> dict[str, float]:
        return {TRAJECTORY: self.learn.learning_rate, FORWARD: self.learn.forward_learning_rate}

    def example(self, lesson: Lesson, trajectory: Trajectory, drawn_by: Callable[[], Weights | None] = lambda: None) -> Example:
        """A lesson made ready; drawn_by: see Example."""
        group = lesson.group
        return Example(lesson, trajectory, partial(self.policy.encode_prompt, group.prompt, group.settings.negative_prompt), drawn_by)

    def update(self, examples: Sequence[Example]) -> Steps:
        """Trains the learner on all examples but those without an advantage; yields how far it is between micro-batches, returns UpdateStats.

        Raises LearningError when anything is not finite; then, as after any other exception, the learner and the optimizers are what they
        were before (the rng is not: a second try meets other noise). Closed half-way, it leaves the learner as far as it got: discard it.
        Where memory runs out it begins again, with less at a time and the same noise, until nothing less is left.
        """
        rng = self.rng.get_state()
        if examples and not self._warm:
            self._warm = True
            yield 0, 1, "compiling the model: the first update is slow"
        if examples:
            told = examples[0].embeddings, examples[0].lesson.group.settings.guidance_scale
            self.room.measure(partial(self.policy.rehearse, *told), self.policy.spare)
        while True:
            try:
                return (yield from self._update(examples))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or not self.room.less(self.policy.spare):
                    raise
            self.rng.set_state(rng)

    def _update(self, examples: Sequence[Example]) -> Steps:
        """One try of it."""
        started = time.monotonic()
        telling = [e for e in examples if bool((e.advantages != 0).any())]
        young = [e for e in telling if e.lesson.age <= self.learn.max_staleness and e.trajectory.log_probs.shape[1]]
        meter = Meter(self._length(young, telling), self.room.words)
        weights = self.policy.weights(LEARNER)
        states = {key: value.clone() for key, value in state_of(self.optimizers).items()}  # not on the device, which may be small
        try:
            for example in telling:
                _refuse_non_finite(example)
            for number in range(self.learn.trajectory_passes if young else 0):
                if not (yield from self._trajectory_pass(young, meter, first=number == 0)):
                    break
            for number in range(self.learn.forward_passes if telling else 0):
                yield from self._forward_pass(telling, meter, first=number == 0)
        except Exception:
            self.policy.train_from(weights)
            restore(self.optimizers, states, eight_bit=self.policy.memory.adam_8bit)
            raise
        return meter.stats([e.lesson for e in examples], {e.lesson.group.id for e in young}, time.monotonic() - started)

    def _length(self, young: Sequence[Example], telling: Sequence[Example]) -> int:
        """Micro-batches of an update, if no pass is cut short."""
        learn = self.learn
        trajectories = sum(len(list(_micro_batches(e, self.room.size))) for e in young)
        k = max((len(e.lesson.advantages) for e in telling), default=1)
        turns = [self._turn_count(telling, first=number == 0) for number in range(learn.forward_passes if telling else 0)]
        forward = sum(math.ceil(n / max(1, self.room.size // k)) * math.ceil(k / self.room.size) for n in turns)
        return learn.trajectory_passes * trajectories + forward

    def _trajectory_pass(self, examples: Sequence[Example], meter: Meter, *, first: bool) -> Generator[Done, None, bool]:
        """One optimizer step of the trajectory objective over every transition of every example; whether it was taken.

        It is not where sample dropout left nothing, nor, after the first pass, where the KL has passed its cap.
        """
        learn, D = self.learn, self.policy.dimensions
        objective = OBJECTIVES[learn.objective]
        total = sum(e.trajectory.log_probs.numel() for e in examples)
        self.optimizers[TRAJECTORY].zero_grad(set_to_none=True)
        joined: ObjectiveStats | None = None
        loss_sum = 0.0
        for example in examples:
            for rows, steps in _micro_batches(example, self.room.size):
                log_probs, old, output = self._score(example, rows, steps)
                mask = sample_dropout(log_probs, old, per_dimension(learn.dropout_nats, D))
                advantages = example.advantages[rows].to(log_probs.device)
                loss, stats = objective(log_probs, old, advantages, clip_range=per_dimension(learn.clip_nats, D), mask=mask, total=total)
                if learn.base_kl:
                    loss = loss + learn.base_kl * self._base_kl(example, rows, steps, output).sum() / total
                loss_sum += self._backward(loss)
                joined = stats if joined is None else joined + stats
                yield meter.tick()
        assert joined is not None  # an example that tells has an image with an advantage
        meter.summary = joined.summary(D)
        if not meter.summary["kept"] or (not first and meter.summary["approx_kl"] > learn.kl_cap_nats):
            return False
        meter.stepped(loss_sum, self._step(TRAJECTORY), learn.objective, [e.lesson for e in examples])
        return True

    @torch.no_grad()
    def drift(self, example: Example) -> float:
        """How far the policy that drew a group is from the reference: mean over its stored transitions of log p_old - log p_ref, in nats a step.

        Its expectation is their KL divergence. NaN where no transition is stored.
        """
        if not example.trajectory.log_probs.shape[1]:
            return math.nan
        images = torch.arange(len(example.trajectory.clean_latents))
        scored = [self._score(example, *part, self.policy.reference) for part in _transitions(example, images, self.room.size)]
        return float(torch.cat([old - log_probs for log_probs, old, _ in scored]).mean()) * self.policy.dimensions

    def _base_kl(self, example: Example, rows: torch.Tensor, steps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """(n,) KL of transitions `steps` of images `rows`, for which the learner said `output`, from the reference's."""
        settings, device = example.lesson.group.settings, self.policy.device
        with torch.no_grad():
            base = self._score(example, rows, steps, self.policy.reference)[2]
        x_t, timesteps = example.trajectory.latents[rows, steps].to(device), example.trajectory.timesteps[steps].to(device)
        how: dict[str, Any] = {"num_inference_steps": settings.num_inference_steps, "eta": settings.eta}
        mean, base_mean = (self.schedule.mean(said, timesteps, x_t, **how) for said in (output, base))
        return base_kl(mean, base_mean, self.schedule.std(timesteps, **how).to(device))

    def _score(
        self, example: Example, rows: torch.Tensor, steps: torch.Tensor, who: str = LEARNER
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(log_probs (n, 1), old_log_probs (n, 1), model outputs (n, C, H, W)): transitions `steps` of images `rows` under `who`, and as stored."""
        trajectory, settings, device = example.trajectory, example.lesson.group.settings, self.policy.device
        x_t, x_prev = trajectory.latents[rows, steps].to(device), trajectory.latents[rows, steps + 1].to(device)
        timesteps = trajectory.timesteps[steps].to(device)
        with self.policy.acting(who):
            output = self.policy.predict(x_t, timesteps, example.embeddings, settings.guidance_scale)
        _, log_probs = step_with_log_prob(
            self.schedule, output, timesteps, x_t, num_inference_steps=settings.num_inference_steps, eta=settings.eta, prev_sample=x_prev
        )
        return log_probs[:, None], trajectory.log_probs[rows, steps].to(device)[:, None], output

    def _forward_pass(self, examples: Sequence[Example], meter: Meter, *, first: bool) -> Iterator[Done]:
        """One optimizer step of the forward-process objective on `forward_batch` noised images; on more where more is new."""
        chosen, loss_sum = self._turns(examples, first=first), 0.0
        times = stratified(len(chosen), self.schedule.num_train_timesteps, self.learn.forward_fraction, self.rng)
        n = sum(len(e.lesson.advantages) for e in chosen)
        self.optimizers[FORWARD].zero_grad(set_to_none=True)
        for parts in self._noised_batches(chosen, times):
            loss_sum += self._backward(self._forward_loss(parts).sum() / n)
            yield meter.tick()
        meter.stepped(loss_sum, self._step(FORWARD), FORWARD_PROCESS, [e.lesson for e in chosen])

    def _turns(self, examples: Sequence[Example], *, first: bool) -> list[Example]:
        """Groups for one step, at random; in the first of an update those come before that no version has learned from, all of them.

        Not in each: what was said last would weigh more than all that was said before, and the policy would follow it to and fro.
        """
        order = torch.randperm(len(examples), generator=self.rng).tolist()
        if first:
            order.sort(key=lambda i: not examples[i].lesson.fresh)
        return [examples[order[i % len(order)]] for i in range(self._turn_count(examples, first=first))]

    def _turn_count(self, examples: Sequence[Example], *, first: bool) -> int:
        k = max(len(e.lesson.advantages) for e in examples)
        return max(1, self.learn.forward_batch // k, sum(e.lesson.fresh for e in examples) if first else 0)

    def _noised_batches(self, examples: Sequence[Example], times: torch.Tensor) -> Iterator[list[Noised]]:
        """The groups in turn, each at a time of its own; as many images together as a micro-batch takes."""
        batch: list[Noised] = []
        for example, moment in zip(examples, times, strict=True):
            clean, drawer = example.trajectory.clean_latents, example.drawn_by()
            noise = randn(clean.shape[1:], self.rng, clean.device, torch.float32)
            for rows in torch.arange(len(clean)).split(self.room.size):
                if sum(map(len, batch)) + len(rows) > self.room.size:
                    yield batch
                    batch = []
                batch.append(self._noised(example, rows, moment, noise, drawer))
        yield batch

    def _noised(self, example: Example, rows: torch.Tensor, moment: torch.Tensor, noise: torch.Tensor, drawer: Weights | None) -> Noised:
        """Images `rows` of a group that `drawer` drew, None = the reference, at one time and with one noise (C, H, W).

        Siblings share both, so that what they have in common cancels: their advantages add up to 0. Therefore the reference is
        the policy that drew the group, as in DiffusionNFT: held against the base, a group would draw the model back to it, by all that had been
        learned when it was drawn. Since every group goes on teaching, the model settles near the mean of what they ask for: n groups move it as far
        as about log n times one, and no further.
        """
        device, words = self.policy.device, self.policy.unguided(example.embeddings, example.lesson.group.settings.guidance_scale)
        x0 = example.trajectory.clean_latents[rows].to(device).float()
        noise, t = noise.expand_as(x0).to(device), moment.expand(len(x0)).to(device)
        x_t, v = self.schedule.add_noise(x0, noise, t).to(self.policy.dtype), self.schedule.velocity(x0, noise, t)
        return Noised(x_t, t, expand(placed(words, device), len(x0)), v, example.advantages[rows].to(device), drawer)

    def _forward_loss(self, parts: Sequence[Noised]) -> torch.Tensor:
        """(n,) losses of all these images, in as few batches as there are policies that drew them: a small one takes nearly as long."""
        references = []
        for _, drawn in groupby(parts, key=lambda part: id(part.drawer)):
            same = list(drawn)
            with torch.no_grad(), self._drawing(same[0].drawer):
                references.append(self._velocity(same))
        with self.policy.acting(LEARNER):
            v_theta = self._velocity(parts)
        v_ref, v, advantages = torch.cat(references), torch.cat([part.v for part in parts]), torch.cat([part.advantages for part in parts])
        objective = fpo if self.learn.forward_objective == "fpo" else partial(forward_process, beta=self.learn.beta)
        loss, _ = objective(v_theta, v_ref, v, advantages)
        return loss + self.learn.sft * sft(v_theta, v, advantages) if self.learn.sft else loss

    def _velocity(self, parts: Sequence[Noised]) -> torch.Tensor:
        """(n, C, H, W) of all these images, in one batch. Guidance is off: it is a way of drawing."""
        x_t, t, words = torch.cat([part.x_t for part in parts]), torch.cat([part.t for part in parts]), join([part.words for part in parts])
        return self.schedule.to_velocity(self.policy.predict(x_t, t, Embeddings(words, words), 1.0), x_t, t)

    @contextmanager
    def _drawing(self, weights: Weights | None) -> Iterator[None]:
        """Within the block the denoiser has these weights, None = is the reference."""
        with self.policy.wearing(weights) if weights else nullcontext(), self.policy.acting(PUBLISHED if weights else self.policy.reference):
            yield

    def _backward(self, loss: torch.Tensor) -> float:
        """Adds the loss's gradient, times D: both losses are means over the D dimensions, whose gradients a half-precision base would lose."""
        if not torch.isfinite(loss):
            raise LearningError("The loss of an update was not finite; the update was thrown away and nothing was published.")
        with self.policy.acting(LEARNER):  # once for all blocks that are recomputed, see Policy
            (loss * self.policy.dimensions).backward()
        return float(loss.detach())

    def _step(self, part: str) -> float:
        """One step of a part's optimizer with the gradients gathered, clipped; the norm they had before."""
        parameters = self.policy.parameters()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= self.policy.dimensions  # see _backward
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.learn.grad_clip)
        if not torch.isfinite(norm):
            raise LearningError("A gradient was not finite; the update was thrown away and nothing was published.")
        self.optimizers[part].step()
        if not all(bool(torch.isfinite(p).all()) for p in parameters):
            raise LearningError("A weight became non-finite; the update was thrown away and nothing was published.")
        return float(norm)

    def save(self, folder: Path) -> None:
        """Writes optimizer.safetensors and rng.safetensors: with the published adapter, all that resuming needs.

        The learner's weights are in the first: with a moving average (`ema`) they are not those that are published.
        """
        learner = {f"learner.{key}": value for key, value in self.policy.weights(LEARNER).items()}
        save_file(learner | state_of(self.optimizers), folder / "optimizer.safetensors")
        save_file({"rng": self.rng.get_state()}, folder / "rng.safetensors")

    def load(self, folder: Path) -> None:
        """Resumes what `save` wrote; where it is gone (an old version's), the optimizers start afresh from the published weights."""
        self.restart()
        self.policy.discard()
        if (folder / "optimizer.safetensors").exists():
            kept = load_file(folder / "optimizer.safetensors")
            learner = {key: kept.pop(key) for key in list(kept) if key.startswith("learner.")}
            self.policy.train_from({key.removeprefix("learner."): value for key, value in learner.items()})
            restore(self.optimizers, kept, eight_bit=self.policy.memory.adam_8bit)
        if (folder / "rng.safetensors").exists():
            self.rng.set_state(load_file(folder / "rng.safetensors")["rng"])


def _refuse_non_finite(example: Example) -> None:
    """LearningError where an advantage or a stored number is not finite."""
    kept = example.trajectory
    numbers = {"a latent": kept.latents, "a clean latent": kept.clean_latents, "a log-probability": kept.log_probs}
    for name, tensor in ({"an advantage": example.advantages} | numbers).items():
        if not torch.isfinite(tensor).all():
            raise LearningError(
                f"Group {example.lesson.group.id} has {name} that is not finite; the update was thrown away and nothing was published."
            )


def _micro_batches(example: Example, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, steps), each (n,), n <= size, over all transitions of the images that have an advantage."""
    return _transitions(example, (example.advantages != 0).nonzero()[:, 0], size)


def _transitions(example: Example, images: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(images, steps), each (n,), n <= size, over all transitions of these images.

    Step by step, as they were drawn: with size k a micro-batch is the very batch of the drawing, and rho is 1 to the last bit.
    """
    steps = torch.arange(example.trajectory.log_probs.shape[1])
    for pair in torch.cartesian_prod(steps, images).split(size):
        yield pair[:, 1], pair[:, 0]
