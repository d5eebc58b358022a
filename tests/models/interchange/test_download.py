from __future__ import annotations

import errno
import hashlib
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.interchange import connection, download
from models.interchange.connection import DownloadError
from models.interchange.download import fetch
from tests.support.unruly import answer, is_silent, unruly

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]


class Server(ThreadingHTTPServer):
    """Serves `CONTENT` as any `.pth`; each request's range is kept in `ranges`."""

    daemon_threads = True
    heeds_ranges = True
    breaks_at: int | None = None
    # The first so many requests get this status.
    refusals, status = 0, 503

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights-{SHA256}.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.ranges.append(asked)
        if server.refusals:
            server.refusals -= 1
            self.send_error(server.status)
            return
        start = int(asked[6:-1]) if asked and server.heeds_ranges else 0
        if not self.path.endswith(".pth"):
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.breaks_at])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    path = fetch(server.url, folder, SHA256)
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, folder, SHA256) == path
    assert server.ranges == [None]
    assert list(folder.iterdir()) == [path]
    path.write_bytes(b"damaged since")
    assert fetch(server.url, folder, SHA256).read_bytes() == CONTENT


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)


@pytest.mark.parametrize("heeds_ranges", [True, False])
def test_a_broken_download_is_continued(server: Server, tmp_path: Path, heeds_ranges: bool) -> None:
    server.breaks_at = 100_000
    with pytest.raises(DownloadError, match="ended early; start again to continue"):
        fetch(server.url, tmp_path, SHA256)
    assert not list(tmp_path.glob("*.pth"))
    assert server.ranges == [None, *["bytes=100000-"] * (download.ATTEMPTS - 1)]
    server.breaks_at, server.heeds_ranges = None, heeds_ranges
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=100000-"


def test_a_download_goes_on_by_itself_after_a_break(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.breaks_at = 100_000
    monkeypatch.setattr("time.sleep", lambda _: setattr(server, "breaks_at", None))
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_server_that_stalls_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stalls(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        is_silent(connection)

    monkeypatch.setattr(connection, "TIMEOUT_S", 0.3)
    sha256 = hashlib.sha256(b"abcd").hexdigest()
    with unruly(stalls, answer(200, b"abcd")) as stalling:
        assert fetch(f"{stalling.url}/x.pth", tmp_path, sha256).read_bytes() == b"abcd"
    with (
        unruly(stalls) as stalling,
        pytest.raises(DownloadError, match=r"broke off \(timed out\); start again to continue"),
    ):
        fetch(f"{stalling.url}/y.pth", tmp_path, sha256)


@pytest.mark.parametrize(("status", "asked"), [(503, 3), (429, 3), (403, 1), (410, 1)])
def test_a_status_that_may_pass_is_asked_again(
    server: Server, tmp_path: Path, status: int, asked: int
) -> None:
    server.refusals, server.status = 2, status
    if asked > 1:
        assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    else:
        with pytest.raises(DownloadError, match=str(status)):
            fetch(server.url, tmp_path, SHA256)
    assert len(server.ranges) == asked


def test_what_does_not_fit_on_the_disk_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"1\.0 MB are missing and 0\.0 MB are free") as caught:
        fetch(server.url, tmp_path, SHA256)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_whole_download_that_was_not_yet_named_is_used(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"weights-{SHA256}.pth.part"
    part.write_bytes(CONTENT)
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert not part.exists()


def test_another_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=rf"\A[^\n]+begins with {SHA256}, not with 00000000"):
        fetch(server.url, tmp_path, "00000000")
    assert not list(tmp_path.iterdir())
    # Nor does what another server began.
    (tmp_path / f"weights-{SHA256}.pth.part").write_bytes(b"something else")
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT


def test_several_at_once_download_it_once(server: Server, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fetch(server.url, tmp_path, SHA256).read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert server.ranges == [None]


def test_what_cannot_be_had_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DownloadError, match=r"\A\S+nothing: 404 [^\n]+\Z"):
        fetch(server.url.rpartition("/")[0] + "/nothing", tmp_path, SHA256)
    server.server_close()
    monkeypatch.setattr(connection, "TIMEOUT_S", 2)
    with pytest.raises(DownloadError, match=r"\A[^\n]+cannot be downloaded \([^\n]+\)\Z"):
        fetch(server.url, tmp_path / "other", SHA256)
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        fetch("http://nowhere.invalid/x.pth", tmp_path, SHA256)
