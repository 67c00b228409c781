"""What the embedded models are trained on: pictures rendered once, and fresh captions that never state what is held out."""

import json
import math
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.scenes import Scene, caption, render, sample_scene, sample_style
from data.shapes import BACKGROUNDS, COLORS, MAX_COUNT, RELATIONS, SHAPES, SIZES, TEXTURES

WORK = Path(__file__).parent.parent / ".training"
PICTURES = 65_536
CAPTIONS = 4  # of each picture: writing one takes longer than a GPU trains on it
HARD = {"texture": 5.0, "relation": 4.0, "background": 2.0}  # what the small CLIP mistakes as long as all are asked alike


def held_out(stated: Scene) -> bool:
    """Whether what a caption states is kept from training: one in twelve, chosen by its text, for the figures."""
    return crc32(repr(stated).encode()) % 12 == 0


def scene_of(index: int) -> tuple[Scene, np.random.Generator]:
    rng = np.random.default_rng((2026, index))
    return sample_scene(rng), rng


def pixels_of(index: int) -> NDArray[np.uint8]:
    scene, rng = scene_of(index)
    return np.asarray(render(scene, sample_style(rng), rng))


def pictures() -> NDArray[np.uint8]:
    """(PICTURES, 64, 64, 3) uint8, rendered once and kept in the work folder."""
    path = WORK / "pictures.npy"
    if not path.exists():
        print(f"rendering {PICTURES} pictures", flush=True)
        made = np.stack(_of_each_picture(pixels_of))
        np.save(path, made)
    kept: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return kept


def captions() -> list[list[str]]:
    """CAPTIONS for each picture, written once and kept in the work folder."""
    path = WORK / "captions.json"
    if not path.exists():
        print(f"writing captions for {PICTURES} pictures", flush=True)
        path.write_text(json.dumps(_of_each_picture(captions_of)))
    kept: list[list[str]] = json.loads(path.read_text())
    return kept


def captions_of(index: int) -> list[str]:
    rng = np.random.default_rng((3, index))
    return [training_caption(index, rng) for _ in range(CAPTIONS)]


def _of_each_picture(make: Callable[[int], Any]) -> list[Any]:
    """[make(0), ...], by all cores, for a file in the work folder."""
    WORK.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool() as pool:
        return pool.map(make, range(PICTURES), chunksize=256)


def difficulty(n: int) -> torch.Tensor:
    """(n,) how often each picture is shown to the UNet: those of thin shapes, which it learns last, twice as often as others."""
    thin = {"star", "cross", "moon"}
    return torch.tensor([2.0 if any(thing.shape in thin for thing in scene_of(i)[0].things) else 1.0 for i in range(n)])


def training_caption(index: int, rng: np.random.Generator) -> str:
    """A fresh caption for picture `index`; never one whose statement is held out."""
    scene, _ = scene_of(index)
    while True:
        text, stated = caption(scene, rng, keep=float(rng.choice((0.5, 0.75, 0.95))))
        if not held_out(stated):
            return text


def one_changed(stated: Scene, rng: np.random.Generator, weights: Mapping[str, float] | None = None) -> Scene:
    """The statement with one of its attributes changed to another value; how often each, relative to 1, by `weights`."""
    places: list[tuple[int, str]] = [
        (i, name) for i, t in enumerate(stated.things) for name in ("shape", "color", "texture", "size") if getattr(t, name)
    ]
    places += [(-1, name) for name in ("relation", "background") if getattr(stated, name)]
    places += [(0, "count")] if len(stated.things) == 1 else []
    if weights is None:
        i, name = places[int(rng.integers(len(places)))]
    else:
        chances = np.array([weights.get(name, 1.0) for _, name in places])
        i, name = places[int(rng.choice(len(places), p=chances / chances.sum()))]
    values: Any = {
        "shape": SHAPES,
        "color": COLORS,
        "texture": TEXTURES,
        "size": SIZES,
        "relation": RELATIONS,
        "background": BACKGROUNDS,
        "count": range(1, MAX_COUNT + 1),
    }[name]
    owner = stated if i < 0 else stated.things[i]
    value = rng.choice([v for v in values if v != getattr(owner, name)])
    if i < 0:
        changed: dict[str, Any] = {name: str(value)}
        return replace(stated, **changed)
    changed = {name: int(value) if name == "count" else str(value)}
    thing = replace(stated.things[i], **changed)
    return replace(stated, things=tuple(thing if j == i else t for j, t in enumerate(stated.things)))


def captions_with_changes(index: int, rng: np.random.Generator, changes: int) -> list[str]:
    """A caption of picture `index`, then captions that each state one attribute wrongly, mostly those that are learned last."""
    scene, _ = scene_of(index)
    while True:
        text, stated = caption(scene, rng, keep=0.85)
        if not held_out(stated):
            return [text, *(caption(one_changed(stated, rng, HARD), rng, keep=1.0)[0] for _ in range(changes))]


def to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """(n, 64, 64, 3) uint8 -> (n, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> NDArray[np.uint8]:
    """(n, 3, 64, 64) in -1..1 -> (n, 64, 64, 3) uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(pixels: NDArray[np.uint8], columns: int) -> Image.Image:
    """Tiles (n, 64, 64, 3) pictures, doubled in size."""
    n, size = len(pixels), 2 * pixels.shape[1] + 4
    sheet = Image.new("RGB", (columns * size, math.ceil(n / columns) * size), "white")
    for i, picture in enumerate(pixels):
        tile = Image.fromarray(picture).resize((size - 4, size - 4), Image.Resampling.BICUBIC)
        sheet.paste(tile, (i % columns * size, i // columns * size))
    return sheet
