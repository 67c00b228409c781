"""A session in memory that draws plain coloured pictures: stands in for loophil.session.Session where a test is about the page alone.

A test double only: nothing in the product can reach it. It refuses what the real one refuses, and learns by counting: a rated group, a version.
"""

import dataclasses
import itertools
import random
import threading
import time
import zipfile
from pathlib import Path

from PIL import Image

from loophil.errors import InvalidInput, KeyConflict, UnknownGroup, UnknownVersion
from loophil.types import MAX_PROMPT, Act, DrawSettings, Group, ImageRef, Receipt, Status, Version

FORMATS = ("diffusers", "peft", "kohya")
SETTINGS = DrawSettings(num_inference_steps=2, guidance_scale=3.0, eta=1.0)


def check_prompt(prompt: str) -> str:
    if len(prompt) > MAX_PROMPT:
        raise InvalidInput(f"A prompt may have {MAX_PROMPT} characters, not {len(prompt):,}.")
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        raise InvalidInput("The prompt holds half a character (a lone surrogate).")
    return prompt


class FakeSession:
    """`stock`: how many groups are ready beyond those that were rated; `acts`: everything that was filed, in order."""

    def __init__(self, folder: Path, *, k: int = 4, stock: int = 6) -> None:
        self.images = folder / "images"
        self.images.mkdir(parents=True)
        self.folder = folder
        self.k = k
        self.prompts: tuple[str, ...] = ("a red circle", "two blue stars", "a striped heart on a dark background")
        self.lock = threading.RLock()
        self.seeds = itertools.count(1)
        self.names = itertools.count(1)
        self.closed = False
        self.full = stock
        self.reset()

    def reset(self) -> None:
        """As if nothing had happened; group names and pictures go on, so that no browser takes a new group for an old one."""
        with self.lock:
            self.groups: dict[str, Group] = {}
            self.wishes: list[str] = []
            self.acts: list[Act] = []
            self.answers: dict[str, tuple[Act, Receipt]] = {}
            self.published = [Version(0, None, "base", time.time(), 0, "")]
            self.paused = False
            self.worker = "waiting for ratings"
            self.last_error: str | None = None
            self.fault: Exception | None = None
            self.scores: dict[str, tuple[float | None, ...]] = {}
            self.stock = self.full

    def status(self) -> Status:
        newest = self.published[-1]
        return Status(
            "first",
            "fake",
            "cpu",
            policy_version=newest.number,
            version_created=newest.created,
            updates=newest.number,
            ratings=sum(s is not None for act in self.acts for s in act.stars),
            groups=len(self.groups),
            ready=self.stock,
            worker=self.worker,
            paused=self.paused,
            last_error=self.last_error,
            time=time.time(),
        )

    def picture(self, seed: int) -> str:
        hue = random.Random(seed)
        file = f"{seed}.png"
        image = Image.new("RGB", (64, 64), (hue.randrange(256), hue.randrange(256), hue.randrange(256)))
        image.paste((hue.randrange(256), hue.randrange(256), hue.randrange(256)), (16, 16, 48, 48))
        image.save(self.images / file)
        return file

    def draw(self, prompt: str = "") -> Group:
        """A group of this prompt, or of one from the list with the group's id behind it, so that a test can tell which is shown."""
        with self.lock:
            seeds = [next(self.seeds) for _ in range(self.k)]
            name = f"g{next(self.names)}"
            pictures = tuple(ImageRef(f"{name}-{i}", seed, self.picture(seed)) for i, seed in enumerate(seeds))
            group = Group(
                name,
                prompt or f"{self.prompts[len(self.groups) % len(self.prompts)]} {name}",
                SETTINGS,
                self.published[-1].number,
                pictures,
                created=time.time(),
            )
            self.groups[name] = group
            return group

    def unrated(self, rater: str) -> list[Group]:
        done = {act.group for act in self.acts if act.rater == rater}
        waiting = [group for group in self.groups.values() if group.id not in done]
        return sorted(waiting, key=lambda group: group.prompt not in self.wishes)

    def on_show(self, limit: int = 6) -> list[Group]:
        return self.upcoming("", limit)

    def upcoming(self, rater: str, limit: int = 6, page: str = "") -> list[Group]:
        with self.lock:
            while len(self.unrated(rater)) < self.stock:
                self.draw()
            return self.unrated(rater)[:limit]

    def ask(self, prompt: str) -> None:
        with self.lock:
            self.wishes.append(check_prompt(prompt))
            self.draw(prompt)

    def new_group(self, prompt: str = "", rater: str = "") -> Group:
        return self.draw(check_prompt(prompt) or self.prompts[0])

    def rate(self, act: Act) -> Receipt:
        with self.lock:
            if self.fault is not None:
                raise self.fault
            if act.group not in self.groups:
                raise UnknownGroup(f"This run has no group {act.group!r}: take one from /new_group.")
            if act.kind == "undo":
                return self.take_back(act)
            if len(act.stars) != self.k:
                raise InvalidInput(f"Group {act.group} has {self.k} images, but {len(act.stars)} ratings came.")
            if not all(s is None or 1 <= s <= 5 for s in act.stars):
                raise InvalidInput(f"Ratings go from 1 to 5, not {act.stars}.")
            if act.key in self.answers:
                before, receipt = self.answers[act.key]
                if before != act:
                    raise KeyConflict(f"The key {act.key!r} was used before with other content.")
                return receipt
            return self.file(act)

    def file(self, act: Act) -> Receipt:
        self.acts = [a for a in self.acts if (a.group, a.rater) != (act.group, act.rater)] + [act]
        rated = sum(s is not None for s in act.stars)
        if rated and not self.paused:
            number = self.published[-1].number
            self.published.append(Version(number + 1, number, "update", time.time(), len(self.acts), ""))
        receipt = Receipt(len(self.acts), rated, self.published[-1].number, 0)
        if act.key:
            self.answers[act.key] = (act, receipt)
        return receipt

    def take_back(self, act: Act) -> Receipt:
        self.acts = [a for a in self.acts if (a.group, a.rater) != (act.group, act.rater)]
        return Receipt(len(self.acts), 0, self.published[-1].number, 0)

    def undo(self, rater: str) -> Group | None:
        mine = [act for act in self.acts if act.rater == rater]
        if not mine:
            return None
        self.acts.remove(mine[-1])
        return self.groups[mine[-1].group]

    def revealed(self, group_id: str) -> tuple[Group, dict[str, tuple[float | None, ...]]]:
        """`scores` are the same for every group."""
        if group_id not in self.groups:
            raise UnknownGroup(f"This run has no group {group_id!r}.")
        return self.groups[group_id], dict(self.scores)

    def compare(self, prompt: str, seed: int) -> tuple[Image.Image, Image.Image]:
        check_prompt(prompt)
        return Image.new("RGB", (64, 64), (seed % 256, 0, 0)), Image.new("RGB", (64, 64), (0, seed % 256, 0))

    def strip(self) -> list[tuple[int, str]]:
        return [(version.number, self.picture(1000 + version.number)) for version in self.published]

    def versions(self) -> list[Version]:
        return list(self.published)

    def pause(self) -> Status:
        self.paused = True
        return self.status()

    def resume(self) -> Status:
        self.paused = False
        return self.status()

    def rollback(self, version: int) -> Status:
        if version not in {v.number for v in self.published}:
            raise UnknownVersion(f"This run has no version {version}; the newest is {self.published[-1].number}.")
        self.published.append(dataclasses.replace(self.published[-1], number=self.published[-1].number + 1, parent=version, kind="rollback"))
        return self.status()

    def export(self, format: str) -> Path:
        if format not in FORMATS:
            raise InvalidInput(f"Unknown format {format!r}. Choose from: {', '.join(FORMATS)}.")
        path = self.folder / f"{format}-v{self.published[-1].number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.md", f"version {self.published[-1].number}")
        return path

    def close(self) -> None:
        self.closed = True
