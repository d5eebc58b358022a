"""Files: checksums, the one atomic writer, and temporary folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of file systems that cannot synchronise a folder, and of folders without read permission.
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}


def sha256(path: Path) -> str:
    """SHA-256 in hex of a file, or of the names and digests of all files in a folder.

    Raises:
        OSError: the file cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> bytes:
    """The content of a file, or of a pipe that something writes to, such as a shell's `<(...)`.

    Raises:
        OSError: it cannot be read, is a pipe that nothing writes to, or a device without an end.
    """
    # Else opening a pipe without a writer would wait for one forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        device = stat.S_ISCHR(mode) and not file.isatty()
        content = file.read(1 if device else -1)
    if content and device:  # /dev/null has an end.
        raise OSError(errno.EINVAL, "a device without an end; name a file", str(path))
    if not content and stat.S_ISFIFO(mode):
        raise OSError(errno.EPIPE, "a pipe to which nothing writes; name a file", str(path))
    return content


def read_text(path: Path) -> str:
    """The same as text in UTF-8, with line ends of any system as newlines.

    Raises:
        OSError: see `read`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(read(path)), "utf-8").read()


def check_regular(path: Path) -> None:
    """Refuses what exists but can be read only once, or only when another process writes.

    Raises:
        OSError: it is a pipe, a device or a socket.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file; copy it to one", str(path))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; it replaces `path` when the context ends without an error. If
    `path` is a link to a file, the link stays and that file is replaced.

    Readers see either the old file or the new one, also after a power failure. The umask
    determines the permissions, whatever the writing library does.

    Raises:
        OSError: the file cannot be written; the temporary file is removed.
    """
    path = target_of(path)
    # Unique among threads and hosts, and stable, so that a thread overwrites what it left behind.
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


def target_of(path: Path) -> Path:
    """Where a link leads; any other path as it is."""
    return path.resolve() if path.is_symlink() else path


def move(source: Path, target: Path) -> None:
    """Moves a finished file within a file system; the move survives a power failure.

    Raises:
        OSError: the file cannot be moved or synchronised.
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


@contextmanager
def scratch(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """A new temporary folder, removed afterwards.

    If the process is killed, the next call for a folder of that `kind` removes it. A lock, which
    ends with the process, marks folders in use. `parent`: None: the system's.

    Raises:
        OSError: it cannot be created.
    """
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"resnet-serve-{kind}-"
    _remove_abandoned(parent, prefix)
    folder, lock = _locked_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def shared(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder that the processes of a user share; see `scratch`. The last one removes
    it.

    Raises:
        OSError: it cannot be created.
    """
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"resnet-serve-{kind}-"
    _remove_abandoned(parent, prefix)
    folder = parent / f"{prefix}of-{os.geteuid()}"
    lock = _joined(folder)
    if lock is None:
        with scratch(kind, parent) as own:
            yield own
        return
    try:
        yield folder
    finally:
        with suppress(OSError):  # Others still use it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Waits until no other process is in such a context with this file, which is created."""
    with lock.open("wb") as file:
        with suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _joined(folder: Path) -> int | None:
    """A lock that keeps a shared folder from being removed; None if it is not this user's."""
    while True:
        folder.mkdir(0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            status = os.fstat(lock)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                os.close(lock)
                return None
            with suppress(OSError):  # Some network file systems have no locks.
                fcntl.flock(lock, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(status, folder.stat()):
                return lock
            os.close(lock)  # The last of its users has removed it.


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # Some network file systems have no locks.
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)  # Another process took it for abandoned before it was locked.


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # Its owner lives, or another process has just removed it.
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
