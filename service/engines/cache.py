"""Files worth keeping between starts; a start never fails for want of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

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
    part = path.with_name(f"{os.getpid()}-{path.name}")
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        log.warning("%s is not kept: %s", path, error.strerror or error)
        part.unlink(missing_ok=True)
