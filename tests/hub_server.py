"""A stand-in for the Hugging Face hub: its answers over real HTTP, with faults on demand and a log of what was asked.

Large files are redirected to another host name, as the hub does to its CDN.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

_LARGE = (".safetensors", ".gguf", ".bin", ".pth")
_CHUNK = 1 << 20


@lru_cache(maxsize=64)
def _digest(data: bytes, kind: str) -> str:
    return hashlib.new(kind, data).hexdigest()


@dataclass
class Request:
    """One request, and the bytes of its answer's body that were sent."""

    method: str
    path: str
    host: str
    span: str | None
    token: str | None
    encoding: str | None
    sent: int = 0


@dataclass
class Hub:
    """What the server holds and how it misbehaves.

    Attributes:
        repos: files by name, by repository.
        status: answer this to every question for a model's description; `code` is its X-Error-Code.
        file_status: answer this to every question for a file.
        answer: answer this instead of a model's description.
        cuts: for a large file, after how many bytes of each next answer to close the connection.
        down: drop every connection without a word.
        range_ignored: send large files from their beginning, whatever was asked.
        pause: seconds before each MiB of a large file.
    """

    endpoint: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    status: int = 200
    code: str | None = None
    file_status: int = 200
    answer: bytes | None = None
    cuts: dict[str, list[int]] = field(default_factory=dict)
    down: bool = False
    range_ignored: bool = False
    pause: float = 0.0

    def commit(self, repo: str) -> str:
        tree = sorted((name, _digest(data, "sha1")) for name, data in self.repos[repo].items())
        return _digest(repr(tree).encode(), "sha1")

    def describe(self, repo: str) -> bytes:
        siblings = []
        for name, data in self.repos[repo].items():
            entry = {"rfilename": name, "size": len(data), "blobId": _digest(data, "sha1")}
            if name.endswith(_LARGE):
                entry["lfs"] = {"size": len(data), "sha256": _digest(data, "sha256"), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"id": repo, "sha": self.commit(repo), "siblings": siblings}).encode()

    def fetched(self) -> set[str]:
        """The names of the files whose contents were asked for."""
        return {r.path.split("/", 5)[-1] for r in self.requests if r.method == "GET" and "/resolve/" in r.path}

    def bytes_sent(self, name: str) -> int:
        """Bytes of a large file that went over the wire, over all its answers."""
        return sum(r.sent for r in self.requests if r.path == f"/cdn/{name}")

    def spans(self, name: str) -> list[str | None]:
        """The Range of every question for a large file."""
        return [r.span for r in self.requests if r.path == f"/cdn/{name}" and r.method == "GET"]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the context ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_to(server: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have huggingface_hub use the stand-in and an empty cache below `folder`, as its environment variables would."""
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    return folder / "hub"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        headers = self.headers
        asked = (headers.get(key) for key in ("Range", "Authorization", "Accept-Encoding"))
        self.request_seen = Request(self.command, path, headers["Host"], *asked)
        self.hub.requests.append(self.request_seen)
        if self.hub.down:
            self.close_connection = True
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        elif path.startswith("/cdn/"):
            self._large(path.removeprefix("/cdn/"))
        elif "/resolve/" in path and self.hub.file_status != 200:
            self._send(self.hub.file_status, b"")
        elif "/resolve/" in path:
            self._file(path)
        else:
            self._send(404, b"{}")  # huggingface_hub asks for things of its own

    def _describe(self, repo: str) -> None:
        if self.hub.status != 200:
            self._send(self.hub.status, b"{}", **({"X-Error-Code": self.hub.code} if self.hub.code else {}))
        elif self.hub.answer is not None:
            self._send(200, self.hub.answer)
        elif repo not in self.hub.repos:
            self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        else:
            self._send(200, self.hub.describe(repo))

    def _file(self, path: str) -> None:
        owner, model, _, commit, name = path.strip("/").split("/", 4)
        repo = f"{owner}/{model}"
        data = self.hub.repos[repo][name]
        assert commit == self.hub.commit(repo)
        tag = _digest(data, "sha256" if name.endswith(_LARGE) else "sha1")
        about = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        if name.endswith(_LARGE):
            about |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(data))}
            cdn = self.hub.endpoint.replace("127.0.0.1", "localhost")
            self._send(302, b"", Location=f"{cdn}/cdn/{name}", **about)
        else:
            self._send(200, data, **about)

    def _large(self, name: str) -> None:
        data = next(files[name] for files in self.hub.repos.values() if name in files)
        start = 0
        if self.request_seen.span and not self.hub.range_ignored:
            start = int(self.request_seen.span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cuts = self.hub.cuts.get(name)
        end = start + cuts.pop(0) if cuts else len(data)
        for i in range(start, end, _CHUNK):
            time.sleep(self.hub.pause)
            part = data[i : min(i + _CHUNK, end)]
            try:
                self.wfile.write(part)
            except OSError:  # the other side has gone
                break
            self.request_seen.sent += len(part)
        self.close_connection = end < len(data)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.request_seen.sent += len(body)
