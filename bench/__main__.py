"""`python -m bench speed | page | efficiency | best_of_n | elsewhere | model | taste`: tables of figures; `python -m bench screenshots`:
pictures of the page.

See each module for what is measured and how.
"""

import argparse
import importlib
import sys

from loophil.process import prepare_process

BENCHES = ("speed", "page", "efficiency", "best_of_n", "elsewhere", "model", "taste", "screenshots")


def main() -> int:
    """Runs one bench; its own flags follow its name."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("bench", choices=BENCHES, nargs="?", default="speed")
    given, rest = parser.parse_known_args()
    prepare_process()
    module = importlib.import_module(f"bench.{given.bench}")
    status: int = module.run(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
