"""The Hugging Face hub as far as downloads need it, and the host to which it sends them for large
files: two HTTP servers on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 1000  # bytes, from which files are stored with LFS, on the other host


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class FakeHub:
    """`repositories` has files by name; `private` names need `token`, `gated` ones a licence too.
    `asked` has method, path, Authorization and Range of each request, `large` those of the other
    host. `damage` is added to what is sent there, which breaks off at `breaks_at`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.token = "hf_a-token-of-ours"
        self.commit = "a" * 40
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        self.large: list[tuple[str, str, str | None, str | None]] = []
        self.damage = b""
        self.breaks_at: int | None = None
        self.busy = 0  # so many requests are refused first
        self.hub = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_at_hub))
        self.storage = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(_at_storage))
        self.url = f"http://127.0.0.1:{self.hub.server_port}"

    def _handler(self, answer: object) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(hub, self)  # type: ignore[operator]

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _heard(request: BaseHTTPRequestHandler) -> tuple[str, str, str | None, str | None]:
    headers = request.headers
    return request.command, request.path, headers["Authorization"], headers["Range"]


def _at_hub(hub: FakeHub, request: BaseHTTPRequestHandler) -> None:
    hub.asked.append(_heard(request))
    owner, name, _, revision, file = request.path[1:].split("/", 4)
    repository = f"{owner}/{name}"
    files = hub.repositories.get(repository)
    allowed = request.headers["Authorization"] == f"Bearer {hub.token}"
    if hub.busy:
        hub.busy -= 1
        _refuse(request, 429, "")
    elif files is None or (repository in hub.private and not allowed):
        _refuse(request, 401, "RepoNotFound")
    elif repository in hub.gated:
        _refuse(request, 403, "GatedRepo")
    elif revision not in ("main", hub.commit):
        _refuse(request, 404, "RevisionNotFound")
    elif file not in files:
        _refuse(request, 404, "EntryNotFound")
    elif len(files[file]) >= LARGE:
        sha256 = hashlib.sha256(files[file]).hexdigest()
        request.send_response(302)
        request.send_header("X-Repo-Commit", hub.commit)
        request.send_header("X-Linked-Etag", f'"{sha256}"')
        request.send_header("X-Linked-Size", str(len(files[file])))
        at = f"http://127.0.0.1:{hub.storage.server_port}/{repository}/{file}?signature=secret"
        request.send_header("Location", at)
        request.send_header("Content-Length", "0")
        request.end_headers()
    else:
        request.send_response(200)
        request.send_header("X-Repo-Commit", hub.commit)
        request.send_header("ETag", f'"{git_sha1(files[file])}"')
        request.send_header("Content-Length", str(len(files[file])))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(files[file])


def _at_storage(hub: FakeHub, request: BaseHTTPRequestHandler) -> None:
    hub.large.append(_heard(request))
    owner, name, file = request.path.partition("?")[0][1:].split("/", 2)
    content = hub.repositories[f"{owner}/{name}"][file] + hub.damage
    asked = request.headers["Range"]
    start = int(asked[6:-1]) if asked else 0
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    request.wfile.write(content[start : hub.breaks_at])


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with ExitStack() as stack:
        for server in (hub.hub, hub.storage):
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.enter_context(server)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield hub
