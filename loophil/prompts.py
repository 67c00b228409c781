"""Prompts: cleaned at the door, listed in text files, and drawn in a seeded order with wildcards filled in.

    clean_prompt(text)                what a person typed, or InvalidInput
    load_prompts("world")             a list of data/prompts, or a text file with one prompt a line; # begins a comment line
    ours, measured = held_out(list)   the run's prompts, and those that it is measured on and never trains on
    PromptSource(ours, seed).next()   shuffled anew in each round; resumed by its `position`

Wildcards are those of dynamicprompts: `{red|blue}`, `{2$$red|blue|green}` and `__color__`, a line of `wildcards/color.txt` beside
the lists. A prompt without them is taken as it is, so `100% wool, $5 #1` needs no escapes. No torch here, and no pictures.
"""

import os
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loophil.errors import ConfigError, InvalidInput
from loophil.types import MAX_PROMPT

LISTS = Path(__file__).resolve().parents[1] / "data" / "prompts"
HELD_OUT = 24

_TEMPLATE = re.compile(r"\{|__")
_WILDCARD = re.compile(r"__([^\s{}|_](?:[^\s{}|]*?[^\s{}|_])?)__")
# Outside of its own signs (`$$`, `${`, `%{`) dynamicprompts stumbles over these, and cuts the prompt at a #.
_LITERAL = re.compile(r"#|%(?!\{)|(?<!\$)\$(?![${])")
_PRIVATE = 0xE000


def clean_prompt(text: object) -> str:
    """A prompt in NFC without space around it, "" included. InvalidInput: no text, too long, or with characters that are none."""
    if not isinstance(text, str):
        raise InvalidInput(f"A prompt must be text, not {type(text).__name__}.")
    prompt = text.strip()
    if len(prompt) <= MAX_PROMPT:
        prompt = unicodedata.normalize("NFC", prompt)
    if len(prompt) > MAX_PROMPT:
        raise InvalidInput(f"The prompt has {len(prompt)} characters; {MAX_PROMPT} is the most.")
    for position, character in enumerate(prompt, 1):
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            kind = "half of a character" if unicodedata.category(character) == "Cs" else "a control character"
            raise InvalidInput(f"The prompt has {kind} (U+{ord(character):04X}) at position {position}; write it as one line of plain text.")
    return prompt


def known_lists() -> list[str]:
    """Names of the lists that come with the program."""
    return sorted(path.stem for path in LISTS.glob("*.txt"))


def load_prompts(name: str) -> list[str]:
    """The prompts of a list by its name in data/prompts, or of a text file. ConfigError: no such list, an empty or a broken one."""
    path = LISTS / f"{name}.txt" if name in known_lists() else Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # Path.is_file raises for some names, such as very long ones
        raise ConfigError(f"There is no prompt list '{name}'. Choose from: {', '.join(known_lists())}; or give a text file with one prompt a line.")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompt list {path} cannot be read as UTF-8 text: {error}.") from error
    return read_prompts(lines, f"the prompt list {path}")


def read_prompts(lines: Iterable[str], where: str) -> list[str]:
    """The prompts among the lines, each once. ConfigError says which line of `where` cannot be one."""
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            prompts.append(clean_prompt(line))
            expand(prompts[-1], seed=0)
        except InvalidInput as error:
            raise ConfigError(f"Line {number} of {where}: {error}") from error
    if not prompts:
        raise ConfigError(f"{where[0].upper()}{where[1:]} is empty: write one prompt a line.")
    return list(dict.fromkeys(prompts))


def held_out(prompts: Sequence[str], n: int = HELD_OUT, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """(prompts of the run, prompts to measure it on): n of them, at most a quarter, the same ones for every run of one list.

    Of fewer than four prompts none can be spared: they are both, and the figures then say nothing about other prompts.
    """
    kept = min(n, len(prompts) // 4)
    if kept == 0:
        return list(prompts), list(prompts)
    chosen = set(random.Random(seed).sample(range(len(prompts)), kept))
    return [p for i, p in enumerate(prompts) if i not in chosen], [p for i, p in enumerate(prompts) if i in chosen]


class PromptSource:
    """The run's prompts without end: each round in an order of its own. What comes depends on seed and position alone."""

    def __init__(self, prompts: Sequence[str], seed: int, position: int = 0) -> None:
        if not prompts:
            raise ConfigError("A run needs at least one prompt.")
        self.prompts = tuple(prompts)
        self.seed = seed
        self.position = position  # prompts given out so far; set it to go back or on

    def next(self) -> str:
        """The next prompt, its wildcards filled in."""
        round_, place = divmod(self.position, len(self.prompts))
        order = random.Random(f"order {self.seed} {round_}").sample(self.prompts, len(self.prompts))
        prompt = expand(order[place], seed=random.Random(f"wildcards {self.seed} {self.position}").getrandbits(32))
        self.position += 1
        return prompt


def expand(prompt: str, *, seed: int) -> str:
    """A prompt with its wildcards filled in, the same ones for the same seed. InvalidInput: unknown wildcards, unbalanced braces."""
    if not _TEMPLATE.search(prompt):
        return prompt
    _require_known(prompt)
    made = _LITERAL.sub(lambda sign: chr(_PRIVATE + ord(sign[0])), prompt)
    made = re.sub("[\ue023\ue024\ue025]", lambda sign: chr(ord(sign[0]) - _PRIVATE), _fill_in(made, prompt, seed))
    _require_known(made)
    return clean_prompt(made)


def _fill_in(template: str, prompt: str, seed: int) -> str:
    from dynamicprompts.generators.randomprompt import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager
    from pyparsing import ParseBaseException

    known: dict[str, list[Any]] = {"": [wildcards()]}
    manager = WildcardManager(root_map=known)
    try:
        return str(RandomPromptGenerator(manager, seed=seed).generate(template, 1)[0])
    except ParseBaseException as error:
        raise InvalidInput(
            f"The wildcards in '{prompt}' end at column {error.col}: close each {{ and each __, or leave them out to have it taken as it is."
        ) from error
    except RecursionError as error:
        raise InvalidInput(f"The wildcards in '{prompt}' contain themselves, or too many others.") from error
    except (LookupError, ValueError) as error:
        raise InvalidInput(f"The wildcards in '{prompt}' cannot be filled in: {error}.") from error


def _require_known(prompt: str) -> None:
    """dynamicprompts leaves a wildcard that it does not know in the prompt; here that is an error."""
    unknown = sorted({name for name in _WILDCARD.findall(prompt) if name not in wildcards()})
    if unknown:
        raise InvalidInput(f"Unknown wildcard {', '.join(f'__{name}__' for name in unknown)}. Known are: {', '.join(wildcards())}.")


@cache
def wildcards() -> dict[str, list[str]]:
    """{name: its lines} of data/prompts/wildcards."""
    files = sorted((LISTS / "wildcards").glob("*.txt"))
    return {path.stem: [clean_prompt(line) for line in path.read_text("utf-8").splitlines() if line.strip()] for path in files}
