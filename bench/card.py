"""A GPU that nobody has: what lies on it has a shape and no values, so that a program shows what memory it would take there.

Its tensors are those of torch's `meta` device, which must not be mixed with others, as on a GPU. A storage counts from its making until nobody holds
it, in steps of 512 bytes, as CUDA's allocator counts; more than the card has raises what CUDA raises. What is read back from it is ones. Attention is
that of PyTorch's fused kernels, which never hold a whole matrix of scores. Not counted: what an allocator loses between its blocks, workspaces of
cuDNN and cuBLAS, CUDA itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ON_CARD = torch.device("meta")
BLOCK = 512
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default, aten.copy.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor)


@contextmanager
def card_of(size: int) -> Iterator[Card]:
    """A card of so many bytes, within the block."""
    attention = _attention(functional.scaled_dot_product_attention)
    with (
        patch.object(functional, "scaled_dot_product_attention", attention),
        patch.object(shapes, "meta_nonzero_assume_all_nonzero", True),  # all are ones
        Card(size) as card,
    ):
        yield card


class Card(TorchDispatchMode):
    """Counts within its block, and says as a `memory.Gauge` how much."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.used = self.most = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def in_use(self) -> tuple[int, int]:
        """(in use, in all)."""
        return self.used, self.size

    def free(self) -> int:
        """Nobody else uses it."""
        return self.size - self.used

    def peak(self, work: Callable[[], Any]) -> int:
        """Beyond what is in use already."""
        before = self.most = self.used
        work()
        return self.most - before

    def tidy(self) -> None:
        """It holds nothing in reserve."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse_mixing(func, [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)])
        if func is aten._local_scalar_dense.default and args[0].device == ON_CARD:
            return args[0].new_ones((), device="cpu").item()
        if func is aten._to_copy.default and args[0].device == ON_CARD and torch.device(kwargs.get("device") or ON_CARD) != ON_CARD:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and args[1].device == ON_CARD != args[0].device:
            return args[0].fill_(1)
        made = func(*args, **kwargs)
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, Tensor) and each.device == ON_CARD:
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Takes a storage that is new into the account, until it is gone."""
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._storages:
            return
        if self.used + size > self.size:
            raise torch.OutOfMemoryError(f"out of memory: {self.used / 1e9:.2f} GB of {self.size / 1e9:.2f} in use, {size / 1e9:.2f} more asked for")
        self.used += size
        self.most = max(self.most, self.used)
        self._storages[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._storages[key]
        self.used -= size


def _refuse_mixing(func: Any, tensors: Sequence[Tensor]) -> None:
    """What CUDA refuses, too: tensors here and there in one operation, unless one of them is a single number, or it is a copy or an index."""
    there, here = ([each for each in tensors if (each.device == ON_CARD) is on] for on in (True, False))
    if not there or not here or func in COPIES or (func in INDEXED and tensors[0].device == ON_CARD):
        return
    if func in INDEXED or any(each.dim() for each in here) or not any(each.dim() for each in there):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} has some on the card and some in the computer's memory.")


def load(part: nn.Module) -> None:
    """A model that was built on the card has weights that are ones then, in the computer's memory, as if it had been loaded."""
    part._apply(lambda weight: torch.ones((), dtype=weight.dtype).expand(weight.shape))


def _attention(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention on the card, where torch itself would choose its simplest kernel; elsewhere the stock one."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        if query.device != ON_CARD:
            return stock(query, key, value, attn_mask, **more)
        learned = any(each.requires_grad for each in (query, key, value))
        fused: Tensor = aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, learned)[0]
        return fused

    return attention
