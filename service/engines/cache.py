"""Files worth keeping between starts; no start fails for want of them, or for a damaged one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from service.engines import faults

T = TypeVar("T")
log = logging.getLogger(__name__)


@cache
def folder(path: Path) -> Path | None:
    """`path`, made if need be; None where nothing can be written, which is logged once."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        log.warning("nothing is kept between starts: cache_dir %s: %s", path, error.strerror)
        return None
    if not writable:
        log.warning("nothing is kept between starts: cache_dir %s is read-only", path)
    return path if writable else None


def keep(path: Path | None, write: Callable[[Path], object]) -> None:
    """Has `write` make the file, whole or not at all: another process may be reading there."""
    if path is None:
        return
    # Pods that share a volume have the same numbers for their processes.
    part = path.with_name(f"{os.uname().nodename}-{os.getpid()}-{path.name}")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # Else a power failure could leave its name without its bytes.
        part.replace(path)
    except (OSError, RuntimeError) as error:  # The latter from libraries that write themselves.
        log.warning("%s is not kept: %s", path, getattr(error, "strerror", None) or error)
        with suppress(OSError):
            part.unlink(missing_ok=True)


def kept(path: Path | None, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of the file; None if there is none, or it is damaged and now removed."""
    if path is None or not path.exists():
        return None
    try:
        return read(path)
    # Whatever the library that reads it says of a damaged file.
    except Exception as error:
        if faults.out_of_memory(error) or faults.poisons(error):
            raise
        log.warning("%s is damaged and is made again: %s", path, faults.in_one_line(error))
        with suppress(OSError):
            path.unlink()
    return None
