"""The named endpoints that other programs rely on (README, "Contracts"): thin handlers over the session.

Each is bound to components that nobody sees, so that Gradio documents them and any Gradio client, or plain HTTP, can call them.
What is quick answers past the queue; what waits for the worker goes through it, so that a flood of drawings cannot keep ratings out.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from loophil.errors import InvalidInput, LoopHILError
from loophil.types import Act, Group
from loophil.ui import answers, parse
from loophil.ui.access import Handlers

if TYPE_CHECKING:
    from PIL import Image

P = ParamSpec("P")
R = TypeVar("R")

AT_ONCE = 4  # drawings, comparisons and exports that may wait at the same time, each kind apart


def sentence(error: LoopHILError) -> str:
    """The error's sentence, writable as UTF-8 whatever it quotes."""
    return str(error).encode("utf-8", "backslashreplace").decode("utf-8")


def told(handler: Callable[P, R]) -> Callable[P, R]:
    """A LoopHIL error reaches the client as its one sentence; anything else is a bug, which Gradio logs and masks."""

    @functools.wraps(handler)
    def telling(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except LoopHILError as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return telling


def for_download(path: Path) -> str:
    """A copy of a finished file where Gradio may serve it: the run's own folder stays closed."""
    copy: str = save_file_to_cache(path, cache_dir=get_upload_folder())
    return copy


class Contracts(Handlers):
    """The handlers. Every one that teaches or changes the run asks `access` itself: Gradio keeps nobody out."""

    def new_group(self, prompt: str, request: gr.Request) -> tuple[dict[str, Any], list[str]]:
        """Pictures of a prompt to be rated; an empty prompt takes the next one of the run's list."""
        rater = self.access.teacher(request) if self.access.may_teach(request) else None
        group = self.session.new_group(prompt or "", rater) if rater else self._demo_group(prompt)
        return answers.group_answer(group), [str(self.session.images / image.file) for image in group.images]

    def _demo_group(self, prompt: str) -> Group:
        ready = self.session.on_show(1)
        if prompt or not ready:
            raise InvalidInput("Without signing in you may try the groups that are ready, with an empty prompt; sign in to have something drawn.")
        return ready[0]

    def rate(self, group: str, ratings: Any, rater: str, key: str, request: gr.Request) -> dict[str, Any]:
        """Stars 1..5 or null for each picture of a group. The same key again gives the same answer and changes nothing."""
        who = self.access.teacher(request, parse.text(rater, "rater"))
        stars = parse.ratings(ratings)
        receipt = self.session.rate(Act(parse.text(group, "group"), who, stars, key=parse.text(key, "key")))
        return {"accepted": True, "rated": receipt.rated, "policy_version": receipt.policy_version, "pending": receipt.pending}

    def status(self) -> dict[str, Any]:
        """What the loop is doing now."""
        return answers.status_answer(self.session.status())

    def compare(self, prompt: str, seed: Any) -> "tuple[Image.Image, Image.Image]":
        """The same prompt and seed drawn by the base and by the tuned model. Teaches nothing, so anybody may look."""
        base, tuned = self.session.compare(prompt or "", parse.whole_number(seed, "seed"))
        return base, tuned

    def pause(self, request: gr.Request) -> dict[str, Any]:
        """Stop learning; rating goes on."""
        self.access.teacher(request)
        return answers.status_answer(self.session.pause())

    def resume(self, request: gr.Request) -> dict[str, Any]:
        """Go on learning."""
        self.access.teacher(request)
        return answers.status_answer(self.session.resume())

    def rollback(self, version: Any, request: gr.Request) -> dict[str, Any]:
        """Publish an older version's weights again, as a new version."""
        self.access.teacher(request)
        return answers.status_answer(self.session.rollback(parse.whole_number(version, "version")))

    def export(self, format: str, request: gr.Request) -> str:
        """The tuned LoRA as one file: "diffusers", "peft" or "kohya"."""
        self.access.teacher(request)
        return for_download(self.session.export(parse.text(format, "format")))

    def attach(self) -> None:
        """Bind every handler to unseen components; call inside a gr.Blocks, before anything else takes these names."""
        with gr.Group(visible=False):
            door = gr.Button()
            prompt, group, rater, key, form = gr.Textbox(""), gr.Textbox(), gr.Textbox(""), gr.Textbox(""), gr.Textbox()
            number, ratings, said = gr.JSON(), gr.JSON(), gr.JSON()
            gallery, base, tuned, file = gr.Gallery(), gr.Image(format="png"), gr.Image(format="png"), gr.File()
        now = {"queue": False, "concurrency_limit": None, "show_progress": "hidden"}
        later = {"concurrency_limit": AT_ONCE, "show_progress": "hidden"}
        door.click(told(self.new_group), [prompt], [said, gallery], api_name="new_group", **later)
        door.click(told(self.rate), [group, ratings, rater, key], said, api_name="rate", **now)
        door.click(told(self.status), None, said, api_name="status", **now)
        door.click(told(self.compare), [prompt, number], [base, tuned], api_name="compare", **later)
        door.click(told(self.pause), None, said, api_name="pause", **now)
        door.click(told(self.resume), None, said, api_name="resume", **now)
        door.click(told(self.rollback), [number], said, api_name="rollback", **now)
        door.click(told(self.export), [form], file, api_name="export", **later)
