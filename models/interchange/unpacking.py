"""Unpacking tar archives that nobody has checked."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import files
from models.bundle import BundleError
from models.interchange.signatures import ARCHIVES, GZIP

# The largest of the ONNX model zoo's archives has 250 MB; networks here have up to 2 GB.
MOST_BYTES = 4 << 30
MOST_FILES = 1_000
CHUNK = 1 << 20


def is_packed(path: Path) -> bool:
    """Whether it is a folder or a tar archive, by its name or its first bytes."""
    return path.is_dir() or is_archive(path)


def is_archive(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.name.lower().endswith(ARCHIVES):
        return True
    try:
        with path.open("rb") as file:
            return file.read(2) == GZIP
    except OSError:
        return False  # Reading it will raise the error.


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the files of a folder, which is it itself, or of an archive, for as long as
    the context lasts.

    Only regular files are unpacked; links and devices are left out.

    Raises:
        BundleError: the archive is damaged, too large, or names a file outside of itself.
        OSError: it cannot be read, or there is no space.
    """
    if path.is_dir():
        yield path
        return
    with files.scratch("archive") as folder:
        try:
            _unpack(path, folder)
        except (tarfile.TarError, EOFError, ValueError, zlib.error) as error:
            reason = str(error) if isinstance(error, BundleError) else "not a whole tar archive"
            raise BundleError(f"{path}: {reason}") from None
        except OSError as error:
            # gzip's own errors have no number.
            if error.errno is None:
                raise BundleError(f"{path}: not a whole tar archive") from None
            raise
        yield folder


def _unpack(path: Path, folder: Path) -> None:
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for count, member in enumerate(archive):
            total += max(member.size, 0)
            if count >= MOST_FILES:
                raise BundleError(f"has more than {MOST_FILES:,} files")
            if total > MOST_BYTES:
                raise BundleError(f"expands to more than {MOST_BYTES >> 30} GiB")
            target = folder / member.name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise BundleError(f"names a file outside of itself ({member.name!r})")
            content = archive.extractfile(member) if member.isreg() else None
            # macOS adds files of its own.
            if content is None or target.name.startswith("."):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
        # Compression's checksum is at the end, which reading a tar archive does not reach.
        rest = archive.fileobj
        while rest and total <= MOST_BYTES and (read := len(rest.read(CHUNK))):
            total += read
