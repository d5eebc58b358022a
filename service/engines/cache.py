"""Files that are cached between starts; none of them is needed, and a corrupt one is replaced."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from models import files
from service.engines import faults

T = TypeVar("T")
log = logging.getLogger(__name__)


@cache
def folder(path: Path) -> Path | None:
    """`path`, created if it does not exist; None if it is not writable, which is logged once."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        log.warning("caching is off: cache_dir %s: %s", path, error.strerror)
        return None
    if not writable:
        log.warning("caching is off: cache_dir %s is read-only", path)
    return path if writable else None


def store(path: Path | None, write: Callable[[Path], object]) -> None:
    """Has `write` write the file, whole or not at all: another process may read it now."""
    if path is None:
        return
    try:
        with files.atomic(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # The latter is from libraries.
        log.warning("cannot cache %s: %s", path, getattr(error, "strerror", None) or error)


def load(path: Path | None, read: Callable[[Path], T]) -> T | None:
    """What `read` returns for the file; None if there is none, or it is corrupt and now removed."""
    if path is None or not path.exists():
        return None
    try:
        return read(path)
    # Libraries report a corrupt file in many ways.
    except Exception as error:
        if faults.out_of_memory(error) or faults.poisons(error) or faults.not_executable(error):
            raise
        log.warning("%s is corrupt and will be replaced: %s", path, faults.in_one_line(error))
        with suppress(OSError):
            path.unlink()
    return None
