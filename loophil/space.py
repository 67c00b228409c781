"""What is special about a Hugging Face Space: its disk forgets, and a GPU may only be lent to it. Not who may do what there: see ui/access.py."""

import os
from pathlib import Path

from loophil.config import Settings

EPHEMERAL = (
    "This Space's disk is ephemeral: when the Space restarts, this run is gone. Take the LoRA (Export) and the ratings (History) with you, or have "
    "snapshots kept: LOOPHIL_SNAPSHOTS, see the README."
)
ZERO_GPU = (
    "ZeroGPU lends its GPU for single calls, each in a process of its own, so a learner that stays cannot use it: everything runs on the CPU here, "
    "which is enough for the embedded model. For that choose CPU basic, for other models a dedicated GPU, in the Space's settings."
)

NO_SIGN_IN = (
    "Nobody can sign in here, so nobody can teach: put `hf_oauth: true` into the README's front matter, or set LOOPHIL_AUTH to name:password, or "
    "LOOPHIL_PUBLIC to true, which lets everybody teach."
)
OAUTH = {"OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"}  # set where the front matter says hf_oauth


def on_space() -> bool:
    """Whether this is a Space."""
    return "SPACE_ID" in os.environ


def on_zero_gpu() -> bool:
    """Whether this Space has no GPU of its own but borrows one, as the package `spaces` reads it from the environment."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def has_accounts() -> bool:
    """Whether the Hub lets people sign in here with their account."""
    return set(os.environ) >= OAUTH


def nobody_teaches(settings: Settings) -> bool:
    """Whether this is a Space where there is no way to sign in: names without a password in `auth` need the Hub's. False elsewhere."""
    return on_space() and not has_accounts() and not settings.public and ":" not in settings.auth


def is_ephemeral(folder: Path) -> bool:
    """Whether a restart of the Space takes this folder away: it lies on the container's own disk and not on a volume. False elsewhere."""
    folder = folder.resolve()
    return on_space() and not any(os.path.ismount(place) for place in (folder, *folder.parents)[:-1])


def notes(settings: Settings) -> tuple[str, ...]:
    """What people have to know of this Space, a sentence each."""
    forgets = is_ephemeral(settings.runs) and not settings.snapshots
    said = {ZERO_GPU: on_zero_gpu(), NO_SIGN_IN: nobody_teaches(settings), EPHEMERAL: forgets}
    return tuple(sentence for sentence, holds in said.items() if holds)
