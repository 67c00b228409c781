"""Whether a tuned LoRA holds in other hands: those that `bench efficiency` exported, loaded by stock diffusers, under other schedulers.

    python -m bench elsewhere [--variant both] [--tastes brightness,...] [--clicks 256] [--seeds 0,1,2]

Every such LoRA in bench/out/ against its base at the same prompts and seeds, by the taste that it was tuned for. Prints medians with n.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from bench.efficiency import OUT, medians
from bench.tastes import TASTES
from loophil.build import EMBEDDED, follows, measured_prompts
from loophil.config import Settings
from loophil.evaluation import SEEDS, Examiner, Figures
from loophil.types import DrawSettings

SCHEDULERS: dict[str, tuple[Any, float]] = {
    "DDIM, eta 1": (DDIMScheduler, 1.0),
    "DDIM, eta 0": (DDIMScheduler, 0.0),
    "DPM++ 2M": (DPMSolverMultistepScheduler, 0.0),
}
COLUMNS = tuple(field.name for field in fields(Figures))


def run(argv: list[str]) -> int:
    """Prints one table row per scheduler."""
    parser = argparse.ArgumentParser(prog="python -m bench elsewhere", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="both")
    parser.add_argument("--tastes", default="brightness,warmth,contrast")
    parser.add_argument("--clicks", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    given, knobs = parser.parse_known_args(argv)
    asked = product(given.tastes.split(","), given.seeds.split(","))
    loras = [path for taste, seed in asked if (path := OUT / f"{given.variant}-{taste}-{seed}-{given.clicks}.zip").exists()]
    if not loras:
        print("There is no LoRA in bench/out/: run `python -m bench efficiency` first.")
        return 1
    settings = Settings.read(knobs)
    print("| scheduler | n | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|", sep="\n")
    for name in SCHEDULERS:
        elsewhere = Elsewhere(settings, name)
        measured = [asdict(elsewhere.measure(path)) for path in loras]
        print(f"| {name} | {len(measured)} | " + " | ".join(medians(measured, COLUMNS)) + " |", flush=True)
    return 0


class Elsewhere:
    """A stock pipeline with one scheduler; it draws its base once."""

    def __init__(self, settings: Settings, name: str) -> None:
        scheduler, self.eta = SCHEDULERS[name]
        self.pipeline: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED, dtype=torch.float32, safety_checker=None)
        self.pipeline.scheduler = scheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = DrawSettings.of(settings.draw)
        self.prompts: Sequence[str] = measured_prompts(settings)
        self.base = self._draw()

    def measure(self, lora: Path) -> Figures:
        """The LoRA in this zip, named VARIANT-TASTE-SEED-CLICKS, against the base."""
        taste = TASTES[lora.name.split("-")[1]]
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(lora) as files:
                files.extractall(folder)
            self.pipeline.load_lora_weights(folder)
        try:
            tuned = self._draw()
        finally:
            self.pipeline.unload_lora_weights()
        return Examiner(self.prompts, self.settings, taste.utility, follows).compare(self.base, tuned)

    def _draw(self) -> list[list[Image.Image]]:
        rows = []
        for prompt in self.prompts:
            made = self.pipeline(
                prompt,
                num_images_per_prompt=len(SEEDS),
                num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                eta=self.eta,
                generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            )
            rows.append(list(made.images))
        return rows
