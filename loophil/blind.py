"""The blind test: base and tuned of one prompt and seed, side by side, and which is which is known here alone until somebody has chosen.

It makes up the questions and files the answers; who draws is given, what the answers amount to is in the store.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from loophil.errors import InvalidInput
from loophil.prompts import expand
from loophil.store import Store
from loophil.types import Look, Pair

OPEN = 256  # questions that may be answered still; older ones are forgotten
SIDES = {"left": True, "right": False}  # whether the chosen side is the left one


@dataclass(frozen=True)
class Question:
    """Two pictures of one prompt and seed, by the base and by this version, in a random order."""

    id: str
    version: int
    prompt: str
    left: Image.Image
    right: Image.Image


class BlindTest:
    """draw: (prompt, seed, who draws) -> a picture by each;  prompts: asked one after another, from a random one on. Thread-safe."""

    def __init__(self, store: Store, draw: Callable[[str, int, Sequence[Look]], Sequence[Image.Image]], prompts: Sequence[str]) -> None:
        self._store, self._draw, self._prompts = store, draw, tuple(prompts)
        self._random = random.SystemRandom()
        self._turn = self._random.randrange(len(self._prompts))
        self._asked: OrderedDict[str, Pair] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, rater: str, version: int | None = None) -> Question:
        """A new question about this version, None = the one in use: a test of many pairs is to be of one. InvalidInput for the base."""
        version = self._store.version(self._store.current_version().number if version is None else version).number
        if version == 0:
            raise InvalidInput("Nothing was learned yet, so there is nothing to compare: rate some groups first.")
        with self._lock:
            self._turn = (self._turn + 1) % len(self._prompts)
            prompt = self._prompts[self._turn]
        key, seed, left_is_tuned = f"{self._random.getrandbits(128):032x}", self._random.getrandbits(48), self._random.random() < 0.5
        prompt = expand(prompt, seed=seed)
        looks = (Look(version), Look(0)) if left_is_tuned else (Look(0), Look(version))
        left, right = self._draw(prompt, seed, looks)
        with self._lock:
            self._asked[key] = Pair(prompt, seed, version, 0, rater, "", left_is_tuned, key=key)
            while len(self._asked) > OPEN:
                self._asked.popitem(last=False)
        return Question(key, version, prompt, left, right)

    def answer(self, question: str, choice: str, rater: str, milliseconds: int | None = None) -> Pair:
        """Files "left", "right" or "tie" of this rater, once however often it is sent; the pair, which now says who was who.

        InvalidInput for another choice, another's question, or one that is no longer open (the program was started anew since).
        """
        if choice not in (*SIDES, "tie"):
            raise InvalidInput(f"Unknown choice {choice!r}. Choose from: left, right, tie.")
        with self._lock:
            asked = self._asked.get(question)
        if asked is None or asked.rater != rater:
            raise InvalidInput("This question is no longer open: take the next one.")
        side = choice if choice == "tie" else "tuned" if SIDES[choice] == asked.left_is_tuned else "base"
        pair = replace(asked, choice=side, milliseconds=milliseconds)
        self._store.add_pair(pair)
        return pair
