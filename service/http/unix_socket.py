"""Unix sockets: the file that clients connect to, from its making to its removal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.config.addresses import UNIX
from service.errors import ConfigError

LOCK_TRIES, LOCK_SECONDS = 100, 0.01


class SocketFile(NamedTuple):
    """The file of a unix socket. While the socket is open, no other file has this inode number."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Removes the file, unless it is another's by now: clients then find nothing, while those
        who are connected or waiting are not affected."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == (self.device, self.inode):
                Path(self.path).unlink()


def bind(path: str, mode: int, backlog: int) -> tuple[socket.socket, SocketFile]:
    """Listens at `path`, in place of the socket of a service that has died.

    It listens at once, since a socket that does not cannot be told from a dead one. `mode`: the
    file's permissions.

    Raises:
        ConfigError: the path is taken or cannot be used; nothing was changed.
    """
    # Whatever becomes of the working directory.
    absolute = Path(path).absolute()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone(absolute.parent):
            _remove_stale(path)
            # Not changed afterwards, which would leave a moment for others to connect.
            before = os.umask(0o777 & ~mode)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            listener.listen(backlog)
            made = os.lstat(path)
    except OSError as error:
        listener.close()
        raise _refusal(path, str(error.strerror)) from None
    except ConfigError:
        listener.close()
        raise
    return listener, SocketFile(str(absolute), made.st_dev, made.st_ino)


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody listens at.

    Raises:
        ConfigError: somebody does, or it is no socket.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise _refusal(path, "there is something that is not a socket; remove it yourself")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        code = asking.connect_ex(path)
    if code == errno.ECONNREFUSED:
        Path(path).unlink()
    elif code in (0, errno.EAGAIN, errno.EINPROGRESS):  # Not 0: its backlog is full.
        raise _refusal(path, "another process listens there; stop it, or choose another path")
    else:
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other starts away, of which two could both find the same dead socket.

    The lock is on the folder, so that no file of it is left. Others may lock folders too, for as
    long as they like, hence the limit.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # A folder may be usable and not readable.
        yield
        return
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(LOCK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _refusal(path: str, why: str) -> ConfigError:
    return ConfigError(f"host: cannot listen on {UNIX}{path}: {why}")
