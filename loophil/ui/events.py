"""What every component's handlers share: what came with an event, and an answer that never raises towards the page.

A refusal travels in the answer, where the component shows it as plain text.
"""

import base64
import functools
import io
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from loophil.errors import LoopHILError
from loophil.ui.contracts import sentence

if TYPE_CHECKING:
    from PIL import Image

Answer = dict[str, Any]


def answering(handler: Callable[..., Answer]) -> Callable[[Any, gr.Request, gr.EventData], Answer]:
    """The handler with a LoopHIL error as `error` in its answer, and a stamp, so that the same answer twice is still news to the component."""

    @functools.wraps(handler)
    def answer(self: Any, request: gr.Request, event: gr.EventData) -> Answer:
        try:
            said = handler(self, request, event)
        except LoopHILError as error:
            said = {"error": sentence(error)}
        return {**said, "stamp": time.time_ns()}

    return answer


def reporting(handler: Callable[..., Iterator[Answer]]) -> Callable[[Any, gr.Request, gr.EventData], Iterator[Answer]]:
    """The same for a handler that answers step by step; `of` is its name, since another answer may come between."""

    @functools.wraps(handler)
    def report(self: Any, request: gr.Request, event: gr.EventData) -> Iterator[Answer]:
        try:
            for said in handler(self, request, event):
                yield {**said, "of": handler.__name__, "stamp": time.time_ns()}
        except LoopHILError as error:
            yield {"error": sentence(error), "of": handler.__name__, "stamp": time.time_ns()}

    return report


def sent_with(event: gr.EventData) -> Mapping[str, Any]:
    """What a component sent along with its event."""
    data = event._data
    return data if isinstance(data, dict) else {}


def data_url(picture: "Image.Image", format: str = "PNG") -> str:
    """A picture for one page only: not worth a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return f"data:image/{format.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
