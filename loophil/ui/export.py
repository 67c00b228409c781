"""What the Export tab sends and gets: the LoRA as one file, with what is to stand on it, and how to load it; or on the Hub.

A token comes with one event and goes to the Hub: it is neither kept nor quoted, nor sent back to the page.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import gradio as gr

from loophil.errors import InvalidInput
from loophil.hub import Repository
from loophil.types import Label
from loophil.ui import answers, parse
from loophil.ui.access import Handlers
from loophil.ui.contracts import for_download
from loophil.ui.events import Answer, answering, reporting, sent_with

HOW_TO_LOAD = {
    "diffusers": """# unzip {file} -d {name}
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}", dtype=torch.float32)
pipe.load_lora_weights("{name}")""",
    "peft": """# unzip {file} -d {name}
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel

pipe = DiffusionPipeline.from_pretrained("{model}", dtype=torch.float32)
tuned = "unet" if hasattr(pipe, "unet") else "transformer"
setattr(pipe, tuned, PeftModel.from_pretrained(getattr(pipe, tuned), "{name}"))""",
    "kohya": """ComfyUI: copy {file} to models/loras, put a Load LoRA node behind the checkpoint.
A1111: copy {file} to models/Lora, write <lora:{name}:1> into the prompt.""",
}


class Export(Handlers):
    """The handlers."""

    @answering
    def make(self, request: gr.Request, event: gr.EventData) -> Answer:
        """Export, where to fetch it, its checksum, what is in it and how to load it."""
        self.access.teacher(request)
        sent = sent_with(event)
        format = parse.text(sent.get("format"), "format")
        path = self.session.export(format, read_label(sent))
        status = self.session.status()
        base = self.session.settings.model
        model = "data/base" if base == "embedded" else base
        blind = [answers.verdict(tally) for tally in self.session.tallies() if tally.version == status.policy_version]
        return {
            "url": f"gradio_api/file={for_download(path)}",
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "load": HOW_TO_LOAD[format].format(file=path.name, name=path.stem, model=model),
            "version": status.policy_version,
            "ratings": status.ratings,
            "updates": status.updates,
            "blind": blind[0] if blind else None,
        }

    @reporting
    def push(self, request: gr.Request, event: gr.EventData) -> Iterator[Answer]:
        """Publish on the Hub: what is being done, and last the address. The owner's alone, with the token sent or else this machine's."""
        self.access.owner(request)
        sent = sent_with(event)
        repository = Repository(parse.text(sent.get("repository"), "repository"), read_token(sent))
        format = parse.text(sent.get("format"), "format")
        for step in self.session.push(repository, format, read_label(sent), private=sent.get("private") is not False):
            yield dataclasses.asdict(step)


def read_token(sent: Any) -> str:
    """The token that was typed; a sentence about it never shows it."""
    token = sent.get("token") or ""
    if not isinstance(token, str):
        raise InvalidInput("token must be text.")
    return token


def read_label(sent: Any) -> Label:
    """What is to stand on the file. That a name can be one is the export's to say."""
    covers = sent.get("covers") or []
    if not isinstance(covers, list) or not all(isinstance(prompt, str) for prompt in covers):
        raise InvalidInput(f"covers must be a list of prompts, not {parse.shown(covers)}.")
    return Label(
        name=parse.text(sent.get("name"), "name"),
        trigger=parse.text(sent.get("trigger"), "trigger phrase"),
        licence=parse.text(sent.get("licence"), "licence"),
        covers=tuple(covers),
    )
