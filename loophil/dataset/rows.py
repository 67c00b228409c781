"""A group and its ratings -> rows of a dataset. Not how they are written: see formats.

A picture in a row is {"bytes", "path"}, as the `Image` of Hugging Face's `datasets` is; bytes is None where the path names a file beside the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from loophil.dataset.pictures import path_of
from loophil.store import ActRecord, RatedGroup

Row = dict[str, Any]
ORDERING = ("best",)  # kinds of acts that do not say of the images with equal stars that they are alike


def group_rows(rated: RatedGroup, pictures: Sequence[bytes], embed: bool) -> Iterator[Row]:
    """One row with everything. None = not known; positions (`best`, `worst`, `order`) count from 0; `created` in Unix seconds.

    Of an act `policy_version` was current when it was rated, and `current` says whether it counts now.
    """
    group, settings = rated.group, rated.group.settings
    sampled = settings.num_inference_steps > 0
    current = rated.current
    yield {
        "id": group.id,
        "prompt": group.prompt,
        "negative_prompt": settings.negative_prompt,
        "images": [_picture(rated, pictures, position, embed) for position in range(len(pictures))],
        "image_ids": [ref.id for ref in group.images],
        "seeds": [ref.seed if ref.seed >= 0 else None for ref in group.images],
        "base_model": rated.base_model,
        "revision": rated.revision,
        "policy_version": group.policy_version,
        "scheduler": rated.scheduler,
        "num_inference_steps": settings.num_inference_steps if sampled else None,
        "guidance_scale": settings.guidance_scale if sampled else None,
        "eta": settings.eta if sampled else None,
        "created": group.created,
        "acts": [_act(record, n in current) for n, record in enumerate(rated.acts)],
        "scores": [{"reward": reward, "values": list(values)} for reward, values in sorted(rated.scores.items())],
    }


def pair_rows(rated: RatedGroup, pictures: Sequence[bytes], embed: bool) -> Iterator[Row]:
    """A row for each pair that a rating orders, or calls a tie, with Pick-a-Pic's columns: labels 1 and 0, 0.5 each for a tie.

    Embedded pictures are plain bytes there (`jpg_0`, whatever their format is), as the scripts that read Pick-a-Pic want them; by reference they
    are paths (`image_0`). `ranking_id` is the group and the number of the act that orders it.
    """
    group = rated.group
    model = f"{rated.base_model}@v{group.policy_version}"
    for n, i, j in _pairs(rated):
        record = rated.acts[n]
        first, second = record.act.stars[i], record.act.stars[j]
        label = 0.5 if first == second else float((first or 0) > (second or 0))
        shown = [_picture(rated, pictures, position, embed) for position in (i, j)]
        best = None if label == 0.5 else group.images[i if label else j].id
        yield {
            "caption": group.prompt,
            **{(f"jpg_{n}" if embed else f"image_{n}"): picture["bytes" if embed else "path"] for n, picture in enumerate(shown)},
            "label_0": label,
            "label_1": 1 - label,
            "image_0_uid": group.images[i].id,
            "image_1_uid": group.images[j].id,
            "best_image_uid": best,
            "are_different": label != 0.5,
            "has_label": True,
            "ranking_id": f"{group.id}:{n}",
            "user_id": record.act.rater,
            "model_0": model,
            "model_1": model,
            "created_at": datetime.fromtimestamp(record.created, UTC).isoformat(),
        }


def dpo_rows(rated: RatedGroup, pictures: Sequence[bytes], embed: bool) -> Iterator[Row]:
    """A row for each pair of which a rating says which image is better."""
    for n, i, j in _pairs(rated):
        stars = rated.acts[n].act.stars
        if stars[i] != stars[j]:
            chosen, rejected = sorted((i, j), key=lambda position: -(stars[position] or 0))
            yield {
                "prompt": rated.group.prompt,
                "chosen": _picture(rated, pictures, chosen, embed),
                "rejected": _picture(rated, pictures, rejected, embed),
            }


def _pairs(rated: RatedGroup) -> Iterator[tuple[int, int, int]]:
    """(number of the act, position, position) of the rated images that an act says something of, taken two by two.

    "Best and worst" leaves the others their three stars without a word on them: that is no tie.
    """
    for n in rated.current:
        act = rated.acts[n].act
        for i, first in enumerate(act.stars):
            for j, second in enumerate(act.stars[:i]):
                if first is not None and second is not None and not (first == second and act.kind in ORDERING):
                    yield n, j, i


def _picture(rated: RatedGroup, pictures: Sequence[bytes], position: int, embed: bool) -> Row:
    return {"bytes": pictures[position] if embed else None, "path": path_of(rated.group.images[position], embed)}


def _act(record: ActRecord, current: bool) -> Row:
    act = record.act
    return {
        "rater": act.rater,
        "kind": act.kind,
        "stars": list(act.stars),
        "best": act.best,
        "worst": act.worst,
        "order": list(act.order),
        "milliseconds": act.milliseconds,
        "policy_version": record.policy_version,
        "created": record.created,
        "current": current,
    }
