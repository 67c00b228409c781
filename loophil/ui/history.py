"""What the History tab sends and gets: what was rated, all versions, ratings as files and back, and the deletion of one's own."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from loophil.ui import answers, parse
from loophil.ui.access import GUEST, Access, Handlers
from loophil.ui.contracts import for_download
from loophil.ui.events import Answer, answering, sent_with
from loophil.ui.upload import Upload

if TYPE_CHECKING:
    from loophil.runs import Runs

PAGE = 20  # entries


class History(Handlers):
    """The handlers. Everybody may look at what was rated, by whom only those who may rate."""

    def __init__(self, runs: "Runs", access: Access) -> None:
        super().__init__(runs, access)
        self._upload = Upload()

    @answering
    def look(self, request: gr.Request, event: gr.EventData) -> Answer:
        """A page of what was rated, newest first, by the filters sent along, and the versions."""
        sent = sent_with(event)
        mine = self.rater(request, sent)
        version, before = (None if sent.get(name) in (None, "") else parse.whole_number(sent[name], name) for name in ("version", "before"))
        kind = parse.text(sent.get("kind"), "kind") or None
        entries = self.session.history(rater=mine if sent.get("mine") else None, version=version, kind=kind, before=before, limit=PAGE + 1)
        rows = [answers.history_row(entry, self.session.images, mine=mine, named=mine != GUEST) for entry in entries[:PAGE]]
        return {"entries": rows, "more": len(entries) > PAGE, "before": before, **self._versions()}

    @answering
    def group(self, request: gr.Request, event: gr.EventData) -> Answer:
        """A rated group, to be rated anew on the board."""
        self.access.teacher(request)
        group = self.session.group(parse.text(sent_with(event).get("group"), "group"))
        return {"again": answers.board_group(group, self.session.images)}

    @answering
    def go_back(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Publish an older version again."""
        self.access.teacher(request)
        self.session.rollback(parse.whole_number(sent_with(event).get("number"), "version"))
        return self._versions()

    @answering
    def rename(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Give a version a name."""
        self.access.teacher(request)
        sent = sent_with(event)
        self.session.name_version(parse.whole_number(sent.get("number"), "version"), parse.text(sent.get("name"), "name"))
        return self._versions()

    @answering
    def take(self, request: gr.Request, event: gr.EventData) -> Answer:
        """All ratings as a file, as "parquet" with the pictures, for those who may rate: there are names in it."""
        self.access.teacher(request)
        format = parse.text(sent_with(event).get("format"), "format")
        if format == "parquet":
            return self._dataset()
        text = self.session.ratings_file(format).encode("utf-8")
        name = f"{self.session.status().run}-ratings.{format}"
        return {"url": f"gradio_api/file={save_bytes_to_cache(text, name, get_upload_folder())}", "file": name, "bytes": len(text)}

    @answering
    def bring(self, request: gr.Request, event: gr.EventData) -> Answer:
        """A part of a dataset's file; what is in it is imported with the last. The owner's alone: it may hold ratings of many people."""
        self.access.owner(request)
        sent = sent_with(event)
        key, parts = self._upload.take(sent)
        if not sent.get("last"):
            return {"key": key, "part": parts}
        with self._upload.whole(key) as file:
            imported = self.session.import_dataset(file)
        return {"imported": imported.groups, "passed_over": imported.passed_over}

    @answering
    def forget(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Delete one's own ratings, for ever."""
        self.access.teacher(request)
        return {"forgotten": self.session.forget(self.rater(request, sent_with(event))), **self._versions()}

    def _dataset(self) -> Answer:
        """Groups with their pictures. The run keeps no copy: somebody may have their ratings deleted."""
        with tempfile.TemporaryDirectory(prefix="loophil-dataset-") as folder:
            path = self.session.export_dataset(Path(folder))
            name = f"{self.session.status().run}-{path.name}"
            return {"url": f"gradio_api/file={for_download(path)}", "file": name, "bytes": path.stat().st_size}

    def _versions(self) -> Answer:
        names = self.session.version_names()
        rows = [answers.version_row(version, names.get(version.number, "")) for version in reversed(self.session.versions())]
        return {"versions": rows, "current": self.session.status().policy_version, "now": time.time()}
