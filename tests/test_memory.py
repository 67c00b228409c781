"""How much fits: measured with one image, halved where memory runs out. No GPU: what one would say of its memory is made up."""

from collections.abc import Callable

import pytest
import torch

from loophil.memory import MOST, USUAL, Room, gauge_of, out_of_memory


class Fake:
    """A GPU with so many bytes free, of which one image takes so many, `saved` of them if activations are recomputed."""

    def __init__(self, free: int, image: int, recomputed: int = 0) -> None:
        self.bytes, self.image, self.recomputed, self.measured, self.tidied = free, image, recomputed, 0, 0

    def in_use(self) -> tuple[int, int]:
        return 0, self.bytes

    def free(self) -> int:
        return self.bytes

    def peak(self, work: Callable[[], None]) -> int:
        work()
        self.measured += 1
        if self.image > self.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.image

    def tidy(self) -> None:
        self.tidied += 1

    def spare(self) -> bool:
        if not self.recomputed:
            return False
        self.image, self.recomputed = self.recomputed, 0
        return True


def nothing() -> None:
    """A rehearsal."""


def never() -> bool:
    return False


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_every_device_s_way_of_saying_that_memory_ran_out_is_known(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not out_of_memory(error)


def test_only_a_cuda_device_has_memory_of_its_own() -> None:
    assert [gauge_of(torch.device(name)) is not None for name in ("cuda", "cpu", "mps")] == [True, False, False]


def test_without_a_gauge_it_is_what_was_asked_for_or_the_usual() -> None:
    rooms = [Room(0), Room(3)]
    for room in rooms:
        room.measure(nothing, never)
    assert [room.size for room in rooms] == [USUAL, 3]
    assert USUAL == 8  # of a CPU's updates, whose last bits depend on it


@pytest.mark.parametrize(
    ("asked", "free", "image", "size"),
    [
        (0, 1000, 50, MOST),  # 0.85 * 1000 / 50 = 17 fit
        (0, 1000, 100, 8),
        (0, 1000, 400, 2),
        (0, 1000, 1001, 1),  # not even one: it is tried all the same
        (12, 1000, 400, 12),  # who asks for so many knows best
    ],
)
def test_as_many_as_fit_are_taken_where_nobody_asked(asked: int, free: int, image: int, size: int) -> None:
    room = Room(asked, Fake(free, image))
    room.measure(nothing, never)
    assert (room.size, room.words) == (size, ())


def test_it_is_measured_once() -> None:
    gauge = Fake(1000, 10)
    room = Room(0, gauge)
    for _ in range(3):
        room.measure(nothing, gauge.spare)
    assert gauge.measured == 1


@pytest.mark.parametrize(
    ("asked", "image", "recomputed", "size"),
    [
        (0, 100, 10, 8),  # eight fit: nothing has to be recomputed
        (0, 200, 60, 14),
        (0, 1001, 425, 2),  # one that does not fit at all does, recomputed
        (16, 100, 10, 16),  # asked for more than fit
    ],
)
def test_activations_are_recomputed_where_fewer_would_fit_than_wanted(asked: int, image: int, recomputed: int, size: int) -> None:
    gauge = Fake(1000, image, recomputed)
    room = Room(asked, gauge)
    room.measure(nothing, gauge.spare)
    assert room.size == size
    assert (gauge.recomputed == 0) is (image > 100 or asked > 8)


def test_where_memory_ran_out_it_is_halved_down_to_one_then_spared_and_said() -> None:
    room, left = Room(6), [True]
    said = []
    while room.less(lambda: bool(left and left.pop())):
        said.append((room.size, *room.words))
    assert said == [
        (3, "3 images at a time since memory ran out"),
        (1, "1 image at a time since memory ran out"),
        (1, "1 image at a time since memory ran out"),
    ]
