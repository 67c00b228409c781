"""What a person can do with a run: get groups, rate, undo, pause, compare, roll back, export, push. The same for page, API and command line.

It checks what is sent, writes ratings straight to the store and tells the loop. It never touches the device, SQL or widgets;
only `new_group`, `compare`, `rollback`, `export`, `push` and `measure` wait for the worker.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from loophil.blind import BlindTest, Question
from loophil.config import LIVE, Settings
from loophil.dataset import Imported, export_dataset, import_dataset
from loophil.errors import InvalidInput, LoopHILError
from loophil.hub import PushStep, Repository, exported_files
from loophil.jobs import LORA, Engine, adopted
from loophil.loop import Loop
from loophil.model_card import check_label
from loophil.prompts import clean_prompt, expand
from loophil.repeats import Repeats
from loophil.snapshots import NoSnapshots, Snapshots
from loophil.store import SET_ON_PAGE, Store, Update, to_csv, to_jsonl
from loophil.taste import Agreement
from loophil.types import MAX_SEED, Act, Entry, Group, Label, Look, Mean, Pair, Receipt, Status, Tally, Version
from loophil.understanding import TASTE
from loophil.worker import Stopped

FORMATS = ("diffusers", "peft", "kohya")
WAIT_SECONDS = 600.0
DEFAULT_RATER = "me"
MAX_STRENGTH, MAX_COVERS = 1.5, 4
T = TypeVar("T")
RATINGS_FILES = {"csv": to_csv, "jsonl": to_jsonl}


class Session:
    """One open run. Thread-safe. Methods raise InvalidInput, with one sentence, for anything that cannot be; nothing is changed then.

    export          writes the adapter as one file and gives its path: (engine, format, label) -> path; runs in the worker
    blind_prompts   what the blind test draws, best what is never trained on; empty = the run's list
    snapshots       copies of the run, begun already; their note and `notes` stand in the status beside the engine's
    """

    def __init__(
        self,
        loop: Loop,
        export: Callable[[Engine, str, Label], Path],
        *,
        blind_prompts: Sequence[str] = (),
        snapshots: Snapshots | NoSnapshots | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self._loop, self._export = loop, export
        self._store = loop.store
        self._repeats = Repeats(loop.store)
        self._blind = BlindTest(loop.store, self._drawn, blind_prompts or loop.prompts.prompts)
        self._snapshots, self._notes = snapshots or NoSnapshots(), tuple(notes)
        self._closing = threading.Lock()
        self.images = loop.store.images
        self.k = loop.settings.draw.num_images_per_prompt
        self.prompts = tuple(loop.prompts.prompts)

    def status(self) -> Status:
        """The newest snapshot; instantaneous."""
        status = self._loop.status
        notes = (status.note, self._snapshots.note, *self._notes)
        return replace(status, note=" ".join(note for note in notes if note) or None)

    def upcoming(self, rater: str = DEFAULT_RATER, limit: int = 6, page: str = "") -> list[Group]:
        """Groups to be rated next by this rater, in order; never waits, and tells the loop that a person is there.

        One in twenty is a group that they have rated before (see repeats.py). While a page (a tab of the rater's browser; "" = the only one) goes on
        asking, no other page gets the same ones.
        """
        groups = self._loop.upcoming(rater, limit, page)
        again = self._repeats.due(rater) if groups else None
        return [again, *groups][:limit] if again else groups

    def on_show(self, limit: int = 6) -> list[Group]:
        """Groups for somebody who looks and does not teach: nothing is kept from others by that."""
        return self._loop.show(limit)

    def sketches(self) -> Sequence[Image.Image]:
        """Rough pictures of the group that is being drawn while nothing else is ready; () where there are none."""
        return self._loop.studio.sketches

    def ask(self, prompt: str) -> None:
        """A group of this prompt is drawn next and offered first; never waits."""
        self._loop.draw(self._clean(prompt), offered=True)

    def new_group(self, prompt: str = "", rater: str = DEFAULT_RATER) -> Group:
        """A group to rate: of this prompt, drawn now, or for "" the next one in stock, drawn now if there is none."""
        prompt = self._clean(prompt)
        if not prompt and (group := self._loop.take(rater)):
            return group
        drawn: Group = self._wait(self._loop.draw(prompt, offered=False))
        return drawn

    def rate(self, act: Act) -> Receipt:
        """Keeps what a person did; on disk when this returns. Raises UnknownGroup, KeyConflict or InvalidInput."""
        receipt = self._store.rate(act, self._loop.status.policy_version)
        if act.kind == "undo":
            self._loop.returned(self._store.group(act.group), act.rater)
        else:
            self._loop.rated(act.group, receipt.act)
        return receipt

    def revealed(self, group_id: str) -> tuple[Group, dict[str, tuple[float | None, ...]]]:
        """A rated group with its seeds, and {reward: a score for each image, None = missing}: what is kept from the eye until then."""
        group = self._store.group(group_id)
        scores = self._store.scores(group.id)
        return group, {reward: tuple(None if math.isnan(v) else float(v) for v in values) for reward, values in scores.items()}

    def undo(self, rater: str = DEFAULT_RATER) -> Group | None:
        """Takes this rater's newest act back and offers its group again; None if there is nothing to take back."""
        last = self._store.last_act(rater)
        if last is None:
            return None
        self.rate(Act(last.act.group, rater, (), kind="undo"))
        return self._store.group(last.act.group)

    def compare(self, prompt: str, seed: int, looks: Sequence[Look] | None = None) -> tuple[Image.Image, ...]:
        """The same prompt and seed by each of these; None = by the base and by the version in use."""
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
            raise InvalidInput(f"A seed is a whole number from 0 to 2^53 - 1, not {seed!r}.")
        prompt = expand(clean_prompt(prompt), seed=seed)
        if not prompt:
            raise InvalidInput("A comparison needs a prompt: type what is to be drawn.")
        for look in looks or ():
            self._store.version(look.version)
            if not 0 <= look.strength <= MAX_STRENGTH:
                raise InvalidInput(f"A LoRA's strength is a number from 0 to {MAX_STRENGTH:g}, not {look.strength!r}.")
        return self._drawn(prompt, seed, (Look(0), Look(self._loop.status.policy_version)) if looks is None else looks)

    def ask_blind(self, rater: str = DEFAULT_RATER, version: int | None = None) -> Question:
        """The next pair of the blind test of this version, None = the one in use; waits for its two pictures."""
        return self._blind.ask(rater, version)

    def answer_blind(self, question: str, choice: str, rater: str = DEFAULT_RATER, milliseconds: int | None = None) -> Pair:
        """Files the choice "left", "right" or "tie", and says who was who."""
        return self._blind.answer(question, choice, rater, milliseconds)

    def tallies(self) -> list[Tally]:
        """How each version did in blind pairs with the base, oldest version first."""
        return self._store.tallies()

    def strip(self) -> tuple[list[str], dict[int, dict[int, str]]]:
        """(prompts, {version: {number of the prompt: picture file}}): the same prompts and seed by each version, oldest first."""
        strip = self._loop.watched()
        return strip.prompts, strip.pictures()

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return self._store.versions()

    def version_names(self) -> dict[int, str]:
        """{version: its name} of those that were given one."""
        return self._store.version_names()

    def name_version(self, number: int, name: str) -> None:
        """Gives a version a name; "" takes it away."""
        self._store.name_version(number, name)

    def history(self, **filters: Any) -> list[Entry]:
        """What was rated and counts now, newest first; the filters are those of the store's `history`."""
        return self._store.history(**filters)

    def group(self, group_id: str) -> Group:
        """One group; UnknownGroup."""
        return self._store.group(group_id)

    def updates(self) -> list[Update]:
        """Every attempt to learn, oldest first."""
        return self._store.updates()

    def agreement(self, rater: str = DEFAULT_RATER) -> tuple[float, int] | None:
        """How well this rater agrees with themselves on groups that were shown twice: (share of pairs, groups); None = none was yet."""
        return self._repeats.agreement(rater)

    def understanding(self, rater: str = DEFAULT_RATER) -> tuple[Agreement | None, str]:
        """How often the taste model agrees with what this rater chose, None = nothing yet; and what follows from it, in a sentence."""
        rounds = self.settings.loop.auto_rounds_per_rating > 0 and self.settings.learn.taste_weight > 0
        return self._loop.understanding.of(rater), self._loop.understanding.sentence(rewards=bool(self.settings.rewards)) if rounds else ""

    def raters_agreement(self) -> float | None:
        """Krippendorff's alpha of raters who rated the same images: 1 alike, 0 as by chance; None = no two did."""
        return self._loop.understanding.between

    def curves(self) -> list[Mean]:
        """The mean of each source over what each version drew, oldest version first. The taste's opinion is of siblings, and has no mean."""
        return [mean for mean in self._store.means() if mean.source != TASTE]

    def ratings_file(self, format: str) -> str:
        """Everything that was ever rated, as the text of a "csv" or "jsonl" file."""
        if format not in RATINGS_FILES:
            raise InvalidInput(f"Unknown format {format!r}. Choose from: {', '.join(RATINGS_FILES)}.")
        return RATINGS_FILES[format](self._store.ratings_rows())

    def export_dataset(self, folder: Path) -> Path:
        """All groups that somebody answered, with every act and the pictures, as one parquet file in this folder."""
        return export_dataset(self._store, folder)

    def import_dataset(self, file: Path) -> Imported:
        """Takes in the groups of such a file, pictures included, for the taste model alone."""
        imported = import_dataset(self._store, file, references=False)
        self._loop.reread()
        return imported

    def forget(self, rater: str = DEFAULT_RATER) -> int:
        """Deletes what this person rated, for ever; how many acts that were. What was learned from them stays in the LoRA."""
        self._repeats.forget(rater)  # first: the deletion then writes the database anew, without a trace of it
        try:
            return self._store.forget_rater(rater)
        finally:
            self._loop.reread()

    def pause(self) -> Status:
        """Stops learning; drawing and rating go on."""
        self._loop.pause(True)
        return self.status()

    def resume(self) -> Status:
        """Learning goes on."""
        self._loop.pause(False)
        return self.status()

    @property
    def settings(self) -> Settings:
        """The knobs as they are now."""
        return self._loop.settings

    def adjust(self, changes: Mapping[str, Any]) -> Settings:
        """Changes knobs that may change while the run is open ({"learn.beta": 0.5}), for this opening and those to come."""
        if fixed := sorted(set(changes) - LIVE):
            raise InvalidInput(f"{', '.join(fixed)} cannot change while the run is open.")
        settings = self.settings.changed(changes)
        if new := sorted(set(settings.rewards) - set(self.settings.rewards)):
            raise InvalidInput(f"{', '.join(new)} was not loaded with this run: start it with --rewards {new[0]}=1.")
        self._wait(self._loop.adjust(settings))
        self._store.note(SET_ON_PAGE, {**self._store.noted(SET_ON_PAGE, {}), **changes})
        return settings

    def retry(self) -> None:
        """Tries again what has failed."""
        self._loop.retry()

    def rollback(self, version: int) -> Status:
        """Publishes an old version's weights as a new version."""
        if isinstance(version, bool) or not isinstance(version, int):
            raise InvalidInput(f"A version is a whole number, not {version!r}.")
        self._store.version(version)
        self._wait(self._loop.rollback(version))
        return self.status()

    def export(self, format: str = "diffusers", label: Label | None = None) -> Path:
        """The current LoRA as one file: "diffusers" or "peft" (zip of a folder), "kohya" (A1111, ComfyUI)."""
        return self._exported(format, self._to_draw(format, label), lambda path: path)

    def push(self, repository: Repository, format: str = "diffusers", label: Label | None = None, *, private: bool = False) -> Iterator[PushStep]:
        """Publishes the current LoRA on the Hub, step by step: says what comes next, and last the address. The worker makes the files alone.

        A licence that the label leaves open is what the Hub states of the base.
        """
        label = self._to_draw(format, label)
        if not _learned(self._store):
            raise InvalidInput("Nothing was learned yet that could be pushed: rate a few groups first, or roll back to a version that has learned.")
        yield PushStep("Signing in to the Hub")
        repository.sign_in()
        if not label.licence:
            stated = repository.licence_of(self.settings.model)
            label = replace(label, licence=stated.id, licence_name=stated.name, licence_link=stated.link)
        yield PushStep("Making the files and their pictures")
        name, files = self._exported(format, label, exported_files)
        yield PushStep(f"Uploading {len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
        yield PushStep("Published", repository.push(files, f"{name}, made with LoopHIL", private=private))

    def measure(self, work: Callable[[Engine], Any]) -> Any:
        """Runs `work(engine)` in the worker and waits: for figures on the command line."""
        return self._wait(self._loop.call("measuring", work))

    def automatic_round(self) -> Group:
        """Draws and scores one group that no person sees; what it teaches is learned next."""
        group: Group = self._wait(self._loop.automatic_round())
        return group

    def close(self) -> None:
        """Stops the worker, keeps a last snapshot, then closes the store and releases the run. May be called again."""
        with self._closing:
            self._loop.close()
            self._snapshots.close()
            self._store.close()

    def _to_draw(self, format: str, label: Label | None) -> Label:
        """The label with its cover prompts as they are drawn; InvalidInput for what cannot be exported."""
        if format not in FORMATS:
            raise InvalidInput(f"Unknown export format {format!r}. Choose from: {', '.join(FORMATS)}.")
        label = label or Label()
        check_label(label.name or self._store.name, label.trigger, label.licence)
        if len(label.covers) > MAX_COVERS:
            raise InvalidInput(f"A file has room for {MAX_COVERS} cover prompts, not {len(label.covers)}.")
        return replace(label, covers=tuple(expand(clean_prompt(prompt), seed=0) for prompt in label.covers))

    def _exported(self, format: str, label: Label, use: Callable[[Path], T]) -> T:
        """What `use` makes of the exported file, in the worker too: there no other export can take its place meanwhile."""
        used: T = self._wait(self._loop.call("exporting", lambda engine: use(self._export(engine, format, label))))
        return used

    def _drawn(self, prompt: str, seed: int, looks: Sequence[Look]) -> tuple[Image.Image, ...]:
        return tuple(self._wait(self._loop.compare(prompt, seed, looks)))

    def _clean(self, prompt: str) -> str:
        """A typed prompt with its wildcards filled in, others for each group."""
        return expand(clean_prompt(prompt), seed=self._loop.status.groups)

    def _wait(self, future: Future[Any]) -> Any:
        """The result of a job; whatever went wrong is a LoopHILError with a sentence."""
        if not wait([future], WAIT_SECONDS).done:
            future.cancel()
            raise LoopHILError(f"The worker has not answered in {WAIT_SECONDS:.0f} s; the status says what it is doing.")
        try:
            return future.result()
        except Stopped:
            raise LoopHILError("The program is being closed.") from None
        except LoopHILError:
            raise
        except Exception as error:
            raise LoopHILError(f"That failed: {str(error) or type(error).__name__}.") from error


def _learned(store: Store) -> bool:
    """Whether the version in use changes anything: not where nothing was learned yet, nor where it went back to the base."""
    version = store.current_version()
    while version.kind == "rollback":
        version = store.version(version.parent or 0)
    begins = bool(store.noted(LORA, {}).get("sha256")) and not adopted(store)  # a LoRA that becomes a version once the model is loaded
    return version.number > 0 or begins
