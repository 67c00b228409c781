"""A model in training: optimizers, moving average, checkpoint, and a loop by the clock. Knows nothing of what is trained."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024), convolutions as matrices.

    On these small networks it needs about a fifth of AdamW's steps; torch's own takes two-dimensional parameters only.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            gradients = []
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                gradients.append(p.grad.lerp(average, group["momentum"]))
            for p, gradient in zip(group["params"], _orthogonal(gradients), strict=True):
                p.add_(gradient, alpha=-group["lr"])


def _orthogonal(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The nearest matrices with all singular values near 1, scaled so that their entries do not depend on their shape."""
    wide = []
    for gradient in gradients:
        matrix = gradient.flatten(1)
        matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        wide.append(matrix / (matrix.norm() + 1e-7))
    # On the small square matrices alone, those of one size together: p(G) commutes with G, so p(G)p(G')... is applied once, at the end.
    whitening: dict[int, torch.Tensor] = {}
    for size in {len(u) for u in wide}:
        alike = [i for i, u in enumerate(wide) if len(u) == size]
        whitening |= zip(alike, _whitening([wide[i] for i in alike]), strict=True)
    made = []
    for i, (gradient, u) in enumerate(zip(gradients, wide, strict=True)):
        u = whitening[i] @ u
        rows, columns = gradient.flatten(1).shape
        made.append(((u.T if rows > columns else u) * max(1.0, rows / columns) ** 0.5).reshape(gradient.shape))
    return made


def _whitening(wide: list[torch.Tensor]) -> torch.Tensor:
    """(n, size, size): for each of n matrices with `size` rows what turns it nearly orthogonal."""
    gram = torch.stack([u @ u.T for u in wide])
    identity = torch.eye(gram.shape[-1], device=gram.device)
    total = identity.expand_as(gram)
    for _ in range(5):
        step = torch.baddbmm(3.4445 * identity - 4.7750 * gram, gram, gram, alpha=2.0315)
        total, gram = step @ total, step @ gram @ step
    return total


@dataclass
class Stage:
    """One model in training: weights, optimizers and average, saved together and resumed exactly."""

    path: Path
    model: Any  # a torch.nn.Module; which one, its trainer knows
    optimizers: list[torch.optim.Optimizer]
    rates: tuple[float, float]
    decay: float
    average: dict[str, torch.Tensor]
    step: int = 0

    @classmethod
    def open(cls, path: Path, model: Any, device: torch.device, *, rates: tuple[float, float], decay: float) -> "Stage":
        """The stage kept at `path`, or a new one. rates: of the matrices (Muon) and of the rest (AdamW); decay: of the average."""
        model.to(device, memory_format=torch.channels_last)
        inner = [p for n, p in model.named_parameters() if p.ndim in (2, 4) and not re.search(r"embedding|conv_in|conv_out|positional|attnpool", n)]
        inside = {id(p) for p in inner}
        adam = torch.optim.AdamW([p for p in model.parameters() if id(p) not in inside], lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0)
        average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        stage = cls(path, model, [Muon(inner, rates[0]), adam], rates, decay, average)
        if path.exists():
            stage._load()
        return stage

    @property
    def name(self) -> str:
        """What is being trained."""
        return self.path.stem

    def _load(self) -> None:
        kept = load_file(self.path)
        self.step = int(kept["step"])
        self.model.load_state_dict({k[6:]: v for k, v in kept.items() if k.startswith("model.")})
        self.average = {k: kept[f"average.{k}"].to(v.device) for k, v in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in kept.items():
                if key.startswith(f"optimizer{number}."):
                    _, index, slot = key.split(".")
                    state.setdefault(int(index), {})[slot] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def save(self) -> None:
        """Writes model, average and optimizers to one file; readers never see half of it."""
        kept = {f"model.{k}": v for k, v in self.model.state_dict().items()} | {f"average.{k}": v for k, v in self.average.items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, slots in optimizer.state_dict()["state"].items():
                kept |= {f"optimizer{number}.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
        kept["step"] = torch.tensor(self.step)
        self.path.parent.mkdir(exist_ok=True)
        save_file({k: v.contiguous().clone() for k, v in kept.items()}, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def advance(self, loss: torch.Tensor, pace: float) -> None:
        """One optimizer step at `pace` times the learning rates, with gradient clipping and the moving average."""
        self.step += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * pace * min(1.0, self.step / 50)
            optimizer.step()
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.average[key].lerp_(value, 1 - decay) if value.is_floating_point() else self.average[key].copy_(value)

    def averaged(self) -> Any:
        """The model with its averaged weights (in place: for writing, not for training on)."""
        self.model.load_state_dict(self.average)
        return self.model.eval()


def timed(stage: Stage, minutes: float) -> Iterator[tuple[torch.Generator, float]]:
    """(a generator seeded by the step, pace) until the time is up; the last third cools down. Prints progress, saves."""
    start = saved = time.monotonic()
    first = stage.step
    while (elapsed := (time.monotonic() - start) / 60) < minutes:
        yield torch.Generator().manual_seed(1_000_003 * stage.step + 7), min(1.0, 0.03 + 3 * (1 - elapsed / minutes))
        if stage.step % 25 == 0:
            print(
                f"{stage.name} step {stage.step}  {(stage.step - first) / elapsed if elapsed else 0:.1f} steps/min  {minutes - elapsed:.0f} min left",
                flush=True,
            )
        if time.monotonic() - saved > 240:
            stage.save()
            saved = time.monotonic()
    stage.save()
