"""How records go out: the dictionaries of the contracts and of the page's own components. Nothing here decides or changes anything."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loophil.types import Group, Status, Version


def picture_url(images: Path, file: str) -> str:
    """Where the browser finds a stored picture; relative, so that it holds behind a proxy's path too."""
    return "gradio_api/file=" + quote((images / file).as_posix())


def group_answer(group: Group) -> dict[str, Any]:
    """What /new_group says of a group."""
    pictures = [{"id": image.id, "seed": image.seed} for image in group.images]
    return {"group": group.id, "prompt": group.prompt, "policy_version": group.policy_version, "k": len(pictures), "images": pictures}


def status_answer(status: Status) -> dict[str, Any]:
    """What /status says."""
    return dataclasses.asdict(status)


def board_group(group: Group, images: Path) -> dict[str, Any]:
    """A group for the board: no seeds and no scores before it is rated (they would anchor the eye)."""
    return {"id": group.id, "prompt": group.prompt, "version": group.policy_version, "pictures": [picture_url(images, i.file) for i in group.images]}


def facts(group: Group, scores: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """What the board may show once a group is rated; positions are the group's own, not those shown."""
    seeds = [image.seed for image in group.images]
    return {"version": group.policy_version, "seeds": seeds, "scores": {reward: list(values) for reward, values in scores.items()}}


def bar(status: Status, *, may_teach: bool, sign_in: bool) -> dict[str, Any]:
    """What the status bar shows. `now` is the server's clock, so that ages do not depend on the browser's; `sign_in`: a password would help."""
    return {**status_answer(status), "now": time.time(), "may_teach": may_teach, "sign_in": sign_in}


def version_row(version: Version) -> dict[str, Any]:
    """One line of the list of versions."""
    return {"number": version.number, "parent": version.parent, "kind": version.kind, "created": version.created, "ratings": version.ratings}
