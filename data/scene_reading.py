"""Reads a picture of the world back: which things are in it, with shape, colour, texture, radius and place, and what lies behind.

It sees pixels alone: nothing of the prompt, the scene or the style. It is not a general detector; it knows the vocabulary of
`shapes.py` and nothing else, and says "?" where nothing of that fits. Pictures may be soft, noisy or slightly off in colour,
because a diffusion model drew them.

    background  per row, from the picture's left and right frame
    things      what differs from it, as soft coverage (h, w) in 0..1, so that radius and centre are better than a pixel
    shape       the template of equal area and centre with the largest overlap
    texture     the pattern of stripes or dots, around that centre, that explains the inside beyond plain shading
"""

import colorsys
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from data.shapes import SHAPES, SIZE, SIZE_BOUNDS, Array, Mask, signed_distance, texture_weight

MIN_AREA = 40  # pixels; the smallest thing has 65, the largest star of a night sky 5
MIN_OVERLAP = 0.72  # of a thing with its best template; below, the shape is "?"
MIN_PIXELS = 8  # so many of the deepest pixels are looked at in even the thinnest thing
MIN_PATTERN = 28  # pixels without which a pattern is not believed
SAMPLE = 250  # pixels that are enough to tell a pattern
EXPLAINED, CONTRAST = 0.5, 0.09  # a pattern is seen when it explains this share beyond shading, with this colour distance
CANVAS = np.linspace(-1.9, 1.9, 36)  # template coordinates in units of the radius of the circle of equal area


@dataclass(frozen=True)
class Found:
    """One thing in a picture: its classes ("?" = none fits), radius and centre in pixels."""

    shape: str
    color: str
    texture: str
    radius: float
    x: float
    y: float

    @property
    def size(self) -> str | None:
        """ "small", "large", or None for what lies between."""
        return "small" if self.radius < SIZE_BOUNDS[0] else "large" if self.radius > SIZE_BOUNDS[1] else None


@dataclass(frozen=True)
class Reading:
    """Everything that is read from one picture."""

    things: tuple[Found, ...]
    background: str


@dataclass(frozen=True)
class _Template:
    """A shape as it looks at one turn: coverage on the canvas, unit area, centroid relative to the shape's own origin."""

    shape: str
    turn: float
    coverage: Array
    area: float
    centroid: tuple[float, float]


def read(image: Image.Image) -> Reading:
    """What is to be seen in a picture; any size, read at 64 x 64."""
    picture = image.convert("RGB")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, float) / 255
    back, noise = _backdrop(pixels)
    away = np.abs(pixels - back).max(axis=2)
    solid = ndimage.binary_fill_holes(away > max(0.06, 5 * noise))
    labels, _ = ndimage.label(solid)
    things, foreground = [], np.zeros_like(solid)
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        if (labels[box] == index).sum() >= MIN_AREA:
            rows, columns = (slice(max(0, side.start - 2), side.stop + 2) for side in box)
            mask = labels[rows, columns] == index
            foreground[rows, columns] |= mask
            found = _describe(pixels[rows, columns], back[rows], mask)
            things.append(replace(found, x=found.x + columns.start, y=found.y + rows.start))
    return Reading(tuple(things), _background_kind(pixels, back, foreground))


# ---- background ----


def _backdrop(pixels: Array) -> tuple[Array, float]:
    """((64, 1, 3) background without things and specks, noise): a straight gradient that each row's two ends then correct."""
    frame = np.concatenate([pixels[:, :2], pixels[:, -2:]], axis=1)
    samples = np.concatenate([frame.reshape(-1, 3), pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    rows = np.concatenate([np.repeat(np.arange(SIZE), 4), np.repeat((0, 1, SIZE - 2, SIZE - 1), SIZE)])
    design = np.stack([np.ones(len(rows)), rows / SIZE], axis=1)
    keep = np.ones(len(rows), bool)
    for _ in range(3):
        kept = design[keep]
        weights = np.linalg.solve(kept.T @ kept, kept.T @ samples[keep])
        error = np.abs(samples - design @ weights).max(axis=1)
        keep = error <= max(0.05, float(np.partition(error, 7 * len(error) // 10)[7 * len(error) // 10]))
    straight = (np.stack([np.ones(SIZE), np.arange(SIZE) / SIZE], axis=1) @ weights)[:, None]
    near = (np.abs(frame - straight).max(axis=2, keepdims=True) < 0.12).astype(float)
    ends = ((frame * near).sum(axis=1, keepdims=True) + 0.01 * straight) / (near.sum(axis=1, keepdims=True) + 0.01)
    back = ndimage.uniform_filter1d(ends, 5, axis=0, mode="nearest")
    return back, 1.48 * float(np.median(np.abs(frame - back)))


def _background_kind(pixels: Array, back: Array, things: Mask) -> str:
    """Night has stars or a deep blue; a gradient another lightness below than above; else what counts is how light it is."""
    value = back.max(axis=2)  # (64, 1)
    empty = ~ndimage.binary_dilation(things, np.ones((7, 7), bool))
    stars = int(((pixels.max(axis=2) - value > 0.16) & empty).sum())
    blue = float((1 - back.min(axis=2) / np.maximum(value, 0.01)).mean())
    if value.mean() < 0.4 and (stars >= 5 or blue > 0.65):  # things may hide every star; the sky's deep blue stays
        return "night"
    if abs(float(value[0, 0] - value[-1, 0])) > 0.12:
        return "gradient"
    return "dark" if value.mean() < 0.45 else "light"


# ---- things ----


def _describe(pixels: Array, back: Array, mask: Mask) -> Found:
    """One thing from the part of a picture around it: pixels (h, w, 3), back (h, 1, 3), mask (h, w)."""
    cover = _coverage(pixels, back, mask)
    area = float(cover.sum())
    y, x = (float(cover.sum(axis=1 - axis) @ np.arange(cover.shape[axis])) / area for axis in (0, 1))
    template, overlap = _best_template(cover, x, y, math.sqrt(area / math.pi))
    radius = math.sqrt(area / template.area)
    x, y = x - radius * template.centroid[0], y - radius * template.centroid[1]
    color, texture = _surface(pixels, ndimage.distance_transform_edt(np.pad(cover > 0.5, 1))[1:-1, 1:-1], (x, y, radius))
    return Found(template.shape if overlap > MIN_OVERLAP else "?", color, texture, radius, x, y)


def _coverage(pixels: Array, back: Array, mask: Mask) -> Array:
    """(h, w) share 0..1 of each pixel that a thing covers: how far it is from the background to the nearest inner colour."""
    inner = ndimage.binary_erosion(mask, border_value=1)
    inner = inner if inner.any() else mask
    nearest = ndimage.distance_transform_edt(~inner, return_distances=False, return_indices=True)
    contrast = pixels[nearest[0], nearest[1]] - back
    strength = (contrast**2).sum(axis=2)
    share = ((pixels - back) * contrast).sum(axis=2) / np.maximum(strength, 0.004)
    return np.where(inner, 1.0, np.where(ndimage.binary_dilation(mask), np.clip(share, 0, 1), 0.0))


@cache
def _templates() -> list[_Template]:
    """Every shape at five turns."""
    fine = np.linspace(-1.4, 1.4, 141)
    gx, gy = np.meshgrid(fine, fine)
    made = []
    for shape in SHAPES:
        for turn in (-0.12, -0.06, 0.0, 0.06, 0.12):
            inside = _turned(shape, gx, gy, turn) < 0
            area = float(inside.sum()) * (fine[1] - fine[0]) ** 2
            cx, cy = float(gx[inside].mean()), float(gy[inside].mean())
            unit = math.sqrt(area / math.pi)
            u, v = np.meshgrid(CANVAS * unit + cx, CANVAS * unit + cy)
            made.append(_Template(shape, turn, np.clip(0.5 - 9 * _turned(shape, u, v, turn), 0, 1), area, (cx, cy)))
    return made


def _turned(shape: str, x: Array, y: Array, turn: float) -> Array:
    """Signed distance to a shape turned by an angle in radians."""
    return signed_distance(shape, x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn))


@cache
def _coverages() -> Array:
    """(m, 36, 36), one for each template."""
    return np.stack([t.coverage for t in _templates()])


def _best_template(cover: Array, x: float, y: float, unit: float) -> tuple[_Template, float]:
    """The template of equal area and centre with the largest soft intersection over union, and that overlap."""
    v, u = np.meshgrid(CANVAS * unit + y, CANVAS * unit + x, indexing="ij")
    seen = ndimage.map_coordinates(cover, [v, u], order=1)
    known = _coverages()
    overlaps = np.minimum(known, seen).sum(axis=(1, 2)) / np.maximum(known, seen).sum(axis=(1, 2))
    best = int(overlaps.argmax())
    return _templates()[best], float(overlaps[best])


# ---- colour and texture ----


def _surface(pixels: Array, depth: Array, pose: tuple[float, float, float]) -> tuple[str, str]:
    """(colour, texture) of the thing at pose (x, y, radius), from pixels beyond its outline; depth (h, w) is 0 outside."""
    x, y, radius = pose
    limit = 2.7 if _outlined(pixels, depth) else 1.4
    limit = max(0.5, min(limit, float(np.partition(depth.ravel(), -MIN_PIXELS)[-MIN_PIXELS])))
    rows, columns = np.nonzero(depth >= limit)
    step = 1 + len(rows) // SAMPLE
    rows, columns = rows[::step], columns[::step]
    inside = pixels[rows, columns]
    deep = depth[rows, columns]
    texture, weight = _texture(inside, deep, (columns.astype(float) - x) / radius, (rows.astype(float) - y) / radius, radius)
    base = (weight < 0.2) & (deep >= np.median(deep))  # where neither the pattern nor a soft outline reaches
    return _color_name(np.median(inside[base] if base.any() else inside, axis=0)), texture


def _outlined(pixels: Array, depth: Array) -> bool:
    """Whether the rim has another colour than the middle."""
    ring, inside = (depth > 0) & (depth < 1.6), depth >= min(2.7, 0.9 * float(depth.max()))
    return bool(np.abs(pixels[ring].mean(axis=0) - pixels[inside].mean(axis=0)).max() > 0.13)


def _texture(inside: Array, deep: Array, u: Array, v: Array, radius: float) -> tuple[str, Array]:
    """The texture of (n, 3) pixels, `deep` below the edge at u, v radii from the centre; (n,) share of the second colour in each.

    Shading is a plane, a highlight, and a rim that reaches inside where the picture is soft. What is left of pixels and
    patterns after a least-squares fit of it is compared.
    """
    shading = np.stack([np.ones_like(u), u, v, np.exp(-((u + 0.38) ** 2 + (v + 0.42) ** 2) / 0.05), np.minimum(deep, 4)], axis=1)
    basis, _ = np.linalg.qr(shading)
    names, patterns = _patterns(u * radius, v * radius, radius)
    left = inside - basis @ (basis.T @ inside)
    bare = patterns - basis @ (basis.T @ patterns)
    power = (bare**2).sum(axis=0)
    slopes = np.where(power[:, None] > 0.02 * len(u), bare.T @ left, 0) / np.maximum(power, 1e-9)[:, None]
    explained = (slopes**2).sum(axis=1) * power / max(float((left**2).sum()), 1e-9)
    best = int(explained.argmax())
    if explained[best] < EXPLAINED or np.linalg.norm(slopes[best]) < CONTRAST or len(u) < MIN_PATTERN:
        return "solid", np.zeros(len(u))
    return names[best], patterns[:, best]


def _patterns(dx: Array, dy: Array, radius: float) -> tuple[list[str], Array]:
    """Names and (n, m) weights of the second colour for every slant and a few small displacements."""
    shifts = np.array((-0.8, 0.0, 0.8))
    dx, dy = dx[:, None], dy[:, None]
    made = []
    for slant in (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4):
        made.append(texture_weight("striped", dx - shifts * math.cos(slant), dy - shifts * math.sin(slant), radius, slant))
    across, down = (grid.ravel() for grid in np.meshgrid(shifts, shifts))
    made += [texture_weight("dotted", dx - across, dy - down, radius, slant) for slant in (0.0, math.pi / 4)]
    return ["striped"] * 4 * len(shifts) + ["dotted"] * 2 * len(across), np.concatenate(made, axis=1)


def _color_name(rgb: Array) -> str:
    """The colour's name by hue; the bounds lie between the world's hues as every palette, warmth and brightness shows them."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    if saturation < 0.2 and value < 0.8:
        return "gray"
    if 0.022 < hue < 0.118:
        return "orange" if value > 0.66 else "brown"
    bounds = {"red": 0.022, "yellow": 0.24, "green": 0.435, "cyan": 0.555, "blue": 0.69, "purple": 0.83, "pink": 0.965}
    return next((name for name, upper in bounds.items() if hue <= upper), "red")
