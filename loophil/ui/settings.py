"""What the settings at the side send and get: the knobs that may change while the run is open, and the value of all others."""

import gradio as gr

from loophil.config import BOLDNESS, LIVE, knobs
from loophil.errors import InvalidInput
from loophil.ui import parse
from loophil.ui.access import Handlers
from loophil.ui.events import Answer, answering, sent_with


class SettingsPanel(Handlers):
    """The handlers. Strangers see what may change and cannot change it; of the rest, which holds paths, they see nothing."""

    @answering
    def look(self, request: gr.Request, event: gr.EventData) -> Answer:
        """All knobs as they are."""
        return self._knobs(request)

    @answering
    def turn(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Turns some: {"changes": {"learn.beta": 0.5}}, or {"boldness": "bold"}."""
        self.access.teacher(request)
        sent = sent_with(event)
        changes, boldness = sent.get("changes") or {}, sent.get("boldness")
        if not isinstance(changes, dict):
            raise InvalidInput(f"changes must be an object, not {parse.shown(changes)}.")
        if boldness is not None and boldness not in BOLDNESS:
            raise InvalidInput(f"Unknown boldness {parse.shown(boldness)}. Choose from: {', '.join(BOLDNESS)}.")
        self.session.adjust({**BOLDNESS.get(boldness or "", {}), **changes})
        return self._knobs(request)

    def _knobs(self, request: gr.Request) -> Answer:
        settings = self.session.settings
        now = {name: settings.value(name) for name in LIVE}
        bold = next((word for word, preset in BOLDNESS.items() if all(now[name] == value for name, value in preset.items())), None)
        may_teach = self.access.may_teach(request)
        rows = [
            [flag, _plain(settings.value(flag.removeprefix("--").replace("-", "_"))), what]
            for flag, _, what in knobs()
            if may_teach and flag != "--auth"
        ]
        return {"live": now, "boldness": bold, "rows": rows, "may_teach": may_teach}


def _plain(value: object) -> str:
    """A knob's value as it is typed."""
    if isinstance(value, dict):
        return ",".join(f"{name}={weight:g}" for name, weight in value.items())
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
