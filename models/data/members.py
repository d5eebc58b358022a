"""The image files in a folder, a tar archive or a zip archive, without those of operating systems.

Hidden files and folders are left out: those that begin with a dot, such as AppleDouble's `._x.jpg`
and `.ipynb_checkpoints`, and those of macOS, Windows and Synology.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from models import image_files
from models.data import stores

BROKEN_ARCHIVE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
HIDDEN = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"})
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# Suffixes of tables that a folder of images may have, or its images may be in.
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow")
# Suffixes of images in formats that are not read.
UNREAD = (
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jxl", ".tga", ".ico", ".svg", ".psd"),
    *(".dng", ".cr2", ".nef", ".arw", ".dcm", ".npy"),
)
# Bits of a zip member's flags.
ENCRYPTED, UTF_8 = 0x1, 0x800


class Member(NamedTuple):
    """An image: its name below the set's path, how to read it, and where its bytes are in the
    archive, as `stores.Slices` or `stores.Zipped` want it; () in a folder."""

    name: str
    read: Callable[[], bytes]
    place: tuple[int, ...] = ()


class Found(NamedTuple):
    """What is below a folder: names of images and tables, each sorted, and of folders without
    either. `unread`: how many files have each suffix of `UNREAD`."""

    images: list[str]
    tables: list[str]
    empty: list[str]
    unread: Counter[str]


def damage(error: Exception) -> str:
    """Why a damaged file cannot be read, in one line; at its end, some readers say nothing."""
    return str(error).strip().partition("\n")[0].rstrip(" :") or "cut off"


def is_hidden(name: str) -> bool:
    """Whether a path in a set has a part that people do not see."""
    parts = name.split("/")
    return any((p.startswith(".") and p not in (".", "..")) or p in HIDDEN for p in parts)


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image, and the file is not hidden."""
    # Called a million times; pathlib would take seconds.
    base = name.rpartition("/")[2]
    suffix = os.path.splitext(base)[1].lower()  # noqa: PTH122
    return suffix in image_files.SUFFIXES and not base.startswith(".")


def is_zip(path: Path) -> bool:
    """Whether a file begins like a zip archive."""
    try:
        with path.open("rb") as file:
            return file.read(4) in ZIP
    except OSError:
        return False


def is_compressed(path: Path) -> bool:
    """Whether a tar archive is compressed as a whole, and can only be read in order."""
    try:
        with tarfile.open(path, "r:"):
            return False
    except tarfile.TarError:
        return True


def in_folder(path: Path) -> Found:
    """What is below a folder; follows links to folders, but not in circles."""
    images: list[str] = []
    tables: list[str] = []
    unread: Counter[str] = Counter()
    leaves: set[str] = set()
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(path, followlinks=True):
        status = Path(folder).stat()
        inner[:] = [name for name in inner if not is_hidden(name)]
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below = Path(folder).relative_to(path).as_posix()
        prefix = "" if below == "." else f"{below}/"
        before = len(images) + len(tables)
        images += [prefix + file for file in files if is_image(file)]
        tables += [
            prefix + file
            for file in files
            if file.lower().endswith(TABLES) and not file.startswith(".")
        ]
        unread.update(
            PurePosixPath(file).suffix.lower()
            for file in files
            if file.lower().endswith(UNREAD) and not file.startswith(".")
        )
        if prefix and not inner and len(images) + len(tables) == before:
            leaves.add(below)
    ordered = [sorted(names, key=lambda name: name.split("/")) for names in (images, tables)]
    return Found(ordered[0], ordered[1], sorted(leaves), unread)


def in_archive(path: Path) -> Iterator[Member]:
    """The images of an archive in its order.

    Raises:
        ValueError: it is no whole archive, or one that is not read; the message says why.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    yield from _in_zip(path) if is_zip(path) else _in_tar(path)


def _in_zip(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*BROKEN_ARCHIVE, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a whole zip archive ({damage(error)})") from None
    for entry in entries:
        name = _zipped_name(entry)
        if not is_image(name) or is_hidden(name) or entry.is_dir():
            continue
        if entry.flag_bits & ENCRYPTED:
            raise ValueError(f"{path}: {name} is encrypted; unpack the archive with its password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{path}: {name} is compressed by method {entry.compress_type}; "
                "stored and deflated files are read, so pack it again"
            )
        if entry.file_size > stores.LARGEST:
            size = f"{entry.file_size / 1e6:.0f} MB"
            raise ValueError(f"{path}: {name} would unpack to {size}, too much for an image")
        place = (entry.header_offset, entry.compress_size, entry.file_size, entry.CRC)
        yield Member(name, partial(stores.unzipped, path, place), place)


def _zipped_name(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    if not entry.flag_bits & UTF_8:
        # macOS writes UTF-8 without saying so, which zipfile takes for the code page of DOS.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")  # As some programs of Windows write it.


def _in_tar(path: Path) -> Iterator[Member]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.lower().endswith(".tar"):
                    yield from _images(archive, [member], "", 0)
                elif not is_hidden(member.name) and (file := archive.extractfile(member)):
                    above = f"{PurePosixPath(member.name).stem}/"
                    with tarfile.open(fileobj=file) as images:
                        yield from _images(images, images, above, member.offset_data)
    except LookupError as error:  # A link leads nowhere.
        raise ValueError(f"{path}: {error.args[0]}") from None
    except BROKEN_ARCHIVE as error:
        raise ValueError(
            f"{path}: neither a folder nor a whole tar or zip archive ({damage(error)})"
        ) from None


def _images(
    archive: tarfile.TarFile,
    members: Sequence[tarfile.TarInfo] | tarfile.TarFile,
    above: str,
    at: int,
) -> Iterator[Member]:
    for member in members:
        if not is_image(member.name) or is_hidden(member.name) or member.isdir():
            continue
        # A link has no bytes; its target does.
        target = member if member.isreg() else _target(archive, member)
        read = partial(_content, archive, target)
        yield Member(above + member.name, read, (at + target.offset_data, target.size))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = archive.extractfile(member)
    return file.read() if file else b""


def _target(archive: tarfile.TarFile, link: tarfile.TarInfo) -> tarfile.TarInfo:
    name = link.linkname
    if link.issym():
        name = os.path.normpath(PurePosixPath(link.name).parent / link.linkname)
    try:
        target = archive.getmember(name)
        return target if target.isreg() else _target(archive, target)
    except (LookupError, RecursionError):
        raise LookupError(
            f"{link.name} is a link to {link.linkname}, which is no file in the archive; pack the "
            "files themselves, as tar --dereference does"
        ) from None
