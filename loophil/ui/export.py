"""What the Export tab sends and gets: the LoRA as one file, with what is to stand in its card."""

from typing import TYPE_CHECKING

import gradio as gr

from loophil.ui import parse
from loophil.ui.access import Access
from loophil.ui.contracts import for_download
from loophil.ui.events import Answer, answering, sent_with

if TYPE_CHECKING:
    from loophil.session import Session


class Export:
    """The handler."""

    def __init__(self, session: "Session", access: Access) -> None:
        self.session = session
        self.access = access

    @answering
    def make(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Export, and where to fetch it."""
        self.access.teacher(request)
        path = self.session.export(parse.text(sent_with(event).get("format"), "format"))
        return {"url": f"gradio_api/file={for_download(path)}", "name": path.name, "bytes": path.stat().st_size}
