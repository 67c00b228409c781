"""A stand-in for the Hugging Face Hub on 127.0.0.1: what huggingface_hub asks of it while models go up or come down or files are kept.

A test double only. Models and datasets take Git LFS over plain HTTP; Xet, of which it knows nothing, is switched off for the client, and for buckets,
which have nothing else, replaced by `XetSession`. Nothing waits: where the client would sleep before it tries again, it does not.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
import yaml

GOOD = "hf_" + "kanarienvogel" * 2
LICENCES = {"apache-2.0", "mit", "other", "openrail++"}


class File(NamedTuple):
    """One of a model's, in one of its commits."""

    commit: str
    content: bytes


@dataclass
class StandInHub:
    """`commits`: of each the repository, its message and {path: content}; `files`: {"datasets/NAME" or "buckets/NAME": {path: content}} as it is now;
    `models`: {repository: {commit: {path: content}}}, the last is main's.

    `faults`: {part of "METHOD /path": status}, answered instead of what is right; 0 = the connection is closed without an answer.
    """

    url: str = ""
    user: str = "ann"
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    repositories: dict[str, bool] = field(default_factory=dict)  # name -> private
    licences: dict[str, Any] = field(default_factory=dict)  # of base models; a dict is all that the card's front matter says
    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # to be downloaded by anybody
    faults: dict[str, int] = field(default_factory=dict)
    said: str = "not now"
    requests: list[str] = field(default_factory=list)  # method and path
    tokens: set[str] = field(default_factory=set)  # that came with the requests to the API
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by their SHA-256
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """What the Hub says: (status, JSON or File)."""
        self.requests.append(f"{method} {path}")
        for part, status in self.faults.items():
            if part in f"{method} {path}":
                return status, {"error": self.said}
        if path.startswith("/lfs/"):
            return self.keep(path.removeprefix("/lfs/"), body)
        if (match := re.match(r"(?:/api/models)?/([^/]+/[^/]+)", path)) and match[1] in self.models:
            return self.download(self.models[match[1]], match[1], path[match.end() :])
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        self.tokens.add(token)
        if token != GOOD and not path.startswith("/api/models/base/"):
            return 401, {"error": f"Invalid credentials: {token}"}
        if path == "/api/whoami-v2":
            return 200, {"name": self.user, "type": "user", "orgs": []}
        if found := re.fullmatch(r"(?:/api)?/buckets/([^/]+/[^/]+)(/.*)?", path):
            return self.of_bucket(found[1], found[2], body)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        return self.of_repository(path, body)

    def keep(self, oid: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not what was announced"}
        self.stored[oid] = body
        return 200, {}

    def download(self, commits: dict[str, dict[str, bytes]], name: str, what: str) -> tuple[int, Any]:
        """A commit, the files of one, or a file of one."""
        _, kind, revision, path = [*what.split("/", 3), "", "", ""][:4]
        commit = list(commits)[-1] if revision in ("", "main") else revision
        if commit not in commits:
            return 404, {"error": "Revision not found"}
        if kind == "resolve":
            return (200, File(commit, commits[commit][path])) if path in commits[commit] else (404, {"error": "Entry not found"})
        if kind == "tree":
            return 200, [{"type": "file", "path": p, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for p, data in commits[commit].items()]
        return 200, {"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in commits[commit]]}

    def validate(self, card: str) -> tuple[int, Any]:
        licence = yaml.safe_load(card.split("---\n")[1])["license"]
        return (200, {"errors": [], "warnings": []}) if licence in LICENCES else (400, {"errors": [{"message": f'"license" {licence} is none'}]})

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization'] or self.user}/{asked['name']}"
        name = f"datasets/{name}" if asked.get("type") == "dataset" else name
        if asked["organization"] not in (None, self.user):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {asked['organization']!r}"}
        known = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, known | {"error": "You already created this model repo"}
        self.repositories[name] = asked.get("visibility") == "private"
        return 200, known

    def of_repository(self, path: str, body: bytes) -> tuple[int, Any]:
        kind, name, what = re.fullmatch(r"(?:/api)?(?:/(models|datasets))?/([^/]+/[^/.]+)(?:\.git)?(/.*)?", path).groups()  # type: ignore[union-attr]
        name = f"datasets/{name}" if kind == "datasets" else name
        if what is None:
            return self.info(name)
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if what.startswith("/preupload/"):
            files = [file["path"] for file in json.loads(body)["files"]]
            large = (".safetensors", ".png", ".sqlite")
            return 200, {"files": [{"path": p, "uploadMode": "lfs" if p.endswith(large) else "regular", "shouldIgnore": False} for p in files]}
        if what == "/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self.upload_of(thing) for thing in json.loads(body)["objects"]]}
        if what.startswith("/tree/main"):
            return self.tree(name, what.removeprefix("/tree/main/"), "oid")
        if what.startswith("/resolve/main/"):
            content = self.files.get(name, {}).get(what.removeprefix("/resolve/main/"))
            return (404, {"error": "Entry not found"}) if content is None else (200, content)
        assert what == "/commit/main", path
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def info(self, name: str) -> tuple[int, Any]:
        if name in self.licences:
            stated = self.licences[name]
            return 200, {"id": name, "siblings": [], "cardData": stated if isinstance(stated, dict) else {"license": stated}}
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        files = self.files.get(name, {})
        card = yaml.safe_load(files["README.md"].decode().split("---\n")[1]) if "README.md" in files else {}
        return 200, {"id": name, "siblings": [{"rfilename": path} for path in files], "cardData": card, "private": self.repositories[name]}

    def upload_of(self, thing: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": thing["oid"], "size": thing["size"]}
        return known if thing["oid"] in self.stored else known | {"actions": {"upload": {"href": f"{self.url}/lfs/{thing['oid']}"}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.files[name][value["path"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"]) if line["key"] == "file" else self.stored[value["oid"]]
        self.files.setdefault(name, {}).update(files)
        self.commits.append((name, lines[0]["value"]["summary"], files))
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}

    def tree(self, name: str, prefix: str, number: str) -> tuple[int, Any]:
        """All files whose paths begin so, those of folders with longer names too."""
        files = {path: content for path, content in self.files.get(name, {}).items() if path.startswith(unquote(prefix.strip("/")))}
        folders = [{"type": "directory", "path": folder, "oid": "0"} for folder in sorted({path.partition("/")[0] for path in files if "/" in path})]
        return 200, folders + [{"type": "file", "path": path, "size": len(content), number: xet(content)} for path, content in files.items()]

    def of_bucket(self, name: str, what: str | None, body: bytes) -> tuple[int, Any]:
        name = f"buckets/{name}"
        if what is None:
            known = {"url": f"{self.url}/{name}"}
            if name in self.repositories:
                return 409, known | {"error": "You already created this bucket"}
            self.repositories[name] = json.loads(body).get("visibility") == "private"
            return 200, known
        if name not in self.repositories:
            return 404, {"error": "Bucket not found"}
        files = self.files.setdefault(name, {})
        if what.startswith("/tree"):
            return self.tree(name, what.removeprefix("/tree"), "xetHash")
        if what == "/paths-info":
            found = [path for path in json.loads(body)["paths"] if path in files]
            return 200, [{"type": "file", "path": path, "size": len(files[path]), "xetHash": xet(files[path])} for path in found]
        if what.startswith("/resolve/"):
            return 200, files[unquote(what.removeprefix("/resolve/"))]
        assert what == "/batch", what
        for line in map(json.loads, body.splitlines()):
            if line["type"] == "addFile":
                files[line["path"]] = self.stored[line["xetHash"]]
            else:
                del files[line["path"]]
        return 200, {"failed": []}


def xet(content: bytes) -> str:
    """What stands for a file's Xet hash and git number here."""
    return hashlib.sha256(content).hexdigest()


class XetSession:
    """Stands in for hf_xet, whose protocol the hub does not speak: contents go into `stored` and come from there."""

    def __init__(self, hub: StandInHub) -> None:
        self._hub = hub

    def new_upload_commit(self, **_: Any) -> "XetSession":
        return self

    new_file_download_group = new_upload_commit

    def __enter__(self) -> "XetSession":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def start_upload_file(self, path: str, **_: Any) -> Any:
        content = Path(path).read_bytes()
        self._hub.stored[xet(content)] = content
        result = SimpleNamespace(xet_info=SimpleNamespace(hash=xet(content), file_size=len(content)))
        return SimpleNamespace(result=lambda: result)

    def start_download_file(self, info: Any, path: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(self._hub.stored[info.hash])


def handler_of(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    """Reads a request, lets the hub answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def any(self) -> None:
            body = self.body()
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            status, said = hub.answer(self.command, self.path.partition("?")[0], token, body)
            if status == 0:
                self.close_connection = True
                return
            file = said.content if isinstance(said, File) else said if isinstance(said, bytes) else None
            content = json.dumps(said).encode() if file is None else file
            self.send_response(status)
            self.send_header("content-type", "application/json" if file is None else "application/octet-stream")
            if isinstance(said, File):
                self.send_header("x-repo-commit", said.commit)
                self.send_header("etag", f'"{hashlib.sha1(said.content).hexdigest()}"')
            self.send_header("content-length", str(len(content)))
            if isinstance(said, bytes):  # a dataset's or a bucket's
                self.send_header("etag", f'"{xet(content)}"')
                self.send_header("x-repo-commit", f"{len(hub.commits):040x}")
                if "/buckets/" in self.path:
                    self.send_header("x-xet-hash", xet(content))
                    self.send_header("x-xet-refresh-route", f"{hub.url}/xet")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            read = b""
            while size := int(self.rfile.readline(), 16):
                read += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return read

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

        do_GET = do_HEAD = do_POST = do_PUT = any

    return Handler


@contextmanager
def standing_in() -> Iterator[StandInHub]:
    """A hub for the length of a block."""
    hub = StandInHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The hub that huggingface_hub knows in this test, with a right token in HF_TOKEN and none stored."""
    monkeypatch.setenv("HF_TOKEN", GOOD)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    with standing_in() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", made.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: XetSession(made))
        yield made
