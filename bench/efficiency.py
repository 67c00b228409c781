"""What a person's clicks bring: win rate, effect, diversity and prompt-following against rated images, by simulated tastes.

    python -m bench efficiency [--tastes brightness,warmth,...] [--seeds 0,1,2] [--clicks 256] [--variants loop,both] [--jobs 1] [--table]
        [--out FOLDER] [knobs]

Each part is one `python -m loophil simulate` whose lines are kept in bench/out/ beside the LoRA that it ended with; parts that are there
are not run again, so a stopped bench can go on another day. Prints the median over tastes and seeds with the lowest and the highest, and n;
draws win rate and effect against rated images into efficiency.png there. Knobs behind are those of the program: for another base
`--model FOLDER`, with an --out of its own.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"
TASTES = Path(__file__).parent / "tastes.py"
# What each learns from, besides the ratings of the same images; "{taste}" stands for the simulated person.
VARIANTS = {
    "loop": ("--learn.forward-passes", "0"),
    "replay": ("--learn.forward-passes", "0", "--learn.replay"),
    "both": (),
    "fpo": ("--learn.forward-objective", "fpo"),
    "sft": ("--learn.sft", "0.1"),
    "basekl": ("--learn.base-kl", "0.1"),
    "ema": ("--learn.ema", "0.5"),
    "auto": ("--loop.auto-rounds-per-rating", "3"),
    "oracle": ("--rewards", f"{TASTES}:oracle_{{taste}}=1", "--learn.human-weight", "0"),
}
COLUMNS = ("win_rate", "effect", "diversity", "prompt_following", "base_prompt_following", "seconds")
PLOTTED = {"win_rate": "share of pairs won against the base", "effect": "effect, in standard deviations of the base"}
Rows = dict[tuple[str, int], list[dict[str, Any]]]


def run(argv: list[str]) -> int:
    """Runs the parts that are missing, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench efficiency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tastes", default="brightness,warmth,contrast")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--clicks", type=int, default=256)
    parser.add_argument("--variants", default="loop,both", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--jobs", type=int, default=1, help="parts that run side by side")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where parts, LoRAs and plot are kept")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    given, knobs = parser.parse_known_args(argv)
    given.out.mkdir(exist_ok=True, parents=True)
    which = product(given.seeds.split(","), given.tastes.split(","), given.variants.split(","))
    parts = [Part(variant, taste, seed, given.clicks, given.out) for seed, taste, variant in which]
    paths = [part.path for part in parts]
    if not given.table:
        with ThreadPoolExecutor(given.jobs) as jobs:
            list(jobs.map(lambda part: part.run(knobs), [part for part in parts if not part.path.exists()]))
    rows = gather(path for path in paths if path.exists())
    print(table(rows))
    plot(rows, given.out / "efficiency.png")
    return 0


@dataclass(frozen=True)
class Part:
    """One simulated person and what it comes to."""

    variant: str
    taste: str
    seed: str
    clicks: int
    folder: Path

    @property
    def path(self) -> Path:
        """Its lines of figures; the LoRA is beside them."""
        return self.folder / f"{self.variant}-{self.taste}-{self.seed}-{self.clicks}.jsonl"

    def run(self, knobs: Sequence[str]) -> None:
        """Rates, measures, exports; the files are there when all is done."""
        lines = self.path.with_suffix(".part")
        lines.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as runs:
            own = (knob.format(taste=self.taste) for knob in VARIANTS[self.variant])
            where = ["--runs", runs, "--run", "bench", "--seed", self.seed, *own, *knobs]
            _loophil("simulate", "--rater", f"{TASTES}:{self.taste}", "--clicks", str(self.clicks), "--out", str(lines), *where)
            _loophil("export", "--format", "diffusers", "--to", runs, *where)
            shutil.copyfile(next(Path(runs).glob("*.zip")), self.path.with_suffix(".zip"))
        lines.rename(self.path)


def _loophil(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "loophil", *command], check=True)


def gather(paths: Iterable[Path]) -> Rows:
    """{(variant, clicks at the checkpoint): the figures of each part that got there}, in the order of the paths."""
    rows: Rows = defaultdict(list)
    for path in paths:
        for line in path.read_text().splitlines():
            figures = json.loads(line)
            rows[path.name.split("-")[0], figures["clicks"] // 16 * 16].append(figures)
    return rows


def table(rows: Rows) -> str:
    """A Markdown table by variant and clicks."""
    lines = ["| variant | clicks | n | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (variant, clicks), figures in sorted(rows.items()):
        lines.append(f"| {variant} | {clicks} | {len(figures)} | " + " | ".join(medians(figures, COLUMNS)) + " |")
    return "\n".join(lines)


def medians(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The cells of a table row: median, and lowest and highest where they differ from it; empty where nothing is known."""
    return [_median([row[column] for row in rows if row[column] is not None]) for column in columns]


def _median(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle, low, high = (f"{value:.2f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def plot(rows: Rows, to: Path) -> None:
    """A picture of the medians against rated images, each with the band from lowest to highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, 2), PLOTTED.items(), strict=True):
        for variant in dict.fromkeys(variant for variant, _ in rows):
            points = sorted((clicks, [row[column] for row in figures]) for (name, clicks), figures in rows.items() if name == variant)
            clicks = [at for at, _ in points]
            axes.plot(clicks, [statistics.median(values) for _, values in points], marker="o", label=variant)
            axes.fill_between(clicks, [min(values) for _, values in points], [max(values) for _, values in points], alpha=0.15)
        axes.set(xlabel="rated images", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(to, dpi=120)
