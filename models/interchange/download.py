"""Downloads that are cached, checked and resumed.

`torch.hub.download_url_to_file` neither resumes nor locks.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import io
import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from tqdm import tqdm

from models import files
from models.interchange import connection
from models.interchange.connection import BROKEN, DownloadError, StatusError, Unreachable

T = TypeVar("T")
log = logging.getLogger(__name__)
CHUNK = 1 << 20
# A download that breaks off goes on where it was, so many times, after these seconds and twice as
# many each time.
ATTEMPTS, PAUSE_S = 5, 1.0
# Statuses that may pass.
PASSING = {429, 500, 502, 503, 504}
GIT = "git:"


class BrokenOff(DownloadError):
    """The connection ended, or the server went silent, before the file was complete."""


def fetch(url: str, folder: Path, checksum: str, *, name: str = "", token: str = "") -> Path:
    """The file at `url`, downloaded to `folder` unless it is there.

    `checksum` is the beginning of its SHA-256, or "git:" and the SHA-1 of the git blob; empty if
    nobody tells one. An interrupted download resumes; the file appears only when it is complete and
    checked. Several processes may fetch the same file at once. `token`: see `connection.get`.

    Raises:
        DownloadError: there is no network or no such file, or the checksum differs.
        OSError: `folder` cannot be written, or has too little space.
    """
    path = folder / (name or url.rpartition("/")[2])
    if checksum and matches(path, checksum):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Another process may have finished and moved this very file meanwhile.
        if checksum and matches(path, checksum):
            return path
        resumed = file.seek(0, io.SEEK_END) > 0
        if resumed and not checksum:  # Of which version it is the beginning, nobody knows.
            file.truncate(0)
        try:
            patiently(lambda: _continue(url, file, token))
            if resumed and not matches(part, checksum):  # It began as another file.
                file.truncate(0)
                patiently(lambda: _continue(url, file, token))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink()
            raise
        if not matches(part, checksum):
            digest = files.sha256(part)
            part.unlink()
            kind, _, expected = checksum.rpartition(":")
            found = "is no longer the published one"
            if not kind:
                found = f"begins with {digest[: len(expected)]}, not with {expected}"
            raise DownloadError(f"{url}: its SHA-256 {found}; nothing was kept")
        files.move(part, path)
    return path


def matches(path: Path, checksum: str) -> bool:
    """Whether there is a file with this checksum; any file, where it is empty."""
    if not path.is_file():
        return False
    if checksum.startswith(GIT):
        return git_sha1(path) == checksum.removeprefix(GIT)
    return not checksum or files.sha256(path).startswith(checksum)


def git_sha1(path: Path) -> str:
    """The SHA-1 in hex by which git names a file's content."""
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def patiently(work: Callable[[], T]) -> T:
    """What `work` returns, which is done again after an error that may pass.

    Raises:
        DownloadError: the last one of `work`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except (BrokenOff, Unreachable, StatusError) as error:
            passing = not isinstance(error, StatusError) or error.status in PASSING
            # Who cannot be reached at all will not be a second later.
            hopeless = isinstance(error, Unreachable) and attempt == 0
            if not passing or hopeless or attempt == ATTEMPTS - 1:
                raise
            log.warning("%s; trying again", error)
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _continue(url: str, file: BinaryIO, token: str) -> None:
    """Appends the rest of the download to `file`, as far as it comes."""
    have = file.seek(0, io.SEEK_END)
    try:
        answer = connection.get(url, {"Range": f"bytes={have}-"} if have else {}, token)
    except StatusError as error:
        if error.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # The file is complete, or too long: the checksum decides.
        raise
    with answer:
        if have and not _continues(answer, have):
            file.truncate(0)
            have = 0
        length = answer.headers.get("Content-Length") or ""
        expected = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        _check_space(file, expected)
        got = _copied(url, answer, file, have, expected)
    file.flush()
    if expected is not None and got < expected:
        raise BrokenOff(f"{url}: the connection ended early; start again to continue")


def _copied(
    url: str, answer: http.client.HTTPResponse, file: BinaryIO, have: int, expected: int | None
) -> int:
    """Copies what arrives, and says how many bytes it was."""
    name = url.rpartition("/")[2]
    total = None if expected is None else have + expected
    log.info("downloading %s%s", name, "" if total is None else f", {total:,} bytes")
    got = 0
    # On a terminal only.
    with tqdm(
        desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=None
    ) as progress:
        while True:
            try:
                chunk = answer.read(CHUNK)
            except BROKEN as error:
                why = str(error) or type(error).__name__
                raise BrokenOff(f"{url}: broke off ({why}); start again to continue") from None
            finally:
                file.flush()
            if not chunk:
                return got
            file.write(chunk)
            got += len(chunk)
            progress.update(len(chunk))


def _check_space(file: BinaryIO, expected: int | None) -> None:
    free = shutil.disk_usage(Path(file.name).parent).free
    if expected is not None and expected > free:
        needs = f"{expected / 1e6:.1f} MB are missing and {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, f"no space: {needs}", str(Path(file.name).parent))


def _continues(answer: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sent the requested range."""
    sent = answer.headers.get("Content-Range", "")
    return answer.status == http.client.PARTIAL_CONTENT and sent.startswith(f"bytes {have}-")
