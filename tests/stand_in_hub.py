"""A stand-in for the Hugging Face Hub on 127.0.0.1: what huggingface_hub asks while it publishes or downloads a model, and all that it was sent.

A test double only. It takes Git LFS over plain HTTP; Xet, of which it knows nothing, is switched off for the client. Nothing waits: where the
client would sleep before it tries again, it does not.
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
    """`commits`: of each the repository, its message and {path: content}.  `models`: {repository: {commit: {path: content}}}, the last is main's.

    `faults`: {part of "METHOD /path": status}, answered instead of what is right; 0 = the connection is closed without an answer.
    """

    url: str = ""
    user: str = "ann"
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    repositories: dict[str, bool] = field(default_factory=dict)  # name -> private
    licences: dict[str, Any] = field(default_factory=dict)  # of base models
    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # to be downloaded by anybody
    faults: dict[str, int] = field(default_factory=dict)
    said: str = "not now"
    requests: list[str] = field(default_factory=list)  # method and path
    tokens: set[str] = field(default_factory=set)  # that came with the requests to the API
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by their SHA-256

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
        if asked["organization"] not in (None, self.user):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {asked['organization']!r}"}
        known = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, known | {"error": "You already created this model repo"}
        self.repositories[name] = asked.get("visibility") == "private"
        return 200, known

    def of_repository(self, path: str, body: bytes) -> tuple[int, Any]:
        name, what = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/.]+)(?:\.git)?(/.*)?", path).groups()  # type: ignore[union-attr]
        if what is None:
            return self.info(name)
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if what.startswith("/preupload/"):
            files = [file["path"] for file in json.loads(body)["files"]]
            large = (".safetensors", ".png")
            return 200, {"files": [{"path": p, "uploadMode": "lfs" if p.endswith(large) else "regular", "shouldIgnore": False} for p in files]}
        if what == "/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self.upload_of(thing) for thing in json.loads(body)["objects"]]}
        assert what == "/commit/main", path
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def info(self, name: str) -> tuple[int, Any]:
        if name in self.licences:
            return 200, {"id": name, "siblings": [], "cardData": {"license": self.licences[name]}}
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "siblings": [], "private": self.repositories[name]}

    def upload_of(self, thing: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": thing["oid"], "size": thing["size"]}
        return known if thing["oid"] in self.stored else known | {"actions": {"upload": {"href": f"{self.url}/lfs/{thing['oid']}"}}}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = {}
        for line in lines[1:]:
            value = line["value"]
            files[value["path"]] = base64.b64decode(value["content"]) if line["key"] == "file" else self.stored[value["oid"]]
        self.commits.append((name, lines[0]["value"]["summary"], files))
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}


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
            content = said.content if isinstance(said, File) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if isinstance(said, File):
                self.send_header("x-repo-commit", said.commit)
                self.send_header("etag", f'"{hashlib.sha1(said.content).hexdigest()}"')
            self.send_header("content-length", str(len(content)))
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
        yield made
