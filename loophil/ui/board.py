"""What the rating board and the bar above it send and get.

The board rates in the browser and sends what was done in batches, each act with an id of its own, again and again until it is acknowledged; so
an act may arrive twice and in any company, and the session answers the same id with the same receipt.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from loophil.errors import InvalidInput, LoopHILError
from loophil.types import Act
from loophil.ui import answers, parse
from loophil.ui.access import Access, Handlers
from loophil.ui.contracts import sentence
from loophil.ui.events import Answer, answering, data_url, sent_with

if TYPE_CHECKING:
    from loophil.runs import Runs

log = logging.getLogger(__name__)

AHEAD = 6  # groups that the browser holds
LARGEST_BATCH = 50
PROMPTS_OFFERED = 300
SAME_STARS = {"tie": 3.0, "good": 5.0, "bad": 1.0}
NOT_SAVED = "The server could not save your last rating; it is kept in this browser and will be sent again."


def stars(act: Mapping[str, Any], k: int) -> tuple[float | None, ...]:
    """The stars that a raw act stands for: best 5, worst 1, the others 3; a tie 3, all good 5, all bad 1; a skip says nothing."""
    kind = act.get("kind")
    if kind == "stars":
        return parse.ratings(act.get("stars"))
    if kind == "best":
        return tuple({act.get("best"): 5.0, act.get("worst"): 1.0}.get(i, 3.0) for i in range(k))
    return (SAME_STARS.get(str(kind)),) * k


def read_act(sent: Any, rater: str, k: int) -> Act:
    """One act as the board sends it. What the numbers may be is the session's to say; InvalidInput where they are no numbers at all."""
    if not isinstance(sent, dict):
        raise InvalidInput(f"An act must be an object, not {parse.shown(sent)}.")
    best, worst, milliseconds = (None if sent.get(name) is None else parse.whole_number(sent[name], name) for name in ("best", "worst", "ms"))
    order = sent.get("order") or []
    if not isinstance(order, list):
        raise InvalidInput(f"order must be a list of positions, not {parse.shown(order)}.")
    return Act(
        group=parse.text(sent.get("gid"), "group"),
        rater=rater,
        stars=stars(sent, k),
        kind=parse.text(sent.get("kind"), "kind"),
        best=best,
        worst=worst,
        order=tuple(parse.whole_number(position, "order") for position in order),
        milliseconds=milliseconds,
        key=parse.text(sent.get("uid"), "uid"),
    )


class Board(Handlers):
    """The handlers behind the components. As anywhere, each one that teaches or changes something asks `access`."""

    def __init__(self, runs: "Runs", access: Access) -> None:
        super().__init__(runs, access)
        self._revision = 0
        self._lock = threading.Lock()

    def bar(self, request: gr.Request) -> Answer:
        """The bar above the tabs: the loop's snapshot, and who looks."""
        may_teach = self.access.may_teach(request)
        try:
            tallies = self.session.tallies()
        except LoopHILError:  # another run is being opened: there is nothing to read for a moment
            tallies = []
        sign_in = bool(self.access.passwords) and not may_teach
        is_owner = self.access.is_owner(request)
        return answers.bar(self.session.status(), tallies, self.session.images, may_teach=may_teach, is_owner=is_owner, sign_in=sign_in)

    def sync(self, request: gr.Request, event: gr.EventData) -> tuple[Answer, Answer]:
        """Files a batch of acts and says which groups come next; also the bar, since it is news to whoever just rated."""
        sent = sent_with(event)
        batch = sent.get("batch") or []
        entries = batch[:LARGEST_BATCH] if isinstance(batch, list) else []
        guest = not self.access.may_teach(request)
        said: Answer = {}
        try:
            rater = self.rater(request, sent)
            said |= {"ack": [uid(entry) for entry in entries]} if guest else self._file(entries, rater)
            if sent.get("undo") and not guest:
                said |= self._undo(rater)
            said |= self._ahead(rater, parse.text(sent.get("tab"), "tab"), guest=guest)
        except LoopHILError as error:
            said |= {"notice": sentence(error)}
        if sent.get("hello"):
            said["prompts"] = list(self.session.prompts[:PROMPTS_OFFERED])
        known = {"guest": guest, "signed_in": self.access.signed_in(request) if guest else None}
        return {**said, **known, "run": self.session.status().run, "k": self.session.k}, self.bar(request)

    def _file(self, entries: list[Any], rater: str) -> Answer:
        """An act that can never be filed is acknowledged with the reason; one that could not be filed now comes again."""
        done, refused, notice = [], [], None
        rated: dict[str, None] = {}
        for entry in entries:
            try:
                act = read_act(entry, rater, self.session.k)
                self.session.rate(act)
                rated.pop(act.group, None)
                if act.kind != "undo":
                    rated[act.group] = None
            except LoopHILError as error:
                refused.append(sentence(error))
            except Exception:
                log.exception("an act could not be filed")
                notice = NOT_SAVED
                continue
            done.append(uid(entry))
        return {"ack": done, "refused": refused, "notice": notice, "facts": self._facts(rated)}

    def _facts(self, rated: Iterable[str]) -> Answer:
        """What may be seen of groups once they are rated, and not when the same batch took the rating back. Nothing depends on it."""
        try:
            return {group: answers.facts(*self.session.revealed(group)) for group in rated}
        except Exception:
            log.exception("the facts of a rated group could not be read")
            return {}

    def _undo(self, rater: str) -> Answer:
        group = self.session.undo(rater)
        return {"back": answers.board_group(group, self.session.images)} if group else {"notice": "There is nothing to undo."}

    def _ahead(self, rater: str, tab: str, *, guest: bool) -> Answer:
        """The next groups, and a revision: of two answers that cross on their way, the browser believes the one read later."""
        with self._lock:
            self._revision = max(self._revision + 1, time.time_ns() // 1_000_000)
            groups = self.session.on_show(AHEAD) if guest else self.session.upcoming(rater, AHEAD, page=tab)
            sketches = [] if groups else [data_url(picture, "JPEG") for picture in self.session.sketches()]
            return {"rev": self._revision, "groups": [answers.board_group(group, self.session.images) for group in groups], "sketches": sketches}

    @answering
    def ask(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Draw this prompt next."""
        self.access.teacher(request)
        prompt = sent_with(event).get("prompt") or ""
        self.session.ask(prompt)
        return {"asked": prompt}

    @answering
    def hold(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Pause or resume learning."""
        self.access.teacher(request)
        (self.session.pause if sent_with(event).get("pause") else self.session.resume)()
        return self.bar(request)

    @answering
    def mend(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Try again what has failed."""
        self.access.teacher(request)
        self.session.retry()
        return self.bar(request)


def uid(entry: Any) -> str | None:
    """The id under which the browser keeps an act."""
    name = entry.get("uid") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None
