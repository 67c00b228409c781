"""The strip: the same few prompts at one seed, by the newest versions and the base, for the eye. Not a measure: evaluation.py has those.

A picture's file names what decides it, so that none is shown under a prompt or for settings that it was not drawn with. Draws in the worker's thread.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress

from loophil.errors import UnknownVersion
from loophil.jobs import Engine, Studio
from loophil.prompts import expand
from loophil.types import Look

STRIP_SEED, STRIP_PROMPTS = 7, 4
STRIP_SECONDS = 30.0  # so long a version's first picture waits for a quiet moment
STRIP_BACK = 8  # versions whose pictures are still drawn when newer ones have come
FILE = re.compile(r"strip-(\d+)-(\d+)-([0-9a-f]{8})\.png", re.ASCII)  # version, number of the prompt, what decides the picture
BESIDE = {"num_images_per_prompt", "prompts", "preview"}  # knobs of `draw` that do not


class Strip:
    """The same few prompts at one seed, drawn by each version in a quiet moment: what the ratings have done, for the eye.

    The first prompt comes before the others; of each the newest version, then the base that it is held against, then those between.
    `prompts`: what is drawn, wildcards filled in.
    """

    def __init__(self, studio: Studio, clock: Callable[[], float]) -> None:
        self.prompts = [expand(prompt, seed=STRIP_SEED) for prompt in studio.prompts.prompts[:STRIP_PROMPTS]]
        self._studio, self._clock = studio, clock
        self._due: dict[tuple[int, int], float] = {}  # (version, prompt's number) -> since when

    def want(self, version: int) -> None:
        """A version's pictures are due, save for those that are there; of the versions before, only the newest still get theirs."""
        kept = {key: since for key, since in self._due.items() if key[0] == 0 or key[0] > version - STRIP_BACK}
        self._due = self._lacking({version}) | kept

    def renew(self) -> None:
        """What the newest versions and the base lack is due: at the start, and where it is drawn otherwise from now on."""
        newest = [version.number for version in self._studio.store.versions()][-STRIP_BACK:]
        self._due = self._lacking({0, *newest})

    @property
    def due(self) -> bool:
        """Whether something is to be drawn."""
        return bool(self._due)

    @property
    def late(self) -> bool:
        """Whether no picture was drawn for so long, with a first prompt due, that this no longer waits for a quiet moment."""
        return any(which == 0 and self._clock() - since > STRIP_SECONDS for (_, which), since in self._due.items())

    def draw(self, engine: Engine) -> None:
        """The next picture; none of a version whose files are lost."""
        newest = max(version for version, _ in self._due)
        version, which = min(self._due, key=lambda due: (due[1], due[0] != newest, due[0] != 0, -due[0]))
        self._due = dict.fromkeys(self._due, self._clock())  # who is busy waits for one picture at a time
        try:
            with suppress(UnknownVersion):
                self._draw(engine, version, which)
        finally:
            self._due.pop((version, which), None)  # now: until then who looks is told that it comes

    def pictures(self) -> dict[int, dict[int, str]]:
        """{version: {prompt's number: picture file, "" = it is due}}, oldest version first."""
        due, drawn = list(self._due), self._drawn()  # in this order: what is drawn meanwhile is in both
        for version, which in due:
            drawn.setdefault(version, {}).setdefault(which, "")
        return {version: dict(sorted(drawn[version].items())) for version in sorted(drawn)}

    def _draw(self, engine: Engine, version: int, which: int) -> None:
        """One picture into its file, in place of those that were drawn otherwise."""
        images, name = self._studio.store.images, f"strip-{version}-{which}-{self._decided_by(which)}"
        staging = images / f"{name}.tmp"
        self._studio.picture(engine, self.prompts[which], STRIP_SEED, Look(version)).save(staging, "png")
        staging.replace(images / f"{name}.png")
        for file in (*images.glob(f"strip-{version}-{which}.png"), *images.glob(f"strip-{version}-{which}-*.png")):
            if file.stem != name:
                file.unlink(missing_ok=True)

    def _lacking(self, versions: set[int]) -> dict[tuple[int, int], float]:
        """What these versions have no picture of, since now."""
        drawn, now = self._drawn(), self._clock()
        every = [(version, which) for version in sorted(versions) for which in range(len(self.prompts))]
        return {(version, which): now for version, which in every if which not in drawn.get(version, {})}

    def _drawn(self) -> dict[int, dict[int, str]]:
        """{version: {prompt's number: picture file}} of those that would be drawn alike today."""
        drawn: dict[int, dict[int, str]] = {}
        today = [self._decided_by(which) for which in range(len(self.prompts))]
        for found in filter(None, (FILE.fullmatch(file.name) for file in self._studio.store.images.glob("strip-*.png"))):
            version, which = int(found[1]), int(found[2])
            if found[3] in today[which : which + 1]:
                drawn.setdefault(version, {})[which] = found[0]
        return drawn

    def _decided_by(self, which: int) -> str:
        """A short hash of what decides a picture beside version and seed, by the settings of this moment: loading may have replaced them."""
        knobs = self._studio.settings.draw.model_dump_json(exclude=BESIDE)
        return hashlib.sha256(f"{self.prompts[which]}\n{knobs}".encode()).hexdigest()[:8]
