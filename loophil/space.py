"""What is special about a Hugging Face Space: its disk forgets, and a GPU may only be lent to it. Not who may do what there: see ui/access.py."""

import os
from pathlib import Path

from loophil.config import Settings

EPHEMERAL = (
    "This Space's disk is ephemeral: when the Space restarts, this run is gone. Take the LoRA (Export) and the ratings (History) with you, or have "
    "snapshots kept: --snapshots, see the README."
)
ZERO_GPU = (
    "ZeroGPU lends its GPU for single calls, each in a process of its own, so a learner that stays cannot use it: everything runs on the CPU here, "
    "which is enough for the embedded model. For that choose CPU basic, for other models a dedicated GPU, in the Space's settings."
)


def on_space() -> bool:
    """Whether this is a Space."""
    return "SPACE_ID" in os.environ


def on_zero_gpu() -> bool:
    """Whether this Space has no GPU of its own but borrows one, as the package `spaces` reads it from the environment."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def is_ephemeral(folder: Path) -> bool:
    """Whether a restart of the Space takes this folder away: it lies on the container's own disk and not on a volume. False elsewhere."""
    folder = folder.resolve()
    return on_space() and not any(os.path.ismount(place) for place in (folder, *folder.parents)[:-1])


def notes(settings: Settings) -> tuple[str, ...]:
    """What people have to know of this Space, a sentence each."""
    forgets = is_ephemeral(settings.runs) and not settings.snapshots
    return (*([ZERO_GPU] if on_zero_gpu() else []), *([EPHEMERAL] if forgets else []))
