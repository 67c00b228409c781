"""What choosing alone would bring: the pictures that a simulated person likes best of sixteen that the base draws of one prompt.

    python -m bench best_of_n [--tastes brightness,warmth,...] [knobs]

No learning is in it, and no noise. It says how much of a loss in diversity is the taste itself: who likes night skies gets pictures that are alike.
"""

import argparse

import numpy as np

from bench.tastes import TASTES
from loophil.build import load_engine, measured_prompts
from loophil.config import Settings
from loophil.evaluation import spread
from loophil.types import DrawSettings

DRAWN = 16
KEPT = (8, 4, 2)


def run(argv: list[str]) -> int:
    """Prints a Markdown table: effect and diversity of the best 8, 4 and 2."""
    parser = argparse.ArgumentParser(prog="python -m bench best_of_n", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tastes", default="brightness,warmth,contrast,saturation,detail,leftness,symmetry,mood")
    given, knobs = parser.parse_known_args(argv)
    settings = Settings.read(knobs)
    engine, draw, prompts = load_engine(settings), DrawSettings.of(settings.draw), measured_prompts(settings)
    rows = [engine.sampler.pictures(prompt, draw, tuple(range(DRAWN * n, DRAWN * (n + 1))), who="base") for n, prompt in enumerate(prompts)]
    whole = spread(rows)
    print("| taste | " + " | ".join(f"best {kept} of {DRAWN}: effect, diversity" for kept in KEPT) + " |", "|---" * (1 + len(KEPT)) + "|", sep="\n")
    for taste in given.tastes.split(","):
        values = np.array([[TASTES[taste].utility(image, prompt) for image in row] for prompt, row in zip(prompts, rows, strict=True)])
        order, std = np.argsort(-values, axis=1), np.sqrt(values.var(axis=1, ddof=1).mean())
        cells = []
        for kept in KEPT:
            best = np.take_along_axis(values, order[:, :kept], axis=1)
            effect = (best.mean(axis=1) - values.mean(axis=1)).mean() / std
            chosen = [[row[i] for i in ranks[:kept]] for row, ranks in zip(rows, order, strict=True)]
            cells.append(f"{effect:.2f}, {spread(chosen) / whole:.2f}")
        print(f"| {taste} | " + " | ".join(cells) + " |", flush=True)
    return 0
