"""The picture world: seeded procedural pictures, captions that state part of what they show, and a checker that reads pixels.

It is the training data of the embedded model (`train_base.py`) and, because `check` is exact enough, a verifiable
reward (`rewards/scene_check.py`). It is not a drawing library: only what the world needs is here.

    scene = sample_scene(rng)              what is to be seen, every attribute set
    style = sample_style(rng)              what a prompt leaves unsaid: palette, warmth, brightness, outline, ...
    image = render(scene, style, rng)      64 x 64 RGB
    text, stated = caption(scene, rng)     English for a part of it; `stated` has None where nothing was said
    parse(text) == stated                  reads it back, None for what it cannot read
    check(image, stated)                   {attribute: bool}, from pixels
"""

import colorsys
import math
import re
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "gray")
TEXTURES = ("solid", "striped", "dotted")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("light", "dark", "gradient", "night")
MAX_COUNT = 4

HUES_SATURATIONS_VALUES = {
    "red": (0.0, 0.86, 0.90),
    "orange": (0.075, 0.92, 0.97),
    "yellow": (0.145, 0.88, 0.98),
    "green": (0.36, 0.80, 0.68),
    "cyan": (0.50, 0.80, 0.86),
    "blue": (0.615, 0.84, 0.88),
    "purple": (0.765, 0.70, 0.74),
    "pink": (0.92, 0.52, 0.98),
    "brown": (0.065, 0.66, 0.45),
    "gray": (0.6, 0.03, 0.50),
}
# Saturation and value of each colour are scaled by these; `value` moves towards 1 by the given share.
PALETTES = {"vivid": (1.0, 0.0), "pastel": (0.66, 0.15), "muted": (0.8, -0.1)}

# Radii in pixels of a 64-pixel picture. The gaps between the classes make "small" and "large" checkable.
SMALL_RADIUS = (7.0, 8.6)
LARGE_RADIUS = (12.6, 20.0)
LARGE_RADIUS_OF_TWO = (12.1, 12.7)
MEDIUM_RADIUS = (9.6, 11.0)
TEXTURE_RADIUS = 9.0
SMALL_BELOW, LARGE_ABOVE = 9.1, 11.6
MARGIN, GAP = 2.0, 4.0


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


@dataclass(frozen=True)
class Style:
    """What prompts leave unsaid, besides the background's kind: the room in which a person's taste can show."""

    palette: str = "vivid"
    warmth: float = 0.0  # -1 cool .. 1 warm: a tint of the whole picture and the hue of the background
    brightness: float = 1.0  # exposure of the whole picture
    outline: bool = False
    shaded: bool = False
    spread: float = 0.5  # composition: 0 centred .. 1 anywhere in the picture
    backdrop: float = 0.5  # 0 .. 1: how far the background's lightness goes from middle grey


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene with every attribute set (size None means medium)."""
    kind = rng.choice(3, p=(0.42, 0.38, 0.20))
    background = str(rng.choice(BACKGROUNDS))
    if kind == 0:
        return Scene((_sample_thing(rng),), None, background)
    if kind == 1:
        return Scene((_sample_thing(rng), _sample_thing(rng)), str(rng.choice(RELATIONS)), background)
    thing = replace(_sample_thing(rng), count=int(rng.integers(2, MAX_COUNT + 1)), size=None)
    return Scene((thing,), None, background)


def sample_style(rng: np.random.Generator) -> Style:
    """A random style."""
    return Style(
        palette=str(rng.choice(tuple(PALETTES))),
        warmth=float(rng.uniform(-1, 1)),
        brightness=float(rng.uniform(0.8, 1.1)),
        outline=bool(rng.random() < 0.4),
        shaded=bool(rng.random() < 0.5),
        spread=float(rng.random()),
        backdrop=float(rng.random()),
    )


def _sample_thing(rng: np.random.Generator) -> Thing:
    size = rng.choice(("small", "medium", "large"))
    texture = "solid" if size == "small" else str(rng.choice(TEXTURES, p=(0.5, 0.25, 0.25)))
    return Thing(str(rng.choice(SHAPES)), str(rng.choice(COLORS)), texture, None if size == "medium" else str(size))


# ---- captions ----

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


def _alternatives(words: dict[str, tuple[str, ...]]) -> tuple[dict[str, str], str]:
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
_COUNT_OF = {word: n for n, words in _COUNT_WORDS.items() for word in words} | {"an": 1, "the": 1}
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


# ---- rendering ----


def _star_points(n: int, inner: float) -> Array:
    angles = np.arange(2 * n) * math.pi / n - math.pi / 2
    radii = np.where(np.arange(2 * n) % 2 == 0, 1.08, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.06], axis=1)


def _heart_points() -> Array:
    t = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.4], axis=1) / 15.2


_W = 0.34
POLYGONS: dict[str, Array] = {
    "square": np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),
    "triangle": np.array([(0, -0.98), (1.06, 0.84), (-1.06, 0.84)]),
    "star": _star_points(5, 0.44),
    "heart": _heart_points(),
    "diamond": np.array([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]),
    "cross": np.array(
        [(-_W, -1), (_W, -1), (_W, -_W), (1, -_W), (1, _W), (_W, _W), (_W, 1), (-_W, 1), (-_W, _W), (-1, _W), (-1, -_W), (-_W, -_W)]
    ),
}


def _polygon_distance(points: Array, x: Array, y: Array) -> Array:
    """Signed distance to a polygon, negative inside: nearest edge, and the even-odd rule for the sign."""
    a, b = points[:, :, None, None], np.roll(points, -1, axis=0)[:, :, None, None]
    ex, ey = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    px, py = x[None] - a[:, 0], y[None] - a[:, 1]
    t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    nearest = np.sqrt(((px - t * ex) ** 2 + (py - t * ey) ** 2).min(axis=0))
    above_a, above_b = a[:, 1] <= y[None], b[:, 1] <= y[None]
    crossings = ((above_a != above_b) & ((px * ey - py * ex) * np.where(above_b, 1, -1) > 0)).sum(axis=0)
    return np.where(crossings % 2 == 1, -nearest, nearest)


def _distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance in units of the radius at local coordinates x (right), y (down)."""
    if shape == "circle":
        return np.hypot(x, y) - 0.96
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 1.02, 0.8 - np.hypot(x - 0.46, y + 0.12))
    return _polygon_distance(POLYGONS[shape], x, y)


def _texture_weight(texture: str, dx: Array, dy: Array, radius: float, slant: float) -> Array:
    """(h, w) share 0..1 of the second colour."""
    u, v = dx * math.cos(slant) + dy * math.sin(slant), -dx * math.sin(slant) + dy * math.cos(slant)
    if texture == "striped":
        period = max(5.6, 0.5 * radius)
        return np.clip(0.5 + np.sin(2 * math.pi * u / period) * period / 5, 0, 1)
    spacing = max(6.0, 0.55 * radius)
    u, v = (u + spacing / 2) % spacing - spacing / 2, (v + spacing / 2) % spacing - spacing / 2
    return np.clip(0.5 + 0.33 * spacing - np.hypot(u, v), 0, 1)


def _color_rgb(color: str, palette: str) -> Array:
    hue, saturation, value = HUES_SATURATIONS_VALUES[color]
    scale, lift = PALETTES[palette]
    value = value + (1 - value) * lift if lift > 0 else value * (1 + lift)
    return np.array(colorsys.hsv_to_rgb(hue, saturation * scale, value))


def _background(kind: str, style: Style, rng: np.random.Generator) -> tuple[Array, bool]:
    """((64, 64, 3) background, whether it is dark)."""
    hue = 0.1 if style.warmth > 0 else 0.6
    tint = 0.04 + 0.1 * abs(style.warmth)
    down = np.linspace(0, 1, SIZE)[:, None, None]
    dark = kind in ("dark", "night") or (kind == "gradient" and style.backdrop < 0.4)
    if kind == "light":
        value, end = 0.80 + 0.17 * style.backdrop, None
    elif kind == "dark":
        value, end = 0.28 - 0.17 * style.backdrop, None
    elif kind == "night":
        value, end, tint, hue = 0.09 + 0.08 * (1 - style.backdrop), None, 0.65, 0.62 + 0.06 * style.warmth
    elif dark:
        value, end = 0.10, 0.38
    else:
        value, end = 0.97, 0.66
    if end is not None and rng.random() < 0.5:
        value, end = end, value
    top = np.array(colorsys.hsv_to_rgb(hue, tint * (2.2 if dark else 1.0), value))
    bottom = top if end is None else np.array(colorsys.hsv_to_rgb(hue, tint * (2.2 if dark else 1.3), end))
    picture = np.broadcast_to(top + (bottom - top) * down, (SIZE, SIZE, 3)).copy()
    return picture, dark


def _place(scene: Scene, style: Style, rng: np.random.Generator) -> list[tuple[Thing, float, float, float]]:
    """[(thing, radius, centre x, centre y)]: inside the picture, apart from each other, in the stated relation."""
    if len(scene.things) == 1 and scene.things[0].count == 1:
        thing = scene.things[0]
        radius = _radius(thing, 1, rng)
        room = max(0.0, SIZE / 2 - MARGIN - 1.12 * radius) * style.spread
        return [(thing, radius, SIZE / 2 + rng.uniform(-room, room), SIZE / 2 + rng.uniform(-room, room))]
    if len(scene.things) == 1:
        thing = scene.things[0]
        low, high = (9.2, 11.4) if thing.texture != "solid" else (7.2, 11.4)
        radius = float(rng.uniform(low, high))
        spots = _spots(thing.count, radius, style, rng)
        return [(thing, radius, x, y) for x, y in spots]
    return _pair(scene, style, rng)


def _radius(thing: Thing, things: int, rng: np.random.Generator) -> float:
    large = LARGE_RADIUS if things == 1 else LARGE_RADIUS_OF_TWO
    return float(rng.uniform(*{"small": SMALL_RADIUS, "large": large, None: MEDIUM_RADIUS}[thing.size]))


def _pair(scene: Scene, style: Style, rng: np.random.Generator) -> list[tuple[Thing, float, float, float]]:
    first, second = scene.things
    r1, r2 = _radius(first, 2, rng), _radius(second, 2, rng)
    apart = 1.1 * (r1 + r2) + GAP
    apart += rng.uniform(0, max(0.0, SIZE - 2 * MARGIN - apart - 1.1 * (r1 + r2))) * style.spread
    length = 1.1 * (r1 + r2) + apart
    start = MARGIN + (SIZE - 2 * MARGIN - length) * (0.5 + style.spread * rng.uniform(-0.5, 0.5))
    along1 = start + 1.1 * r1
    along2 = along1 + apart
    relation = scene.relation or str(rng.choice(RELATIONS))
    if relation in ("right of", "below"):
        along1, along2 = SIZE - along1, SIZE - along2
    sway = min(SIZE / 2 - MARGIN - 1.1 * max(r1, r2), 0.3 * apart) * style.spread
    across1, across2 = SIZE / 2 + rng.uniform(-sway, sway), SIZE / 2 + rng.uniform(-sway, sway)
    if relation in ("left of", "right of"):
        return [(first, r1, along1, across1), (second, r2, along2, across2)]
    return [(first, r1, across1, along1), (second, r2, across2, along2)]


def _spots(count: int, radius: float, style: Style, rng: np.random.Generator) -> list[tuple[float, float]]:
    """`count` centres of circles of one radius that do not touch: a tidy layout, shaken by the style's spread."""
    reach = SIZE / 2 - MARGIN - 1.12 * radius
    step = max(1.12 * radius + GAP / 2, 0.72 * reach)
    tidy = {
        2: [(-step, 0.0), (step, 0.0)] if rng.random() < 0.5 else [(0.0, -step), (0.0, step)],
        3: [(0.0, -step), (-step, step * 0.8), (step, step * 0.8)],
        4: [(-step, -step), (step, -step), (-step, step), (step, step)],
    }[count]
    shake = max(0.0, min(reach - step, step - 1.12 * radius - GAP / 2)) * style.spread
    return [(SIZE / 2 + x + rng.uniform(-shake, shake), SIZE / 2 + y + rng.uniform(-shake, shake)) for x, y in tidy]


def render(scene: Scene, style: Style, rng: np.random.Generator) -> Image.Image:
    """A (64, 64) RGB picture of a scene whose attributes are all set; anti-aliased by signed distances."""
    kind = scene.background or "light"
    picture, dark = _background(kind, style, rng)
    placed = _place(scene, style, rng)
    if kind == "night":
        _draw_stars(picture, placed, rng)
    slant = float(rng.choice((0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)))
    for thing, radius, cx, cy in placed:
        _draw_thing(picture, thing, style, (radius, cx, cy, float(rng.uniform(-0.12, 0.12)), slant), dark)
    tint = np.array([1 + 0.07 * style.warmth, 1.0, 1 - 0.07 * style.warmth])
    pixels = np.clip(picture * tint * style.brightness, 0, 1)
    return Image.fromarray(np.round(pixels * 255).astype(np.uint8))


def _draw_stars(picture: Array, placed: list[tuple[Thing, float, float, float]], rng: np.random.Generator) -> None:
    """Small soft crosses of light, clear of the things."""
    for _ in range(int(rng.integers(14, 20))):
        x, y = rng.integers(2, SIZE - 2, 2)
        if all(math.hypot(x - cx, y - cy) > 1.25 * r + 3 for _, r, cx, cy in placed):
            glow = rng.uniform(0.6, 1.0)
            for dx, dy, share in ((0, 0, 1.0), (1, 0, 0.45), (-1, 0, 0.45), (0, 1, 0.45), (0, -1, 0.45)):
                picture[y + dy, x + dx] = np.maximum(picture[y + dy, x + dx], glow * share)


def _draw_thing(picture: Array, thing: Thing, style: Style, pose: tuple[float, float, float, float, float], dark: bool) -> None:
    radius, cx, cy, turn, slant = pose
    reach = 1.25 * radius + 3
    x0, x1 = max(0, int(cx - reach)), min(SIZE, int(cx + reach) + 2)
    y0, y1 = max(0, int(cy - reach)), min(SIZE, int(cy + reach) + 2)
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(float)
    dx, dy = dx + 0.5 - cx, dy + 0.5 - cy
    x, y = (dx * math.cos(turn) + dy * math.sin(turn)) / radius, (-dx * math.sin(turn) + dy * math.cos(turn)) / radius
    distance = _distance(thing.shape, x, y) * radius
    rgb = np.broadcast_to(_color_rgb(thing.color or "gray", style.palette), (*distance.shape, 3))
    if thing.texture in ("striped", "dotted"):
        second = rgb * 0.45 + 0.55 if dark else rgb * 0.5
        weight = _texture_weight(thing.texture, dx, dy, radius, slant)[..., None]
        rgb = rgb * (1 - weight) + second * weight
    if style.shaded:
        light = np.clip(1.0 - 0.17 * (x + y), 0.72, 1.22)[..., None]
        shine = 0.35 * np.exp(-((x + 0.38) ** 2 + (y + 0.42) ** 2) / 0.05)[..., None]
        rgb = np.clip(rgb * light, 0, 1) * (1 - shine) + shine
    if style.outline:
        edge = np.clip(distance + 2.1, 0, 1)[..., None]
        rgb = rgb * (1 - edge) + (np.array([0.93, 0.93, 0.9]) if dark else np.array([0.09, 0.08, 0.12])) * edge
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - cover) + rgb * cover


# ---- checking ----


@dataclass(frozen=True)
class _Found:
    """One object found in a picture: its classes and where it is (pixels)."""

    shape: str
    color: str
    texture: str
    radius: float
    x: float
    y: float


def check(image: Image.Image, scene: Scene) -> dict[str, bool]:
    """Which stated attributes a picture confirms: {"1 shape": True, "1 color": ..., "relation": ..., "background": ...}.

    Keys number the things from 1; "count" is always there. With the wrong number of objects only the background can be right.
    """
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) if image.size != (SIZE, SIZE) else image.convert("RGB"), float) / 255
    back, foreground = _split(pixels)
    found = _objects(pixels, back, foreground)
    wanted = sum(thing.count for thing in scene.things)
    verdict = {"count": len(found) == wanted}
    if verdict["count"] and len(scene.things) == 2:
        order = _best_order(scene, found)
        pairs = [(scene.things[0], [found[order[0]]]), (scene.things[1], [found[order[1]]])]
        if scene.relation:
            verdict["relation"] = _related(found[order[0]], found[order[1]], scene.relation)
    else:
        pairs = [(thing, found if verdict["count"] else []) for thing in scene.things]
        if scene.relation:
            verdict["relation"] = False
    for number, (thing, seen) in enumerate(pairs, 1):
        for attribute, right in _attributes(thing, seen).items():
            verdict[f"{number} {attribute}"] = right
    if scene.background:
        verdict["background"] = _background_kind(pixels, back, foreground) == scene.background
    return verdict


def _attributes(thing: Thing, seen: list[_Found]) -> dict[str, bool]:
    right = {"shape": bool(seen) and all(f.shape == thing.shape for f in seen)}
    if thing.color:
        right["color"] = bool(seen) and all(f.color == thing.color for f in seen)
    if thing.texture:
        right["texture"] = bool(seen) and all(f.texture == thing.texture for f in seen)
    if thing.size:
        right["size"] = bool(seen) and all((f.radius < SMALL_BELOW) if thing.size == "small" else (f.radius > LARGE_ABOVE) for f in seen)
    return right


def _best_order(scene: Scene, found: list[_Found]) -> tuple[int, int]:
    """Which found object is the first thing: the assignment under which more attributes are right."""

    def right(order: tuple[int, int]) -> int:
        points = sum(sum(_attributes(thing, [found[i]]).values()) for thing, i in zip(scene.things, order, strict=True))
        return 2 * points + (scene.relation is not None and _related(found[order[0]], found[order[1]], scene.relation))

    return max(((0, 1), (1, 0)), key=right)


def _related(first: _Found, second: _Found, relation: str) -> bool:
    dx, dy = second.x - first.x, second.y - first.y
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along > 4 and along > across


def _split(pixels: Array) -> tuple[Array, Mask]:
    """(background fitted as a straight vertical gradient to the picture's frame, foreground mask without specks)."""
    frame = np.zeros((SIZE, SIZE), bool)
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = True, True, True, True
    rows = np.linspace(-1, 1, SIZE)
    design = np.stack([np.ones(SIZE), rows], axis=1)
    y, x = np.nonzero(frame)
    keep = np.ones(len(y), bool)
    for _ in range(4):
        weights, *_ = np.linalg.lstsq(design[y[keep]], pixels[y[keep], x[keep]], rcond=None)
        error = np.abs(pixels[y, x] - design[y] @ weights).max(axis=1)
        keep = error <= max(0.05, float(np.quantile(error, 0.7)))
    back = np.broadcast_to((design @ weights)[:, None], pixels.shape)
    return back, np.abs(pixels - back).max(axis=2) > 0.11


def _objects(pixels: Array, back: Array, foreground: Mask) -> list[_Found]:
    solid = ndimage.binary_fill_holes(foreground)
    labels, n = ndimage.label(solid)
    found = []
    for index in range(1, n + 1):
        mask = labels == index
        if mask.sum() >= 45:
            found.append(_describe(pixels, back, mask))
    return found


def _describe(pixels: Array, back: Array, mask: Mask) -> _Found:
    y, x = np.nonzero(mask)
    half = max(np.ptp(x) + 1, np.ptp(y) + 1) / 2
    shape, extent = _shape_of(mask)
    inner = ndimage.binary_erosion(mask, iterations=2)
    inner = inner if inner.sum() >= 16 else ndimage.binary_erosion(mask) if ndimage.binary_erosion(mask).sum() >= 12 else mask
    return _Found(shape, _color_of(pixels[inner]), _texture_of(pixels, mask), half / extent, float(x.mean()), float(y.mean()))


@cache
def _templates() -> list[tuple[str, float, Array]]:
    """(shape, half of the larger side of its box in radii, normalised coverage) for every shape at three turns."""
    grid = np.linspace(-1.4, 1.4, 113)
    x, y = np.meshgrid(grid, grid)
    made = []
    for shape in SHAPES:
        for turn in (-0.1, 0.0, 0.1):
            inside = _distance(shape, x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)) < 0
            iy, ix = np.nonzero(inside)
            extent = max(np.ptp(grid[ix]), np.ptp(grid[iy])) / 2
            made.append((shape, float(extent), _normalised(inside)))
    return made


def _normalised(mask: Mask) -> Array:
    """(32, 32) coverage of a mask cut to its box and scaled alike in both directions, centred."""
    y, x = np.nonzero(mask)
    cut = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    oy, ox = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[oy : oy + cut.shape[0], ox : ox + cut.shape[1]] = cut * np.uint8(255)
    return np.asarray(Image.fromarray(square).resize((32, 32), Image.Resampling.BOX if side >= 32 else Image.Resampling.BILINEAR), float) / 255


def _shape_of(mask: Mask) -> tuple[str, float]:
    """The shape whose template overlaps best (soft intersection over union), and its extent; "?" when none does well."""
    seen = _normalised(mask)
    scored = [(float(np.minimum(seen, t).sum() / np.maximum(seen, t).sum()), shape, extent) for shape, extent, t in _templates()]
    overlap, shape, extent = max(scored)
    return (shape if overlap > 0.72 else "?"), extent


def _color_of(inside: Array) -> str:
    """Name of the base colour of (n, 3) pixels: the most chromatic part tells it from its lighter or darker second colour."""
    chroma = inside.max(axis=1) - inside.min(axis=1)
    base = np.median(inside[chroma >= np.quantile(chroma, 0.6)], axis=0)
    hue, saturation, value = colorsys.rgb_to_hsv(*base)
    if saturation < 0.2 and value < 0.8:
        return "gray"
    if hue < 0.118 and hue > 0.022:
        return "orange" if value > 0.62 else "brown"
    for name, upper in (("red", 0.022), ("yellow", 0.24), ("green", 0.435), ("cyan", 0.555), ("blue", 0.69), ("purple", 0.83), ("pink", 0.965), ("red", 1.01)):
        if hue <= upper:
            return name
    return "red"


def _texture_of(pixels: Array, mask: Mask) -> str:
    """Solid when the inside has little contrast; else striped or dotted by how one-directional its gradients are."""
    inner = ndimage.binary_erosion(mask, iterations=3)
    if inner.sum() < 24:
        return "solid"
    grey = pixels.mean(axis=2)
    gx, gy = ndimage.sobel(grey, axis=1)[inner] / 8, ndimage.sobel(grey, axis=0)[inner] / 8
    energy = float(np.mean(gx * gx + gy * gy))
    if energy < 0.0011:
        return "solid"
    xx, yy, xy = float(np.mean(gx * gx)), float(np.mean(gy * gy)), float(np.mean(gx * gy))
    coherence = math.hypot(xx - yy, 2 * xy) / (xx + yy)
    return "striped" if coherence > 0.5 else "dotted"


def _background_kind(pixels: Array, back: Array, foreground: Mask) -> str:
    empty = ~ndimage.binary_dilation(ndimage.binary_opening(foreground, iterations=2), iterations=4)
    value = back.max(axis=2)
    specks = int(((pixels.max(axis=2) - value > 0.16) & empty).sum())
    if value.mean() < 0.4 and specks >= 5:
        return "night"
    if abs(float(value[0, 0] - value[-1, 0])) > 0.12:
        return "gradient"
    return "dark" if value.mean() < 0.45 else "light"
