"""The vocabulary of the picture world and its geometry: names, colours, signed distances of the shapes, textures.

Both sides of the world stand on it: `scenes.py` draws with it, `scene_reading.py` recognises with it. Neither drawing nor
recognising is here.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "gray")
TEXTURES = ("solid", "striped", "dotted")
SIZES = ("small", "large")
SIZE_BOUNDS = (9.6, 11.8)  # pixels of radius: small is below, large above, medium has no name
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
    "brown": (0.065, 0.66, 0.50),
    "gray": (0.6, 0.03, 0.50),
}
# Saturation and value of each colour are scaled by these; `value` moves towards 1 by the given share.
PALETTES = {"vivid": (1.0, 0.0), "pastel": (0.66, 0.15), "muted": (0.8, -0.1)}


def _star_points(n: int, inner: float) -> Array:
    angles = np.arange(2 * n) * math.pi / n - math.pi / 2
    radii = np.where(np.arange(2 * n) % 2 == 0, 1.08, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles) + 0.06], axis=1)


def _heart_points() -> Array:
    t = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.4], axis=1) / 15.2


_W = 0.39
POLYGONS: dict[str, Array] = {
    "square": np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),
    "triangle": np.array([(0, -0.98), (1.06, 0.84), (-1.06, 0.84)]),
    "star": _star_points(5, 0.54),
    "heart": _heart_points(),
    "diamond": np.array([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]),
    "cross": np.array([(-_W, -1), (_W, -1), (_W, -_W), (1, -_W), (1, _W), (_W, _W), (_W, 1), (-_W, 1), (-_W, _W), (-1, _W), (-1, -_W), (-_W, -_W)]),
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
    distance: Array = np.where(crossings % 2 == 1, -nearest, nearest)
    return distance


def signed_distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance in units of the radius at local coordinates x (right), y (down)."""
    if shape == "circle":
        return np.hypot(x, y) - 0.96
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 1.02, 0.8 - np.hypot(x - 0.56, y + 0.14))
    return _polygon_distance(POLYGONS[shape], x, y)


def texture_weight(texture: str, dx: Array, dy: Array, radius: float, slant: float) -> Array:
    """Share 0..1 of the second colour at dx, dy pixels from the centre; shapes broadcast. `slant` turns the pattern, in radians."""
    u, v = dx * math.cos(slant) + dy * math.sin(slant), -dx * math.sin(slant) + dy * math.cos(slant)
    if texture == "striped":
        period = max(7.0, 0.6 * radius)
        return np.clip(0.5 + np.sin(2 * math.pi * u / period) * period / 5, 0, 1)
    spacing = max(7.5, 0.62 * radius)
    u, v = (u + spacing / 2) % spacing - spacing / 2, (v + spacing / 2) % spacing - spacing / 2
    return np.clip(0.5 + 0.33 * spacing - np.hypot(u, v), 0, 1)
