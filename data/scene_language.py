"""English for scenes and back: captions that state part of what a scene holds, and a reader of such prompts.

It is the language of the embedded model's training captions and of `data/prompts/`: a small grammar, not a language model.
What it cannot read it does not guess: `parse` then gives None, and whoever asked has no opinion.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.shapes import COLORS


@dataclass(frozen=True)
class Thing:
    """One kind of object; an attribute that is None was not stated. `count` copies of it are in the picture."""

    shape: str
    color: str | None = None
    texture: str | None = None
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """One thing (or a count of it), or two single things with an optional relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None


_SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "moon": ("moon", "crescent"),
}
_PLURALS = {"cross": "crosses", "plus": "pluses", "rhombus": "rhombuses"}
_COLOR_WORDS = {color: (color,) for color in COLORS} | {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
_TEXTURE_WORDS = {"solid": ("solid", "plain"), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
_TEXTURE_TAILS = {"striped": ("with stripes",), "dotted": ("with dots", "with spots")}
_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_BACKGROUND_WORDS = {
    "light": ("on a light background", "on a bright background", "on light ground"),
    "dark": ("on a dark background", "against a dark background", "on dark ground"),
    "gradient": ("on a gradient background", "on a gradient", "with a gradient background"),
    "night": ("at night", "under a starry sky", "in the night sky", "on a starry night"),
}
_COUNT_WORDS = {1: ("a", "one"), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
_PREFIXES = ("a picture of", "an image of", "a drawing of", "a photo of", "draw", "there is", "there are")


def caption(scene: Scene, rng: np.random.Generator, keep: float = 0.75) -> tuple[str, Scene]:
    """English for a random subset of a scene's attributes; each is stated with probability `keep`. Returns (text, stated)."""
    stated = _forget(scene, rng, keep)
    text = _thing_text(stated.things[0], rng)
    if len(stated.things) == 2:
        joint = str(rng.choice(_RELATION_WORDS[stated.relation])) if stated.relation else "and"
        text = f"{text} {joint} {_thing_text(stated.things[1], rng)}"
    if stated.background:
        place = str(rng.choice(_BACKGROUND_WORDS[stated.background]))
        text = f"{place}, {text}" if rng.random() < 0.15 else f"{text} {place}"
    elif rng.random() < 0.1:
        text = f"{rng.choice(_PREFIXES[:4])} {text}"
    return text, stated


def _forget(scene: Scene, rng: np.random.Generator, keep: float) -> Scene:
    """The scene with attributes left out at random; shapes and counts always stay."""

    def maybe(value: str | None, share: float = keep) -> str | None:
        return value if value is not None and rng.random() < share else None

    things = tuple(
        Thing(t.shape, maybe(t.color, 0.5 + keep / 2), maybe(t.texture, keep if t.texture != "solid" else keep / 4), maybe(t.size), t.count)
        for t in scene.things
    )
    return Scene(things, maybe(scene.relation), maybe(scene.background, keep / 2))


def _thing_text(thing: Thing, rng: np.random.Generator) -> str:
    noun = str(rng.choice(_SHAPE_WORDS[thing.shape]))
    tail = ""
    adjectives = [str(rng.choice(_SIZE_WORDS[thing.size]))] if thing.size else []
    if thing.texture in _TEXTURE_TAILS and rng.random() < 0.2:
        tail = " " + str(rng.choice(_TEXTURE_TAILS[thing.texture]))
    elif thing.texture:
        adjectives.append(str(rng.choice(_TEXTURE_WORDS[thing.texture])))
    if thing.color:
        adjectives.append(str(rng.choice(_COLOR_WORDS[thing.color])))
    if thing.count > 1:
        noun = _PLURALS.get(noun, noun + "s")
    words = " ".join([*adjectives, noun])
    number = str(rng.choice(_COUNT_WORDS[thing.count], p=(0.9, 0.1)))
    if number == "a" and words[0] in "aeiou":
        number = "an"
    return f"{number} {words}{tail}"


def _alternatives(words: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, str], str]:
    meaning = {word: key for key, choices in words.items() for word in choices}
    return meaning, "|".join(sorted(map(re.escape, meaning), key=len, reverse=True))


_SHAPE_OF, _SHAPE_RE = _alternatives(
    {s: tuple(w for word in words for w in (word, _PLURALS.get(word, word + "s"))) for s, words in _SHAPE_WORDS.items()}
)
_COLOR_OF, _COLOR_RE = _alternatives(_COLOR_WORDS)
_TEXTURE_OF, _TEXTURE_RE = _alternatives(_TEXTURE_WORDS)
_TAIL_OF, _TAIL_RE = _alternatives(_TEXTURE_TAILS)
_SIZE_OF, _SIZE_RE = _alternatives(_SIZE_WORDS)
_RELATION_OF, _RELATION_RE = _alternatives(_RELATION_WORDS)
_BACKGROUND_OF, _BACKGROUND_RE = _alternatives(
    {k: tuple(w for v in vs for w in {v, v.replace("on a", "against a"), v.replace("on a", "with a")}) for k, vs in _BACKGROUND_WORDS.items()}
)
_COUNT_OF = {word: n for n, words in _COUNT_WORDS.items() for word in words} | {"an": 1, "the": 1, "1": 1}
_THING = re.compile(
    rf"(?:(?P<count>{'|'.join(_COUNT_OF)}) )?(?:(?P<size>{_SIZE_RE}) )?(?:(?P<color1>{_COLOR_RE}) )?(?:(?P<texture>{_TEXTURE_RE}) )?"
    rf"(?:(?P<color2>{_COLOR_RE}) )?(?P<shape>{_SHAPE_RE})(?: (?P<tail>{_TAIL_RE}))?"
)
_JOINT = re.compile(rf"(.+?) (?:(?:is )?({_RELATION_RE})|and|next to|beside) (.+)")


def parse(prompt: str) -> Scene | None:
    """What a prompt states, or None where it says anything that this world cannot read."""
    text = re.sub(r"[^a-z0-9]+", " ", prompt.lower()).strip()
    text = re.sub(rf"^(?:{'|'.join(_PREFIXES)}) ", "", text)
    background = None
    for pattern in (rf"(?P<place>{_BACKGROUND_RE}) (?P<rest>.+)", rf"(?P<rest>.+) (?P<place>{_BACKGROUND_RE})"):
        if background is None and (found := re.fullmatch(pattern, text)):
            background, text = _BACKGROUND_OF[found["place"]], found["rest"]
    if thing := _read_thing(text):
        return Scene((thing,), None, background)
    joint = _JOINT.fullmatch(text)
    things = (_read_thing(joint[1]), _read_thing(joint[3])) if joint else (None, None)
    if joint is None or things[0] is None or things[1] is None or things[0].count > 1 or things[1].count > 1:
        return None
    return Scene((things[0], things[1]), _RELATION_OF[joint[2]] if joint[2] else None, background)


def _read_thing(text: str) -> Thing | None:
    found = _THING.fullmatch(text)
    if found is None or (found["color1"] and found["color2"]) or (found["texture"] and found["tail"]):
        return None
    color = found["color1"] or found["color2"]
    texture = _TEXTURE_OF[found["texture"]] if found["texture"] else _TAIL_OF[found["tail"]] if found["tail"] else None
    count = _COUNT_OF[found["count"] or "one"]
    if (count > 1) != (found["shape"] not in {w for words in _SHAPE_WORDS.values() for w in words}):
        return None
    return Thing(_SHAPE_OF[found["shape"]], _COLOR_OF[color] if color else None, texture, _SIZE_OF[found["size"]] if found["size"] else None, count)
