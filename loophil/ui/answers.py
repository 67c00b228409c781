"""How records go out: the dictionaries of the contracts and of the page's own components. Nothing here decides or changes anything."""

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from loophil.evaluation import wilson
from loophil.store import Update
from loophil.types import HUMAN, Entry, Group, Status, Tally, Version

LITTLE_DISK = 5e9  # bytes


def picture_url(images: Path, file: str) -> str:
    """Where the browser finds a stored picture; relative, so that it holds behind a proxy's path too."""
    return "gradio_api/file=" + quote((images / file).as_posix())


def group_answer(group: Group) -> dict[str, Any]:
    """What /new_group says of a group."""
    pictures = [{"id": image.id, "seed": image.seed} for image in group.images]
    return {"group": group.id, "prompt": group.prompt, "policy_version": group.policy_version, "k": len(pictures), "images": pictures}


def status_answer(status: Status) -> dict[str, Any]:
    """What /status says, and to anybody."""
    said = dataclasses.asdict(status)
    if "shares" in status.last_update:
        said["last_update"] |= {"shares": people_as_one(status.last_update["shares"])}
    return said


def people_as_one(shares: Mapping[str, float]) -> dict[str, float]:
    """Each source's share with the people's added up: who they are is not everybody's to know."""
    joined: dict[str, float] = {}
    for source, share in shares.items():
        name = "people" if source.startswith(HUMAN) else source
        joined[name] = joined.get(name, 0.0) + share
    return joined


def board_group(group: Group, images: Path) -> dict[str, Any]:
    """A group for the board: no seeds and no scores before it is rated (they would anchor the eye)."""
    return {"id": group.id, "prompt": group.prompt, "version": group.policy_version, "pictures": [picture_url(images, i.file) for i in group.images]}


def facts(group: Group, scores: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    """What the board may show once a group is rated; positions are the group's own, not those shown."""
    seeds = [image.seed for image in group.images]
    return {"version": group.policy_version, "seeds": seeds, "scores": {reward: list(values) for reward, values in scores.items()}}


def bar(status: Status, tallies: Sequence[Tally], images: Path, *, may_teach: bool, is_owner: bool, sign_in: bool) -> dict[str, Any]:
    """What the status bar shows. `now` is the server's clock, so that ages do not depend on the browser's; `sign_in`: a password would help.

    `disk`: bytes left where the run lies, once they are few.
    """
    better, free = verdict(tallies[-1]) if tallies else None, shutil.disk_usage(images).free
    known = {"better": better, "disk": free if free < LITTLE_DISK else None, "now": time.time()}
    return {**status_answer(status), **known, "may_teach": may_teach, "is_owner": is_owner, "sign_in": sign_in}


def version_row(version: Version, name: str) -> dict[str, Any]:
    """One line of the list of versions."""
    known = {"number": version.number, "parent": version.parent, "kind": version.kind, "created": version.created, "ratings": version.ratings}
    return {**known, "name": name}


def verdict(tally: Tally) -> dict[str, Any]:
    """How a version did in blind pairs with the base, with Wilson's 95% interval; a tie is half a win."""
    wins = tally.tuned + tally.tie / 2
    low, high = wilson(wins, tally.n)
    return {"version": tally.version, "wins": wins, "n": tally.n, "share": tally.share, "low": low, "high": high}


def history_row(entry: Entry, images: Path, *, mine: str, named: bool) -> dict[str, Any]:
    """One rated group; `named`: whether it may be said by whom."""
    act, group = entry.act, entry.group
    return {
        "act": entry.act_id,
        "group": group.id,
        "prompt": group.prompt,
        "pictures": [picture_url(images, image.file) for image in group.images],
        "stars": list(act.stars),
        "kind": act.kind,
        "rater": act.rater if named else "",
        "mine": act.rater == mine,
        "version": group.policy_version,
        "created": entry.created,
        "taught": list(entry.taught),
    }


def update_line(update: Update) -> dict[str, Any]:
    """One line of the log: what an attempt to learn came to."""
    known = {name: update.stats.get(name) for name in ("images", "approx_kl", "kept", "seconds")}
    shares = people_as_one(update.stats.get("shares", {}))
    at = update.finished or update.started
    return {"number": update.id, "status": update.status, "version": update.version, "at": at, "reason": update.reason, "shares": shares, **known}
