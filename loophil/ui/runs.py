"""What the run picker at the side sends and gets: which runs there are, new, open, rename, delete, and what of the open one needs opening anew."""

from typing import Any

import gradio as gr

from loophil.config import RUN_NAME
from loophil.errors import InvalidInput
from loophil.prompts import known_lists
from loophil.ui import parse
from loophil.ui.access import Handlers
from loophil.ui.events import Answer, answering, sent_with

OWNERS = "On a public server the model is its owner's choice: it is given by --model when LoopHIL starts."
LONGEST_LIST = 200_000  # characters of a list of prompts
KNOBS = {"model": "model", "k": "draw.num_images_per_prompt", "size": "draw.size", "list": "draw.prompts", "rewards": "rewards"}


class RunsPanel(Handlers):
    """The handlers; all but looking are a teacher's."""

    @answering
    def look(self, request: gr.Request, event: gr.EventData) -> Answer:
        """The runs, and what the open one was opened with."""
        return self._known(request)

    @answering
    def open(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Another run."""
        self.access.teacher(request)
        name, own = _run(sent_with(event), "run"), self.session.settings.model
        if not self.access.is_owner(request) and any(run.name == name and run.base_model != own for run in self.runs.all()):
            raise InvalidInput(OWNERS)
        self.runs.open(name)
        return self._changed(request)

    @answering
    def begin(self, request: gr.Request, event: gr.EventData) -> Answer:
        """A new run."""
        self.access.teacher(request)
        sent = sent_with(event)
        changes, own = _changes(sent), self.session.settings.model
        if self.access.several and changes.get("model", own) != own:
            raise InvalidInput(OWNERS)
        self.runs.new(_run(sent, "run"), changes, _prompts(sent))
        return self._changed(request)

    @answering
    def alter(self, request: gr.Request, event: gr.EventData) -> Answer:
        """The open run, anew, with other knobs."""
        self.access.teacher(request)
        sent = sent_with(event)
        self.runs.change({name: value for name, value in _changes(sent).items() if name != "model"}, _prompts(sent))
        return self._changed(request)

    @answering
    def rename(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Another name for a run."""
        self.access.teacher(request)
        sent = sent_with(event)
        self.runs.rename(_run(sent, "run"), _run(sent, "to"))
        return self._changed(request)

    @answering
    def remove(self, request: gr.Request, event: gr.EventData) -> Answer:
        """A run, for ever."""
        self.access.teacher(request)
        self.runs.delete(_run(sent_with(event), "run"))
        return self._known(request)

    def _changed(self, request: gr.Request) -> Answer:
        gr.set_static_paths([self.session.images])
        return self._known(request)

    def _known(self, request: gr.Request) -> Answer:
        settings, current = self.session.settings, self.session.status().run
        if not self.access.may_teach(request):
            return {"may_teach": False, "runs": [], "current": current}
        runs = [{"name": r.name, "model": r.base_model, "ratings": r.ratings, "version": r.version, "used": r.used} for r in self.runs.all()]
        own = settings.draw.prompts not in known_lists()
        return {
            "runs": runs,
            "current": current,
            "lists": known_lists(),
            "list": "" if own else settings.draw.prompts,
            "k": self.session.k,
            "size": settings.draw.size,
            "model": settings.model,
            "rewards": ",".join(f"{name}={weight:g}" for name, weight in settings.rewards.items()),
            "may_teach": True,
        }


def _run(sent: Any, name: str) -> str:
    """A run's name; that it is one is the runs' to say."""
    return parse.text(sent.get(name), f"the name of a run ({RUN_NAME})")


def _prompts(sent: Any) -> str:
    """A list of prompts as it was typed or read from a file."""
    text = sent.get("prompts") or ""
    if not isinstance(text, str) or len(text) > LONGEST_LIST:
        raise InvalidInput(f"A list of prompts is text of at most {LONGEST_LIST:,} characters, one prompt a line.")
    return text


def _changes(sent: Any) -> dict[str, Any]:
    """{knob: value} of what was filled in. Files of rewards are named on the command line alone: they are programs."""
    changes = {knob: sent[name] for name, knob in KNOBS.items() if sent.get(name) not in (None, "")}
    if ".py" in str(changes.get("rewards", "")):
        raise InvalidInput("A reward from a file is a program: give it by --rewards when LoopHIL starts.")
    if "list" in sent and sent["list"] and sent["list"] not in known_lists():
        raise InvalidInput(f"There is no prompt list {parse.shown(sent['list'])}. Choose from: {', '.join(known_lists())}.")
    return changes
