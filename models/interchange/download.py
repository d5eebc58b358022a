"""Downloads that are cached, checked and resumed.

`torch.hub.download_url_to_file` neither resumes nor locks.
"""

from __future__ import annotations

import fcntl
import http.client
import io
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from models import files

CHUNK = 1 << 20
TIMEOUT_S = 30
BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


class DownloadError(ValueError):
    """A download failed; the message names the URL in one line."""


def fetch(url: str, folder: Path, sha256: str) -> Path:
    """The file at `url`, downloaded to `folder` unless it is there.

    `sha256` is the beginning of its checksum. An interrupted download resumes; the file appears
    only when it is complete and checked. Several processes may fetch the same file at once.

    Raises:
        DownloadError: there is no network or no such file, or the checksum differs.
        OSError: `folder` cannot be written.
    """
    path = folder / url.rpartition("/")[2]
    if path.is_file() and files.sha256(path).startswith(sha256):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # Another process may have finished and moved this very file meanwhile.
        if path.is_file() and files.sha256(path).startswith(sha256):
            return path
        file.seek(0, io.SEEK_END)
        _continue(url, file)
        digest = files.sha256(part)
        if not digest.startswith(sha256):
            part.unlink()
            raise DownloadError(
                f"{url}: its SHA-256 begins with {digest[: len(sha256)]}, not with {sha256}; "
                "nothing was kept"
            )
        files.move(part, path)
    return path


def _continue(url: str, file: BinaryIO) -> None:
    """Appends the rest of the download to `file`."""
    have = file.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "resnet-serve"})  # noqa: S310
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            if have and not _continues(answer, have):
                file.truncate(0)
                have = 0
            expected = answer.headers.get("Content-Length")
            total = have + int(expected) if expected and expected.isdigit() else None
            name = url.rpartition("/")[2]
            got = 0
            # On a terminal only.
            with tqdm(
                desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=None
            ) as progress:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    got += len(chunk)
                    progress.update(len(chunk))
            file.flush()
            if expected is not None and got < int(expected):
                raise DownloadError(f"{url}: the connection ended early; start again to continue")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # The file is complete, or too long: the checksum decides.
        raise DownloadError(f"{url}: {error.code} {error.reason}") from None
    except BROKEN as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{url}: cannot be downloaded ({reason})") from None


def _continues(answer: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sent the requested range."""
    sent = answer.headers.get("Content-Range", "")
    return answer.status == http.client.PARTIAL_CONTENT and sent.startswith(f"bytes {have}-")
