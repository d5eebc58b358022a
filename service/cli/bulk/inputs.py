"""Encoded images from wherever they lie, one after another, in an order that stays the same."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from models.data.listing import BROKEN_ARCHIVE, is_image
from service.cli.bulk.rows import pyarrow
from service.errors import ConfigError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LISTS = (".txt", ".lst")
BLOCK = 512  # Bytes that a tar archive is a multiple of.
COLUMN = "image"
# Rows of a parquet file that are in memory at a time: its row groups may be larger than that.
ROWS = 64


class Encoded(NamedTuple):
    """`data` may be a file that is yet to be read; with `error` there is none."""

    name: str
    data: bytes | Path
    error: str = ""


# Gives one image, if it is called before the next entry is asked for; to pass over it costs little.
Entry = Callable[[], Encoded]
Source = Callable[[Path], Iterator[Entry]]


@dataclass(frozen=True)
class Shard:
    """The images whose positions, divided by `count`, leave `index`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


WHOLE = Shard(0, 1)


def entries(paths: Sequence[Path]) -> Iterator[Entry]:
    """Every image in `paths`: images, folders, tar archives, parquet files and lists of paths.

    Raises:
        ValueError: an archive or a parquet file ends early, or is none.
        OSError: a file or folder cannot be read.
    """
    for path in paths:
        yield from _source(path)(path)


def check(paths: Sequence[Path]) -> None:
    """Raises what is wrong with `paths` that can be told before reading them.

    Raises:
        ConfigError: a parquet file without pyarrow, or without images.
        OSError: there is no such file.
    """
    for path in paths:
        if _source(path) is _parquet:
            with _whole(path):
                _images(pyarrow(str(path)).parquet.ParquetFile(path), path)


def count(paths: Sequence[Path]) -> int | None:
    """How many entries there are; None where only reading it all could tell."""
    total = 0
    for path in paths:
        source = _source(path)
        if source is _parquet:
            total += pyarrow(str(path)).parquet.read_metadata(path).num_rows
        elif source is _tar and not path.name.lower().endswith(".tar"):
            return None
        else:
            total += sum(1 for _ in source(path))
    return total


def remaining(
    paths: Sequence[Path], shard: Shard = WHOLE, done: int = 0, last: str | None = None
) -> Iterator[Entry]:
    """The entries of a shard without the first `done`, the last of which is called `last`.

    Raises:
        ConfigError: it is called otherwise; the images are not those that they were.
        ValueError, OSError: as `entries`.
    """
    found = entries(paths)
    if last is None:
        return islice(found, shard.index + done * shard.count, None, shard.count)
    rest = islice(found, shard.index + (done - 1) * shard.count, None, shard.count)
    before = next(rest, None)
    name = before().name if before else "nothing"
    if name != last:
        raise ConfigError(
            f"the images changed since the run began: number {done} was {last} and is {name}; "
            "--overwrite begins anew"
        )
    return rest


def _source(path: Path) -> Source:
    if path.is_dir():
        return _folder
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    kinds: dict[tuple[str, ...], Source] = {TARS: _tar, LISTS: _list, (".parquet",): _parquet}
    name = path.name.lower()
    return next((kinds[suffixes] for suffixes in kinds if name.endswith(suffixes)), _file)


def printable(name: str | Path) -> str:
    """A file's name as UTF-8, which a name in a file system need not be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _of_file(path: Path) -> Encoded:
    return Encoded(printable(path), path)


def _file(path: Path) -> Iterator[Entry]:
    yield partial(_of_file, path)


def _folder(path: Path) -> Iterator[Entry]:
    """One folder's names at a time, sorted; links to folders are not followed."""
    with os.scandir(path) as scan:
        found = sorted((each.name, each.is_dir(follow_symlinks=False)) for each in scan)
    for name, is_folder in found:
        if is_folder:
            yield from _folder(path / name)
        elif is_image(name):
            yield partial(_of_file, path / name)


def _list(path: Path) -> Iterator[Entry]:
    # Names are bytes to the file system, and these are what it listed.
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if name := line.strip():
                yield partial(_of_file, Path(name))


def _tar(path: Path) -> Iterator[Entry]:
    with _whole(path), tarfile.open(path) as archive:
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # It would keep them all.
            if not member.isdir() and is_image(member.name):
                yield partial(_member, archive, member, path)
        position = archive.fileobj.tell() if archive.fileobj else 0
        if position % BLOCK:
            raise tarfile.ReadError("unexpected end of data")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Encoded:
    name = printable(path / member.name)
    if not member.isreg():
        return Encoded(name, b"", "a link; tar archives are read from front to back")
    with _whole(path):
        file = archive.extractfile(member)
        return Encoded(name, file.read() if file else b"")


def _parquet(path: Path) -> Iterator[Entry]:
    with _whole(path), pyarrow(str(path)).parquet.ParquetFile(path) as file:
        column = _images(file, path)
        before = 0
        for index in range(file.num_row_groups):
            group = _Group(file, index, column, path, before)
            rows = file.metadata.row_group(index).num_rows
            yield from (partial(group.row, row) for row in range(rows))
            before += rows


class _Group:
    """A row group, which is read once a row of it is asked for; rows are, as they rise."""

    def __init__(self, file: Any, index: int, column: str, path: Path, before: int) -> None:
        self._path, self._before = path, before
        # No thread of its own for what is read one piece after another.
        self._batches = file.iter_batches(ROWS, [index], [column], use_threads=False)
        self._begin = 0
        self._values: Any = ()

    def row(self, row: int) -> Encoded:
        with _whole(self._path):
            while row >= self._begin + len(self._values):
                self._begin += len(self._values)
                self._values = next(self._batches).column(0)
            value: Any = self._values[row - self._begin].as_py()
        name, data = None, value
        if isinstance(value, dict):
            name, data = value.get("path"), value["bytes"]
        name = printable(self._path / (name or str(self._before + row)))
        return Encoded(name, data or b"", "" if data else "the row has no bytes")


def _images(file: Any, path: Path) -> str:
    """The column of images: bytes, or a struct with `bytes` as Hugging Face's data sets have."""
    kinds = {field.name: field.type for field in file.schema_arrow}
    found = str(kinds.get(COLUMN, "")) or "nothing"
    if not found.startswith(("binary", "large_binary", "struct<")) or (
        found.startswith("struct<") and "bytes: " not in found
    ):
        raise ConfigError(
            f"{path}: needs a column {COLUMN!r} of encoded images, bytes or a struct with bytes; "
            f"it has {', '.join(kinds) or 'none'}"
        )
    return COLUMN


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    # pyarrow's own errors are ValueErrors or OSErrors.
    except (*BROKEN_ARCHIVE, zlib.error, ValueError, StopIteration) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: is damaged or truncated ({reason})") from None
