"""Any Python function as a reward: `FILE.py:FUNCTION`.

    def darkness(images, prompts):                    images: list of PIL.Image, prompts: list of str
        return [-float(np.mean(image)) for image in images]      one number for each; None or NaN = missing

An attribute `scale` of the function states its nominal spread; without one it is 1. The file is the owner's own code, run as it
is: never take such a name from a page.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from rewards.base import RewardError, Scores


@dataclass(frozen=True)
class Function:
    """A reward made of a function; `name` is FILE.py:FUNCTION as it was given."""

    name: str
    function: Callable[[list[Image.Image], list[str]], Sequence[float | None]]
    scale: float = 1.0

    @classmethod
    def load(cls, name: str) -> "Function":
        """The function called `FUNCTION` in `FILE.py`."""
        file, _, wanted = name.rpartition(":")
        found = getattr(_module(Path(file)), wanted, None)
        if not callable(found):
            raise RewardError(f"{file} has no function '{wanted}': write FILE.py:FUNCTION with the name of a function in that file.")
        return cls(name, found, _scale(name, found))

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        values = self.function(list(images), list(prompts))
        return Scores(np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64))


def _scale(name: str, function: Any) -> float:
    scale = getattr(function, "scale", 1.0)
    if not isinstance(scale, int | float) or not 0 < scale < np.inf:
        raise RewardError(f"The scale of {name} is {scale!r}: it must be a number above 0, the spread to expect among pictures of one prompt.")
    return float(scale)


def _module(path: Path) -> ModuleType:
    """The file run as a module of its own; it is listed in sys.modules while it lives, as dataclasses in it need."""
    if not path.is_file():
        raise RewardError(f"There is no file {path}.")
    name = f"reward_{path.stem}_{crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RewardError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
