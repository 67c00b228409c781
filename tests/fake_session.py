"""A session in memory that draws plain coloured pictures: stands in for loophil.session.Session where a test is about the page alone.

A test double only: nothing in the product can reach it. It refuses what the real one refuses, and learns by counting: a rated group, a version.
"""

import dataclasses
import itertools
import random
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from loophil.blind import Question
from loophil.config import LIVE, Settings
from loophil.dataset import Imported
from loophil.errors import InvalidInput, KeyConflict, UnknownGroup, UnknownVersion
from loophil.hub import PushStep, Repository
from loophil.store import RunInfo, Update
from loophil.taste import Agreement
from loophil.types import MAX_PROMPT, Act, DrawSettings, Entry, Group, ImageRef, Label, Look, Mean, Pair, Receipt, Status, Tally, Version

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
            self.pairs: dict[str, Pair] = {}
            self.asked: list[int | None] = []
            self.label: Label | None = None
            self.knobs = Settings(rewards={"jpeg": 0.5})
            self.no_signal = 0
            self.agreed: tuple[float, int] | None = None
            self.understood: Agreement | None = None
            self.between: float | None = None
            self.run = "first"
            self.pushes: list[tuple[str, str, str, bool]] = []
            self.switched: list[tuple[Any, ...]] = []
            self.version_titles: dict[int, str] = {}
            self.paused = False
            self.drafts: list[Image.Image] = []
            self.worker = "waiting for ratings"
            self.last_error: str | None = None
            self.note: str | None = None
            self.remedies: tuple[str, ...] = ()
            self.memory: tuple[int, int] | None = None
            self.raters = 1
            self.retried = 0
            self.fault: Exception | None = None
            self.scores: dict[str, tuple[float | None, ...]] = {}
            self.imported: list[tuple[str, bytes]] = []
            self.stock = self.full

    @property
    def session(self) -> "FakeSession":
        """It stands in for loophil.runs.Runs, too: the one run there is."""
        return self

    def all(self) -> list[RunInfo]:
        mine = RunInfo(self.run, "fake", 4 * len(self.acts), self.published[-1].number, time.time(), {}, {})
        return [mine, RunInfo("other", "fake", 12, 3, time.time() - 1e5, {}, {})]

    def open(self, name: str) -> None:
        self.switched.append(("open", name))

    def new(self, name: str, changes: Mapping[str, Any], prompts: str = "") -> None:
        self.switched.append(("new", name, dict(changes), prompts))

    def change(self, changes: Mapping[str, Any], prompts: str = "") -> None:
        self.switched.append(("change", dict(changes), prompts))

    def delete(self, name: str) -> None:
        self.switched.append(("delete", name))

    def rename(self, name: str, to: str) -> None:
        self.switched.append(("rename", name, to))

    def status(self) -> Status:
        newest = self.published[-1]
        return Status(
            self.run,
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
            no_signal=self.no_signal,
            last_error=self.last_error,
            remedies=self.remedies,
            note=self.note,
            memory=self.memory,
            raters=self.raters,
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

    def sketches(self) -> Sequence[Image.Image]:
        return self.drafts

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

    def compare(self, prompt: str, seed: int, looks: Sequence[Look] | None = None) -> tuple[Image.Image, ...]:
        """Red is the seed, green ten times the version, blue a hundred times the strength."""
        check_prompt(prompt)
        looks = looks or (Look(0), Look(self.published[-1].number))
        for look in looks:
            self.check_version(look.version)
        return tuple(Image.new("RGB", (64, 64), (seed % 256, 10 * look.version % 256, int(100 * look.strength))) for look in looks)

    def check_version(self, number: int) -> None:
        if number not in {v.number for v in self.published}:
            raise UnknownVersion(f"This run has no version {number}; the newest is {self.published[-1].number}.")

    def ask_blind(self, rater: str = "", version: int | None = None) -> Question:
        self.asked.append(version)
        if len(self.published) == 1:
            raise InvalidInput("Nothing was learned yet, so there is nothing to compare: rate some groups first.")
        number = next(self.names)
        pictures = [Image.new("RGB", (64, 64), color) for color in ((200, 0, number % 256), (0, 200, number % 256))]
        return Question(f"q{number}", self.published[-1].number, f"blind {number}", *pictures)

    def answer_blind(self, question: str, choice: str, rater: str = "", milliseconds: int | None = None) -> Pair:
        """Tuned is always on the left."""
        if choice not in ("left", "right", "tie"):
            raise InvalidInput(f"Unknown choice {choice!r}. Choose from: left, right, tie.")
        side = {"left": "tuned", "right": "base", "tie": "tie"}[choice]
        pair = Pair("blind", 1, self.published[-1].number, 0, rater, side, True, milliseconds, key=question)
        with self.lock:
            self.pairs[question] = pair
        return pair

    def tallies(self) -> list[Tally]:
        with self.lock:
            pairs = list(self.pairs.values())
        numbers = sorted({pair.version for pair in pairs})
        return [Tally(n, *(sum(p.version == n and p.choice == side for p in pairs) for side in ("tuned", "base", "tie"))) for n in numbers]

    def strip(self) -> tuple[list[str], dict[int, dict[int, str]]]:
        prompts = list(self.prompts[:2])
        return prompts, {v.number: {i: self.picture(1000 + 10 * v.number + i) for i in range(2)} for v in self.published}

    def version_names(self) -> dict[int, str]:
        return dict(self.version_titles)

    def name_version(self, number: int, name: str) -> None:
        self.check_version(number)
        self.version_titles[number] = name

    def history(
        self, *, rater: str | None = None, version: int | None = None, kind: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[Entry]:
        with self.lock:
            entries = [Entry(self.groups[act.group], act, time.time(), i, (1,) if i == 1 else ()) for i, act in enumerate(self.acts, 1)]
        wanted = [
            entry
            for entry in reversed(entries)
            if rater in (None, entry.act.rater) and version in (None, entry.group.policy_version) and kind in (None, entry.act.kind)
        ]
        return [entry for entry in wanted if before is None or entry.act_id < before][:limit]

    def group(self, group_id: str) -> Group:
        if group_id not in self.groups:
            raise UnknownGroup(f"This run has no group {group_id!r}.")
        return self.groups[group_id]

    def updates(self) -> list[Update]:
        stats = {"images": 4, "approx_kl": 0.02, "kept": 1.0, "seconds": 2.5, "shares": {"human:ann": 0.75, "jpeg": 0.25}}
        return [Update(v.number, v.number - 1, "committed", v.number, v.created, v.created, stats, "") for v in self.published if v.kind == "update"]

    def agreement(self, rater: str = "") -> tuple[float, int] | None:
        return self.agreed

    def raters_agreement(self) -> float | None:
        return self.between

    def understanding(self, rater: str = "me") -> tuple[Agreement | None, str]:
        return self.understood, "Automatic rounds go on by themselves while nobody waits." if self.understood else ""

    def curves(self) -> list[Mean]:
        return [Mean(v.number, source, 3 + v.number / 10, 4) for v in self.published for source in ("jpeg", "stars")]

    def ratings_file(self, format: str) -> str:
        if format not in ("csv", "jsonl"):
            raise InvalidInput(f"Unknown format {format!r}. Choose from: csv, jsonl.")
        return "".join(f"{act.group}\n" for act in self.acts)

    def export_dataset(self, folder: Path) -> Path:
        path = folder / "groups.parquet"
        path.write_bytes(b"PAR1")
        return path

    def import_dataset(self, file: Path) -> Imported:
        if self.fault:
            raise self.fault
        self.imported.append((file.suffix, file.read_bytes()))
        return Imported(1, 1, 0, changed=1)

    def forget(self, rater: str = "") -> int:
        with self.lock:
            mine = [act for act in self.acts if act.rater == rater]
            self.acts = [act for act in self.acts if act.rater != rater]
        return len(mine)

    def versions(self) -> list[Version]:
        return list(self.published)

    @property
    def settings(self) -> Settings:
        return self.knobs

    def adjust(self, changes: Mapping[str, Any]) -> Settings:
        if fixed := sorted(set(changes) - LIVE):
            raise InvalidInput(f"{', '.join(fixed)} cannot change while the run is open.")
        self.knobs = self.knobs.changed(changes)
        return self.knobs

    def retry(self) -> None:
        self.retried += 1
        self.last_error, self.remedies = None, ()

    def pause(self) -> Status:
        self.paused = True
        return self.status()

    def resume(self) -> Status:
        self.paused = False
        return self.status()

    def rollback(self, version: int) -> Status:
        self.check_version(version)
        self.published.append(dataclasses.replace(self.published[-1], number=self.published[-1].number + 1, parent=version, kind="rollback"))
        return self.status()

    def export(self, format: str, label: Label | None = None) -> Path:
        if format not in FORMATS:
            raise InvalidInput(f"Unknown format {format!r}. Choose from: {', '.join(FORMATS)}.")
        self.label = label
        path = self.folder / f"{format}-v{self.published[-1].number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.md", f"version {self.published[-1].number}")
        return path

    def push(self, repository: Repository, format: str, label: Label | None = None, *, private: bool = False) -> Iterator[PushStep]:
        """Asks no hub for anything; `pushes` remembers under which token which repository was meant."""
        self.label = label
        yield PushStep("Making the files and their pictures")
        if self.fault is not None:
            raise self.fault
        self.pushes.append((repository.name, repository._token, format, private))
        yield PushStep("Published", f"https://hub.example/{repository.name}")

    def close(self) -> None:
        self.closed = True
