"""The picture world: seeded procedural pictures, captions that state part of what they show, and a checker that reads pixels.

The vocabulary and geometry are in `shapes.py`, the English in `scene_language.py`, the eyes in `scene_reading.py`; here scenes
are made up, drawn, and compared with what is seen. It is the training data of the embedded model (`train_base.py`) and, because
`check` is exact enough, a verifiable reward (`rewards/scene_check.py`). It is not a drawing library: only what the world needs.

    scene = sample_scene(rng)              what is to be seen, every attribute set
    style = sample_style(rng)              what a prompt leaves unsaid: palette, warmth, brightness, outline, ...
    image = render(scene, style, rng)      64 x 64 RGB
    text, stated = caption(scene, rng)     English for a part of it; `stated` has None where nothing was said
    parse(text) == stated                  reads it back, None for what it cannot read
    check(image, stated)                   {attribute: bool}, from pixels
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data.scene_language import Scene, Thing, caption, parse
from data.scene_reading import Found, Reading, read
from data.shapes import (
    BACKGROUNDS,
    COLORS,
    HUES_SATURATIONS_VALUES,
    MAX_COUNT,
    PALETTES,
    RELATIONS,
    SHAPES,
    SIZE,
    TEXTURES,
    Array,
    signed_distance,
    texture_weight,
)

__all__ = ["Scene", "Style", "Thing", "caption", "check", "compare", "parse", "read", "render", "sample_scene", "sample_style"]

# Radii in pixels of a 64-pixel picture. The gaps between the classes make "small" and "large" checkable (SIZE_BOUNDS in shapes.py).
SMALL_RADIUS = (7.9, 9.1)
LARGE_RADIUS = (12.8, 20.0)
LARGE_RADIUS_OF_TWO = (12.3, 12.7)
MEDIUM_RADIUS = (10.2, 11.2)
MARGIN, GAP = 2.0, 4.0


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


# ---- rendering ----


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
        low, high = (9.8, 11.4) if thing.texture != "solid" else (8.4, 11.4)
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
    distance = signed_distance(thing.shape, x, y) * radius
    rgb = np.broadcast_to(_color_rgb(thing.color or "gray", style.palette), (*distance.shape, 3))
    if thing.texture in ("striped", "dotted"):
        second = rgb * 0.45 + 0.55 if dark else rgb * 0.5
        weight = texture_weight(thing.texture, dx, dy, radius, slant)[..., None]
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


def check(image: Image.Image, scene: Scene) -> dict[str, bool]:
    """Which stated attributes a picture confirms: {"count": ..., "1 shape": ..., "1 color": ..., "relation": ..., "background": ...}.

    Keys number the things from 1; "count" and each shape are always there. With another number of things than stated nothing
    but the background can be right: what belongs to what is then anybody's guess.
    """
    return compare(read(image), scene)


def compare(reading: Reading, scene: Scene) -> dict[str, bool]:
    """`check` for a picture that was read before."""
    found = reading.things if len(reading.things) == sum(thing.count for thing in scene.things) else ()
    verdict = {"count": bool(found)}
    shown: list[Sequence[Found]] = [found for _ in scene.things]
    if len(scene.things) == 2 and found:
        shown = [(one,) for one in _in_order(scene, found)]
    for number, (thing, seen) in enumerate(zip(scene.things, shown, strict=True), 1):
        verdict |= {f"{number} {attribute}": right for attribute, right in _attributes(thing, seen).items()}
    if scene.relation:
        verdict["relation"] = bool(found) and _related(shown[0][0], shown[1][0], scene.relation)
    if scene.background:
        verdict["background"] = reading.background == scene.background
    return verdict


def _attributes(thing: Thing, seen: Sequence[Found]) -> dict[str, bool]:
    """{attribute: whether everything seen has it} for the attributes that the thing states."""
    stated = {"shape": thing.shape, "color": thing.color, "texture": thing.texture, "size": thing.size}
    return {name: bool(seen) and all(getattr(found, name) == value for found in seen) for name, value in stated.items() if value}


def _in_order(scene: Scene, found: Sequence[Found]) -> tuple[Found, Found]:
    """The two found things as the scene's first and second: the assignment under which more is right, the relation last."""

    def right(order: tuple[Found, Found]) -> tuple[int, bool]:
        points = sum(sum(_attributes(thing, (one,)).values()) for thing, one in zip(scene.things, order, strict=True))
        return points, scene.relation is not None and _related(*order, scene.relation)

    return max(((found[0], found[1]), (found[1], found[0])), key=right)


def _related(first: Found, second: Found, relation: str) -> bool:
    dx, dy = second.x - first.x, second.y - first.y
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along > 4 and along > across
