"""Files: what identifies their content, and how they are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems that cannot synchronise a folder say, and folders that only take new files.
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files in a folder; in hex.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its name when the context ends without an error.

    Readers see the old file or the new one, and so does whoever looks after a power failure. The
    umask decides the permissions, whatever the library that writes the file does.

    Raises:
        OSError: the file cannot be written; nothing of it is left.
    """
    # Unique on hosts that share a volume, and the same for a thread, so that litter is replaced.
    writer = f"{os.uname().nodename}-{threading.get_native_id()}"
    temporary = path.with_name(f"{path.name}.{writer}.part")
    try:
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Gives a finished file its name in the same file system; both survive a power failure.

    Raises:
        OSError: it cannot be moved, or not be synchronised.
    """
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(target)
    try:
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
