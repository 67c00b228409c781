"""What a person's clicks bring: win rate, effect, diversity and prompt-following against rated images, by simulated tastes.

    python -m bench efficiency [--tastes brightness,warmth,...] [--seeds 0,1,2] [--clicks 256] [--variants loop,both]

Each part is one `python -m loophil simulate` whose lines are kept in bench/out/ beside the LoRA that it ended with; parts that are there
are not run again. Prints medians over tastes and seeds with n, so that a stopped bench can go on another day.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"
TASTES = Path(__file__).parent / "tastes.py"
# What each learns from, besides the ratings of the same images; "{taste}" stands for the simulated person.
VARIANTS = {
    "loop": ("--learn.forward-passes", "0"),
    "replay": ("--learn.forward-passes", "0", "--learn.replay", "true"),
    "both": (),
    "fpo": ("--learn.forward-objective", "fpo"),
    "auto": ("--loop.auto-rounds-per-rating", "3"),
    "oracle": ("--rewards", f"{TASTES}:oracle_{{taste}}=1", "--learn.human-weight", "0"),
}
COLUMNS = ("win_rate", "effect", "diversity", "prompt_following", "base_prompt_following", "seconds")


def run(argv: list[str]) -> int:
    """Runs the parts that are missing, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench efficiency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tastes", default="brightness,warmth,contrast")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--clicks", type=int, default=256)
    parser.add_argument("--variants", default="loop,both", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    given, knobs = parser.parse_known_args(argv)
    OUT.mkdir(exist_ok=True)
    for variant in given.variants.split(","):
        for seed in given.seeds.split(","):
            for taste in given.tastes.split(","):
                path = OUT / f"{variant}-{taste}-{seed}-{given.clicks}.jsonl"
                if not given.table and not path.exists():
                    _part(path, taste, seed, given.clicks, [*(knob.format(taste=taste) for knob in VARIANTS[variant]), *knobs])
    print(table(sorted(OUT.glob(f"*-{given.clicks}.jsonl"))))
    return 0


def _part(path: Path, taste: str, seed: str, clicks: int, knobs: list[str]) -> None:
    lines = path.with_suffix(".part")
    lines.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        where = ["--runs", runs, "--run", "bench", "--seed", seed, *knobs]
        _loophil("simulate", "--rater", f"{TASTES}:{taste}", "--clicks", str(clicks), "--out", str(lines), *where)
        _loophil("export", "--format", "diffusers", "--to", runs, *where)
        shutil.copyfile(next(Path(runs).glob("*.zip")), path.with_suffix(".zip"))
    lines.rename(path)


def _loophil(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "loophil", *command], check=True)


def table(paths: list[Path]) -> str:
    """A Markdown table: medians by variant and clicks."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for path in paths:
        variant = path.name.split("-")[0]
        for line in path.read_text().splitlines():
            figures = json.loads(line)
            rows[variant, figures["clicks"] // 16 * 16].append(figures)
    lines = ["| variant | clicks | n | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for (variant, clicks), figures in sorted(rows.items()):
        cells = medians(figures, COLUMNS)
        lines.append(f"| {variant} | {clicks} | {len(figures)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def medians(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The cells of a table row; empty where nothing is known."""
    known = [[row[column] for row in rows if row[column] is not None] for column in columns]
    return [f"{statistics.median(values):.2f}" if values else "" for values in known]
