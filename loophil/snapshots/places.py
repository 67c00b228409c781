"""Where snapshots lie: a folder (a second disk, a mounted volume), a bucket on the Hugging Face Hub, or a dataset repository there.

Not what is in a snapshot: a place knows files by name, and none is ever changed. The token is HF_TOKEN or what `hf auth login` stored;
huggingface_hub takes it from there by itself. Whatever goes wrong is a LoopHILError with a sentence of our own and no cause, because the library's
messages may hold addresses and whatever a server answered.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # public, but its __init__ does not say so to type checkers

from loophil.errors import ConfigError, LoopHILError

HUB = re.compile(r"hf://(buckets|datasets)/([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)/?")
AT_ONCE = 8  # downloads


class Place(Protocol):
    """Files by name ("first/sets/1.json"). Every method may raise a LoopHILError. `lasts`: seconds that a listing may be relied on."""

    lasts: float

    def listed(self, under: str = "") -> dict[str, int]:
        """{name: bytes} of all files, or of those in this folder; nothing where the place is not there yet."""

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """Copies files into a folder, under their names; what is not there is left out."""

    def send(self, files: Mapping[str, Path], seal: tuple[str, Path], gone: Sequence[str]) -> None:
        """Keeps {name: local file}, then the seal, which says that they are all there; then deletes what is gone."""


def place_of(address: str) -> Place:
    """The place of this address. ConfigError where it can be none, or is a folder that is not there."""
    if found := HUB.fullmatch(address):
        kind, name, path = found.groups()
        return (Bucket if kind == "buckets" else Dataset)(address, name, path.strip("/"))
    if address.startswith("hf:"):
        raise ConfigError(f"snapshots = {address!r} is no place on the Hub: write hf://buckets/USER/BUCKET/PATH or hf://datasets/USER/NAME.")
    folder = Path(address).expanduser().absolute()
    if not folder.is_dir():  # not made here: where a volume is not mounted, it would lie on the disk that forgets
        raise ConfigError(f"There is no folder {folder} to keep snapshots in: make it or mount it, or give another place with --snapshots.")
    return Folder(folder)


class Folder:
    """A folder that is there. A file is written in one go under its final name, since a mounted bucket knows neither renaming nor changing."""

    lasts = 0.0

    def __init__(self, root: Path) -> None:
        self._root = root

    def listed(self, under: str = "") -> dict[str, int]:
        """See Place."""
        with self._telling():
            files = [file for file in (self._root / under).rglob("*") if file.is_file()]
            return {file.relative_to(self._root).as_posix(): file.stat().st_size for file in files}

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """See Place."""
        with self._telling():
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    shutil.copyfile(self._root / name, folder / name)

    def send(self, files: Mapping[str, Path], seal: tuple[str, Path], gone: Sequence[str]) -> None:
        """See Place."""
        with self._telling():
            for name, file in (*files.items(), seal):
                self._write(self._root / name, file)
            for name in gone:
                (self._root / name).unlink(missing_ok=True)

    def _write(self, target: Path, file: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as source, target.open("wb") as written:
            shutil.copyfileobj(source, written)
            written.flush()
            os.fsync(written.fileno())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        if not self._root.is_dir():  # not made again, as in place_of
            raise LoopHILError(f"The folder {self._root} is not there any more: mount it or make it again.")
        try:
            yield
        except OSError as error:
            raise LoopHILError(f"The folder {self._root} cannot be used ({error.strerror or type(error).__name__}).") from None


class OnHub:
    """What a bucket and a dataset have in common. Either is made at the first sending, for its owner alone to see."""

    lasts = 60.0  # a long list takes seconds, which the last snapshot has not

    def __init__(self, address: str, name: str, path: str) -> None:
        self._address, self._name, self._path = address, name, path
        self._api = HfApi()
        self._made = False

    def _there(self, name: str) -> str:
        """A name of ours as the Hub knows it."""
        return "/".join(part for part in (self._path, name) if part)

    def _tree(self, ask: Callable[[], Iterable[Any]]) -> list[Any]:
        """What the Hub lists; nothing where the place, or the folder in it, is not there."""
        try:
            return list(ask())
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return []
            raise

    def _ours(self, found: Mapping[str, int], under: str) -> dict[str, int]:
        """{name of ours: bytes} of what the Hub knows in this folder; it may have listed others whose names begin alike."""
        inside = self._there(under) + "/" if self._there(under) else ""
        start = len(self._path) + 1 if self._path else 0
        return {path[start:]: size for path, size in found.items() if path.startswith(inside)}

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            with disable_progress_bars():
                yield
        except LoopHILError:
            raise
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403, 404):
                raise LoopHILError(
                    f"{self._address} may not be used with this token (the Hub answered {status}): set HF_TOKEN to one with the right to write there."
                ) from None
            raise LoopHILError(f"The Hub answered {status} for {self._address}.") from None
        except Exception:
            raise LoopHILError(f"{self._address} cannot be reached.") from None


class Bucket(OnHub):
    """A bucket: files without history, so that what is deleted is gone."""

    def listed(self, under: str = "") -> dict[str, int]:
        """See Place."""
        with self._telling():
            tree = self._tree(lambda: self._api.list_bucket_tree(self._name, self._there(under) or None, recursive=True))
            return self._ours({item.path: item.size for item in tree if item.type == "file"}, under)

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """See Place."""
        with self._telling():
            self._api.download_bucket_files(self._name, [(self._there(name), folder / name) for name in names])

    def send(self, files: Mapping[str, Path], seal: tuple[str, Path], gone: Sequence[str]) -> None:
        """See Place. Three steps, because one batch of a bucket is no transaction."""
        with self._telling():
            if not self._made:
                self._api.create_bucket(self._name, private=True, exist_ok=True)
                self._made = True
            for batch in (files, dict([seal])):
                self._api.batch_bucket_files(self._name, add=[(file, self._there(name)) for name, file in batch.items()])
            self._api.batch_bucket_files(self._name, delete=[self._there(name) for name in gone])


class Dataset(OnHub):
    """A dataset repository: each snapshot is one commit, all of it or nothing. Its history keeps what is deleted."""

    def listed(self, under: str = "") -> dict[str, int]:
        """See Place."""
        with self._telling():
            tree = self._tree(lambda: self._api.list_repo_tree(self._name, self._there(under) or None, recursive=True, repo_type="dataset"))
            return self._ours({item.path: item.size for item in tree if hasattr(item, "size")}, under)

    def fetch(self, names: Sequence[str], folder: Path) -> None:
        """See Place."""

        def one(name: str) -> None:
            with suppress(RemoteEntryNotFoundError):  # and not its sister, which is what no answer comes to
                file = self._api.hf_hub_download(self._name, self._there(name), repo_type="dataset", local_dir=folder / ".hub")
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Path(file).replace(folder / name)

        with self._telling(), ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, names))

    def send(self, files: Mapping[str, Path], seal: tuple[str, Path], gone: Sequence[str]) -> None:
        """See Place."""
        with self._telling():
            if not self._made:
                self._api.create_repo(self._name, repo_type="dataset", private=True, exist_ok=True)
                self._made = True
            additions = [CommitOperationAdd(self._there(name), str(file)) for name, file in (*files.items(), seal)]
            deletions = [CommitOperationDelete(self._there(name)) for name in gone]
            self._api.create_commit(self._name, [*additions, *deletions], commit_message=f"Snapshot {seal[0]}", repo_type="dataset")
