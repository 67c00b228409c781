"""What every component's handlers share: what came with an event, and an answer that never raises towards the page.

A refusal travels in the answer, where the component shows it as plain text.
"""

import base64
import functools
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from loophil.errors import LoopHILError, machine_refused
from loophil.ui.contracts import sentence

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

Answer = dict[str, Any]


def answering(handler: Callable[..., Answer]) -> Callable[[Any, gr.Request, gr.EventData], Answer]:
    """The handler with an error, LoopHIL's or the machine's, as `error` in its answer, and a stamp, so that the same twice is news to the page."""

    @functools.wraps(handler)
    def answer(self: Any, request: gr.Request, event: gr.EventData) -> Answer:
        try:
            said = handler(self, request, event)
        except (LoopHILError, OSError) as error:
            said = {"error": _refusal(error)}
        return {**said, "stamp": time.time_ns()}

    return answer


def reporting(handler: Callable[..., Iterator[Answer]]) -> Callable[[Any, gr.Request, gr.EventData], Iterator[Answer]]:
    """The same for a handler that answers step by step; `of` is its name, since another answer may come between."""

    @functools.wraps(handler)
    def report(self: Any, request: gr.Request, event: gr.EventData) -> Iterator[Answer]:
        try:
            for said in handler(self, request, event):
                yield {**said, "of": handler.__name__, "stamp": time.time_ns()}
        except (LoopHILError, OSError) as error:
            yield {"error": _refusal(error), "of": handler.__name__, "stamp": time.time_ns()}

    return report


def _refusal(error: LoopHILError | OSError) -> str:
    if isinstance(error, LoopHILError):
        return sentence(error)
    log.warning("%s", error, exc_info=error)
    return machine_refused(error, where=False)


def sent_with(event: gr.EventData) -> Mapping[str, Any]:
    """What a component sent along with its event."""
    data = event._data
    return data if isinstance(data, dict) else {}


def data_url(picture: "Image.Image", format: str = "PNG") -> str:
    """A picture for one page only: not worth a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
