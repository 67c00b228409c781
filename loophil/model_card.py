"""What is known of a tuned LoRA, and its card, README.md as the Hub reads it: what it learned from, pictures before and after, how to load it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from huggingface_hub import ModelCardData
from PIL import Image

from loophil.config import RUN_NAME
from loophil.errors import InvalidInput
from loophil.types import HUMAN

if TYPE_CHECKING:
    import torch

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' own name
TAG = "loophil"  # by which a card is known as one of these
PUBLIC = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Adapter:
    """One version's LoRA and what is known about it. None = not measured; only what stands here can reach an exported file.

    weights       {"<module>.lora_A.weight": (rank, in[, h, w]), "<module>.lora_B.weight": (out, rank[, 1, 1])}, peft's bare keys
    base_model    Hub id, or a folder, of which only the last part is ever written
    architecture  ModelSpec's name of the base's class, by which A1111 knows what the file fits
    licence       the Hub's name of it; of one that the Hub knows none for, "other", with a name and an address of its own
    created       when the version was published, Unix seconds
    rewards       weight of each source in the reward mix; people are written as one "human"
    win_rate      share of blind pairs won against the base, with its interval: (share, low, high)
    """

    weights: Mapping[str, torch.Tensor]
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_model: str
    revision: str | None
    version: int
    ratings: int
    run: str
    component: Literal["unet", "transformer"] = "unet"
    trigger: str = ""
    licence: str = "other"
    licence_name: str = ""
    licence_link: str = ""
    resolution: int = 512
    architecture: str = "stable-diffusion-v1"
    created: float | None = None
    raters: int | None = None
    updates: int | None = None
    rewards: Mapping[str, float] = field(default_factory=dict)
    win_rate: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt at one seed, drawn by the base and by the tuned model. The prompt is shown on the card."""

    prompt: str
    seed: int
    base: Image.Image
    tuned: Image.Image


LOADING = {
    "diffusers": {"diffusers": '`pipe.load_lora_weights("FOLDER")`', "kohya": '`pipe.load_lora_weights("FOLDER", weight_name="{name}.safetensors")`'},
    "ComfyUI": {"kohya": "copy `{name}.safetensors` to `models/loras`, and put a Load LoRA node behind the checkpoint"},
    "A1111": {"kohya": "copy `{name}.safetensors` to `models/Lora`, and write `<lora:{name}:1>` into the prompt"},
    "peft": {"peft": '`PeftModel.from_pretrained(pipe.{component}, "FOLDER")`'},
}
# What is otherwise for some bases.
OTHERWISE = {
    "stable-diffusion-3": {
        "ComfyUI": {"diffusers": "copy `{weights}` to `models/loras`, and put a Load LoRA node of strength {strength:g} behind the checkpoint"},
        "A1111": {"": "no format that it takes whole"},
    },
    "flux-1": {"A1111": {"": "draws no FLUX; Forge does, and takes the kohya format as A1111 would"}},
}
CARD = """---
{front}
---

# {adapter.run} v{adapter.version}

A LoRA for {base}, tuned with LoopHIL: live preference tuning by LOOP, leave-one-out PPO (arXiv 2503.00897).

## What it learned from

| | |
|---|---|
{facts}
{grid}
## How to load it

`pipe` is the base model's pipeline, and FOLDER is where this file lies: a folder, or the name of this repository on the Hub.

| | |
|---|---|
{loading}

These files hold no names of people, no paths, and no prompts but those shown above.
"""
BEFORE_AFTER = "\n<Gallery />\n\n## Before and after, at one seed\n\n| prompt | seed | base | tuned |\n|---|---|---|---|\n"


def model_card(adapter: Adapter, format: str, name: str, pictures: Sequence[BeforeAfter]) -> str:
    """README.md as the Hub reads it: front matter, what was learned from what, pictures, how to load it."""
    base = public(adapter.base_model)
    front = ModelCardData(
        base_model=hub_id(adapter.base_model),  # the Hub refuses a card with anything else there
        library_name="peft" if format == "peft" else "diffusers",
        license=adapter.licence,
        license_name=adapter.licence_name or None,
        license_link=adapter.licence_link or None,
        pipeline_tag="text-to-image",
        tags=["text-to-image", "lora", "diffusers", "diffusers-training", "template:sd-lora", TAG],
        instance_prompt=adapter.trigger or None,
        widget=[{"text": p.prompt, "output": {"url": f"images/tuned_{i}.png"}} for i, p in enumerate(pictures)] or None,
    )
    shown = _rows((_plain(p.prompt), p.seed, f"![base](images/base_{i}.png)", f"![tuned](images/tuned_{i}.png)") for i, p in enumerate(pictures))
    loading = LOADING | next((ways for kind, ways in OTHERWISE.items() if adapter.architecture.startswith(kind)), {})
    ways = {program: known.get(format, known.get("", f"export this version as {next(iter(known))}")) for program, known in loading.items()}
    return CARD.format(
        front=front.to_yaml(),
        adapter=adapter,
        base=_plain(base),
        facts=_rows(_facts(adapter).items()),
        grid=f"{BEFORE_AFTER}{shown}\n" if pictures else "",
        loading=_rows(ways.items()).format(name=name, component=adapter.component, weights=WEIGHTS, strength=adapter.alpha / adapter.rank),
    )


def _rows(rows: Iterable[tuple[object, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _facts(adapter: Adapter) -> dict[str, str]:
    """The card's table, only of what is known."""
    base, revision = _plain(public(adapter.base_model)), _plain(adapter.revision or "")
    facts = {
        "ratings": f"{adapter.ratings} rated images" + ("" if adapter.raters is None else f", raters: {adapter.raters}"),
        "version": f"{adapter.version}" + ("" if adapter.updates is None else f", after {adapter.updates} updates"),
        "base model": f"{base}, revision {revision}" if revision else base,
        "LoRA": f"rank {adapter.rank}, alpha {adapter.alpha:g} (it acts with alpha / rank = {adapter.alpha / adapter.rank:g})",
        "modules": _plain(", ".join(adapter.targets)),
        "resolution": f"{adapter.resolution} x {adapter.resolution}",
        "trigger phrase": _plain(adapter.trigger) or "none: it acts on every prompt",
        "licence": _licence(adapter),
    }
    if adapter.rewards:  # raters of one group share the human weight, so their entries are one
        mix = {"human" if source.startswith(HUMAN) else public(source): weight for source, weight in adapter.rewards.items()}
        facts["reward mix"] = ", ".join(f"{_plain(source)} {weight:g}" for source, weight in mix.items())
    if adapter.win_rate is not None:
        share, low, high = adapter.win_rate
        facts["better than the base"] = f"{share:.0%} of blind pairs ({low:.0%} to {high:.0%})"
    return facts


def _licence(adapter: Adapter) -> str:
    """Its name, which leads to its text where that is known."""
    name = _plain(adapter.licence_name or adapter.licence)
    return f"[{name}]({quote(adapter.licence_link, safe=':/?#&=%@+,;~')})" if adapter.licence_link else name


def _plain(text: str) -> str:
    """User text as Markdown that shows it and does nothing: one line, punctuation with a meaning escaped."""
    return re.sub(r"([\\`*_\[\]<>|&~#$])", r"\\\1", " ".join(text.split()))


def check_label(name: str, trigger: str, licence: str) -> None:
    """InvalidInput for what cannot stand on an exported file."""
    if not re.fullmatch(RUN_NAME, name):
        raise InvalidInput(f"{name!r} cannot name a file: use up to 64 of a-z, 0-9, _ and -.")
    if not (trigger + licence).isprintable():
        raise InvalidInput(f"Trigger {trigger!r} or licence {licence!r} has unprintable characters: leave them out.")


def hub_id(base: str) -> str | None:
    """A base that comes from the Hub, as OWNER/NAME; None for a file, a folder, the embedded model."""
    return base if "/" in base and PUBLIC.fullmatch(base) and not Path(base).exists() else None


def public(name: str) -> str:
    """A Hub id or a reward's name as it is; of a path, which may tell a user's name, the last part."""
    return name if PUBLIC.fullmatch(name) and not Path(name).exists() else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or "base"
