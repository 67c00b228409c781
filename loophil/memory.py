"""How much of an update fits into memory at once: measured on a GPU, halved wherever memory runs out.

    Gauge    what a GPU says of its memory; other devices have none of their own, and no gauge
    Room     how many images go into one forward and backward, and why

The gradient is the same whatever fits. What of a model lies where is offload.py's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

USUAL = 8  # images in one forward and backward where nobody says and nothing can be measured
MOST = 16  # that are chosen: more make an update no faster, and a person who waits for a drawing waits for them
SPARE = 0.85  # of what is free may be used: memory is not free in one piece
SIGNS = ("out of memory", "not enough memory", "can't allocate memory")  # CUDA and MPS; a CPU, by system


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory ran out. Only CUDA has an exception of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS))


class Gauge(Protocol):
    """A device's own memory, in bytes."""

    def in_use(self) -> tuple[int, int]:
        """(in use by anybody, in all)."""

    def free(self) -> int:
        """That this process could still use."""

    def peak(self, work: Callable[[], None]) -> int:
        """That `work()` takes at its peak, beyond what is in use already."""

    def tidy(self) -> None:
        """Gives back what is held in reserve."""


@dataclass(frozen=True)
class CudaGauge:
    """What CUDA and torch's allocator say of one device."""

    device: torch.device

    def in_use(self) -> tuple[int, int]:
        """The driver's, whoever it is that uses it."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free, total

    def free(self) -> int:
        """What the driver has, and what the allocator holds in reserve."""
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def peak(self, work: Callable[[], None]) -> int:
        """By the allocator, whose peak begins again here."""
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before

    def tidy(self) -> None:
        """The allocator's reserve."""
        torch.cuda.empty_cache()


def gauge_of(device: torch.device) -> Gauge | None:
    """A GPU's gauge; None for devices whose memory cannot be measured so."""
    return CudaGauge(device) if device.type == "cuda" else None


@dataclass
class Room:
    """How many images go into one forward and backward: `asked`, or if that is 0 as many as fit, as far as it can be measured.

    words   what the status should say of it, () = nothing
    """

    asked: int
    gauge: Gauge | None = None
    words: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self.size = self.asked or USUAL
        self._measured = self.gauge is None

    def measure(self, rehearse: Callable[[], None], spare: Callable[[], bool]) -> None:
        """Once, with a forward and backward of one image: where fewer fit than usual, `spare()` and again; then takes as many as fit.

        spare()   turns gradient checkpointing on, if that is left open; whether it did
        """
        if self._measured or self.gauge is None:
            return
        self._measured = True
        fit = self._fit(self.gauge, rehearse)
        if fit < self.size and spare():
            fit = self._fit(self.gauge, rehearse)
        if not self.asked:
            self.size = max(1, min(fit, MOST))

    def less(self, spare: Callable[[], bool]) -> bool:
        """Memory ran out: half as many from now on, or if it is one already, `spare()`. Whether anything is left to try."""
        before, self.size = self.size, max(1, self.size // 2)
        if before == 1 and not spare():
            return False
        images = "1 image" if self.size == 1 else f"{self.size} images"
        self.words = (f"{images} at a time since memory ran out",)
        if self.gauge is not None:
            self.gauge.tidy()
        return True

    def _fit(self, gauge: Gauge, rehearse: Callable[[], None]) -> int:
        """How many images fit; 0 where not even one does."""
        room = SPARE * gauge.free()
        try:
            return int(room / max(1, gauge.peak(rehearse)))
        except torch.OutOfMemoryError:
            return 0
