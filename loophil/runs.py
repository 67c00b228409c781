"""The run that is open, and the ways to another: a new one, one that is there, another name, away with it.

One run is open at a time, because its worker owns the device; opening another closes it first, and when that cannot be opened the one before is
open again. It knows no page and no device: how a session is built is given.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loophil.config import RUN_NAME, Settings, by_name
from loophil.errors import InvalidInput, LoopHILError
from loophil.prompts import read_prompts
from loophil.session import Session
from loophil.store import RunInfo, describe_runs, hold, last_opened

SHAPE = ("model", "revision", "rewards", "draw.prompts", "draw.num_images_per_prompt", "draw.size")  # what a run is begun with on the page
PROMPTS = "prompts.txt"  # in a run's folder: the list that somebody typed for it


class Runs:
    """`session` is the open run's. Thread-safe. Methods raise a LoopHILError with a sentence, and then the same run is open as before."""

    def __init__(self, settings: Settings, build: Callable[[Settings], Session]) -> None:
        self._settings, self._build = settings, build
        self._lock = threading.Lock()
        self.session = build(self._as_it_was(settings))

    def all(self) -> list[RunInfo]:
        """Every run in the folder, the one used last first."""
        return describe_runs(self._settings.runs)

    def open(self, name: str) -> None:
        """Opens a run that is there, with the knobs that it was opened with last."""
        with self._lock:
            info = self._find(name)
            if name != self._name:
                self._switch(self._settings.of_run(name, {**info.settings, **info.changed}))

    def new(self, name: str, changes: Mapping[str, Any], prompts: str = "") -> None:
        """Begins a run with these knobs changed; `prompts`: its own list, one a line, "" = the list that the knobs name."""
        with self._lock:
            self._free(name)
            folder = self._settings.runs.absolute() / name
            settings = self._settings.changed({**changes, "run": name, "lora.file": ""})  # --lora is for the run that the program opens
            try:
                self._switch(self._with_prompts(settings, folder, prompts))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)  # it is new: nothing of anybody's is in it
                raise

    def change(self, changes: Mapping[str, Any], prompts: str = "") -> None:
        """Opens the run anew with knobs that shape what is loaded, or with another list of prompts."""
        with self._lock:
            settings = self.session.settings.changed({**changes, "run": self._name})
            self._switch(self._with_prompts(settings, self._settings.runs.absolute() / self._name, prompts))

    def rename(self, name: str, to: str) -> None:
        """Gives a run another name; the open one is opened anew under it."""
        with self._lock:
            self._find(name)
            self._free(to)
            settings, here = self.session.settings, name == self._name
            if here:
                self.session.close()
            try:
                with hold(self._settings.runs, name) as folder:
                    folder.rename(folder.with_name(to))
            except (OSError, LoopHILError):
                if here:
                    self._reopen(settings)
                raise
            if here:
                own = str(self._settings.runs.absolute() / name / PROMPTS)
                moved = {"draw.prompts": str(self._settings.runs.absolute() / to / PROMPTS)} if settings.draw.prompts == own else {}
                self._reopen(settings.changed({"run": to, **moved}))

    def delete(self, name: str) -> None:
        """Deletes a run for ever, with pictures, ratings and versions. Not the open one."""
        with self._lock:
            self._find(name)
            if name == self._name:
                raise InvalidInput(f"The run '{name}' is open: open another one first.")
            with hold(self._settings.runs, name) as folder:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Closes the open run. May be called again."""
        with self._lock:
            self.session.close()

    def _as_it_was(self, settings: Settings) -> Settings:
        """The settings with what the run to be opened was begun with and what was changed on the page, where no flag says otherwise."""
        name = settings.run or last_opened(settings.runs)
        info = next((info for info in self.all() if info.name == name), None)
        if info is None:
            return settings
        begun = {knob: value for knob, value in by_name(info.settings).items() if knob in SHAPE}
        return settings.resumed({**begun, **info.changed})

    @property
    def _name(self) -> str:
        return self.session.status().run

    def _find(self, name: str) -> RunInfo:
        for info in self.all():
            if info.name == name:
                return info
        raise InvalidInput(f"There is no run {name!r}. Choose from: {', '.join(info.name for info in self.all())}.")

    def _free(self, name: str) -> None:
        if not re.fullmatch(RUN_NAME, name):
            raise InvalidInput(f"{name!r} is not a run name: use up to 64 of a-z, 0-9, '-' and '_', a letter or digit first.")
        if (self._settings.runs / name).exists():
            raise InvalidInput(f"There is a run '{name}' already: choose another name, or open it.")

    def _with_prompts(self, settings: Settings, folder: Path, prompts: str) -> Settings:
        """The settings with a list of the run's own, kept in its folder, if there is one."""
        if not prompts.strip():
            return settings
        read_prompts(prompts.splitlines(), "your list")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROMPTS).write_text(prompts, "utf-8")
        return settings.changed({"draw.prompts": str(folder / PROMPTS)})

    def _switch(self, settings: Settings) -> None:
        before = self.session.settings.changed({"run": self._name})
        self.session.close()
        try:
            self._reopen(settings)
        except Exception:
            self._reopen(before)
            raise

    def _reopen(self, settings: Settings) -> None:
        self.session = self._build(settings)
