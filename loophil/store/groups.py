"""Drawn groups: k images, how each came about, and the transitions that the trainer replays. Not what anyone thinks of them."""

from __future__ import annotations

import itertools
import re
import reprlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loophil.errors import UnknownGroup
from loophil.store.connection import Connection
from loophil.store.files import sync, sync_folder, write_file
from loophil.types import DrawSettings, Group, ImageRef

ID = re.compile(r"[0-9a-f]{32}")


class Groups(Connection):
    """Groups of a run. Ids are random, so that nobody can guess another's; they also name the files."""

    @property
    def images(self) -> Path:
        """The folder of all images."""
        return self.path / "images"

    def add_group(
        self,
        prompt: str,
        settings: DrawSettings,
        *,
        policy_version: int,
        seeds: Sequence[int],
        images: Sequence[bytes],
        write_transitions: Callable[[Path], None],
        scheduler: str,
        kind: str = "person",
        notes: Mapping[str, Any] | None = None,
    ) -> Group:
        """Keeps k drawn images (PNG files as bytes) and their transitions; `notes` go into the same transaction."""
        refs = tuple(ImageRef(key := secrets.token_hex(16), seed, f"{key}.png") for seed in seeds)
        group = Group(secrets.token_hex(16), prompt, settings, policy_version, refs, kind, time.time())
        try:
            for ref, image in zip(refs, images, strict=True):
                write_file(self.images / ref.file, image)
            write_transitions(self._transitions(group.id))
            sync(self._transitions(group.id))
            sync_folder(self.images)
            sync_folder(self.path / "transitions")
            with self._write():
                self._insert_group(group, scheduler)
                self._insert_notes(notes)
        except Exception:
            self._remove_files(group)
            raise
        return group

    def _insert_group(self, group: Group, scheduler: str) -> None:
        self._insert("groups", kind=group.kind, **columns_of_group(group, scheduler))
        self._insert_images("images", group)

    def _insert_images(self, table: str, group: Group) -> None:
        for position, ref in enumerate(group.images):
            self._insert(table, id=ref.id, group_id=group.id, position=position, seed=ref.seed, file=ref.file)

    def group(self, group_id: str) -> Group:
        """UnknownGroup if there is none."""
        found = []
        if isinstance(group_id, str) and ID.fullmatch(group_id):
            found = self._groups("SELECT * FROM group_images WHERE id = ? ORDER BY position", group_id)
        if not found:
            raise UnknownGroup(f"There is no group {reprlib.repr(group_id)} in the run '{self.name}': ask for a new group.")
        return found[0]

    def unrated_groups(self, rater: str | None, *, newest: int | None = None, min_version: int = 0) -> list[Group]:
        """Groups for a person that this rater (None = anyone) has not answered, oldest first; dropped ones left out.

        Only the `newest` so many, and only those drawn by version `min_version` or later.
        """
        return self._groups(
            """SELECT * FROM group_images WHERE number IN (
                SELECT number FROM groups g WHERE kind = 'person' AND policy_version >= ? AND id NOT IN (SELECT group_id FROM dropped)
                AND NOT EXISTS (SELECT 1 FROM standing_acts a WHERE a.group_id = g.id AND coalesce(?, a.rater) = a.rater) ORDER BY number DESC LIMIT ?
            ) ORDER BY number, position""",
            min_version,
            rater,
            -1 if newest is None else newest,
        )

    def drop_group(self, group_id: str) -> bool:
        """Gives up a group that nobody has seen: never shown, never learned from; its files go, its rows stay.

        False, and nothing is changed, if somebody answered it after all: a rating may come in at any moment.
        """
        group = self.group(group_id)
        with self._write():
            if self._rows("SELECT 1 FROM acts WHERE group_id = ?", group.id):
                return False
            self._db.execute("INSERT INTO dropped VALUES (?, ?) ON CONFLICT DO NOTHING", (group.id, time.time()))
        self._remove_files(group)
        return True

    def transitions_path(self, group_id: str) -> Path:
        """Where the group's transitions are; there is no such file once they were dropped."""
        return self._transitions(self.group(group_id).id)

    def drop_transitions(self, group_ids: Iterable[str]) -> None:
        """Frees the disk space of transitions that nothing will learn from again."""
        for group_id in group_ids:
            self.transitions_path(group_id).unlink(missing_ok=True)

    def _transitions(self, group_id: str) -> Path:
        return self.path / "transitions" / f"{group_id}.safetensors"

    def _remove_files(self, group: Group) -> None:
        for file in (self._transitions(group.id), *(self.images / ref.file for ref in group.images)):
            file.unlink(missing_ok=True)

    def _remove_orphaned_files(self) -> None:
        """Images and transitions of no living group: a kill came between file and row. Other files in images/ are someone else's."""
        kept = self._rows("SELECT id, file FROM group_images WHERE id NOT IN (SELECT group_id FROM dropped)")
        imported = self._rows("SELECT file FROM imported_images")
        files, transitions = {row["file"] for row in (*kept, *imported)}, {f"{row['id']}.safetensors" for row in kept}
        for image in self.images.iterdir():
            if image.name not in files and ID.fullmatch(image.stem):
                image.unlink()
        for file in (self.path / "transitions").iterdir():
            if file.name not in transitions:
                file.unlink()

    def _groups(self, sql: str, *values: Any) -> list[Group]:
        return [_group(list(images)) for _, images in itertools.groupby(self._rows(sql, *values), key=lambda row: row["number"])]


def columns_of_group(group: Group, scheduler: str) -> dict[str, Any]:
    """What is kept of a group's drawing, whoever drew it."""
    settings = group.settings
    return {
        "id": group.id,
        "prompt": group.prompt,
        "negative_prompt": settings.negative_prompt,
        "policy_version": group.policy_version,
        "scheduler": scheduler,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "eta": settings.eta,
        "created": group.created,
    }


def _group(rows: Sequence[sqlite3.Row]) -> Group:
    row = rows[0]
    settings = DrawSettings(row["num_inference_steps"], row["guidance_scale"], row["eta"], row["negative_prompt"])
    images = tuple(ImageRef(image["image"], image["seed"], image["file"]) for image in rows)
    return Group(row["id"], row["prompt"], settings, row["policy_version"], images, row["kind"], row["created"])
