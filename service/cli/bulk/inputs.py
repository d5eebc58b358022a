"""Encoded images from files, folders, archives and tables, always in the same order."""

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

from models import files
from models.data.members import BROKEN_ARCHIVE, damage, is_hidden, is_image
from service.cli.bulk.rows import pyarrow
from service.errors import ConfigError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LISTS = (".txt", ".lst")
BLOCK = 512  # The size of a tar archive is a multiple of this.
COLUMN = "image"
# Rows of a parquet file that are in memory at a time; its row groups may be larger.
ROWS = 64


class Encoded(NamedTuple):
    """`data` may be a file that has not been read yet; it is empty if there is an `error`."""

    name: str
    data: bytes | Path
    error: str = ""


# Returns one image, if called before the next entry is requested; skipping an entry is cheap.
Entry = Callable[[], Encoded]
Source = Callable[[Path], Iterator[Entry]]


@dataclass(frozen=True)
class Shard:
    """The images whose positions are `index` modulo `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


WHOLE = Shard(0, 1)


def entries(paths: Sequence[Path]) -> Iterator[Entry]:
    """Every image in `paths`: images, folders, tar archives, parquet files and lists of paths.

    Raises:
        ValueError: an archive or a parquet file is truncated or invalid.
        OSError: a file or folder cannot be read.
    """
    for path in paths:
        yield from _source(path)(path)


def check(paths: Sequence[Path]) -> None:
    """Checks `paths` as far as possible without reading them.

    Raises:
        ConfigError: a parquet file without pyarrow, or without images.
        OSError: a file does not exist.
    """
    for path in paths:
        if _source(path) is _parquet:
            with _undamaged(path):
                _images(pyarrow(str(path)).parquet.ParquetFile(path), path)


def count(paths: Sequence[Path]) -> int | None:
    """The number of entries; None if finding out requires reading everything."""
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
    """The entries of a shard after the first `done`, of which the last must be called `last`.

    Raises:
        ConfigError: it is not; the images have changed.
        ValueError, OSError: as `entries`.
    """
    if last is None:
        return islice(entries(paths), shard.index + done * shard.count, None, shard.count)
    rest = islice(entries(paths), shard.index + (done - 1) * shard.count, None, shard.count)
    previous = next(rest, None)
    name = previous().name if previous else "missing"
    if name != last:
        raise ConfigError(
            f"the images changed since the run began: number {done} was {last} and is {name}; "
            "use --overwrite to start again"
        )
    return rest


def _source(path: Path) -> Source:
    if path.is_dir():
        return _folder
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    kinds: dict[tuple[str, ...], Source] = {TARS: _tar, LISTS: _list, (".parquet",): _parquet}
    name = path.name.lower()
    source = next((kinds[suffixes] for suffixes in kinds if name.endswith(suffixes)), _file)
    if source is not _file:
        files.check_regular(path)
    return source


def printable(name: str | Path) -> str:
    """A file's name as valid UTF-8, which a file system does not guarantee."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _of_file(path: Path) -> Encoded:
    return Encoded(printable(path), path)


def _file(path: Path) -> Iterator[Entry]:
    yield partial(_of_file, path)


def _folder(path: Path) -> Iterator[Entry]:
    """One folder's names at a time, sorted; links to folders are not followed."""
    with os.scandir(path) as scan:
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    for name, is_folder in names:
        if is_hidden(name):
            continue
        if is_folder:
            yield from _folder(path / name)
        elif is_image(name):
            yield partial(_of_file, path / name)


def _list(path: Path) -> Iterator[Entry]:
    # To the file system, names are bytes.
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if name := line.strip():
                yield partial(_of_file, Path(name))


def _tar(path: Path) -> Iterator[Entry]:
    with _undamaged(path), tarfile.open(path) as archive:
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # It would retain all.
            if not member.isdir() and is_image(member.name) and not is_hidden(member.name):
                yield partial(_member, archive, member, path)
        position = archive.fileobj.tell() if archive.fileobj else 0
        if position % BLOCK:
            raise tarfile.ReadError("unexpected end of data")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Encoded:
    name = printable(path / member.name)
    if not member.isreg():
        return Encoded(name, b"", "unsupported link in a tar archive")
    with _undamaged(path):
        file = archive.extractfile(member)
        return Encoded(name, file.read() if file else b"")


def _parquet(path: Path) -> Iterator[Entry]:
    with _undamaged(path), pyarrow(str(path)).parquet.ParquetFile(path) as file:
        column = _images(file, path)
        before = 0
        for index in range(file.num_row_groups):
            group = _Group(file, index, column, path, before)
            rows = file.metadata.row_group(index).num_rows
            yield from (partial(group.row, row) for row in range(rows))
            before += rows


class _Group:
    """A row group, read when its first row is requested; rows must be requested in order."""

    def __init__(self, file: Any, index: int, column: str, path: Path, before: int) -> None:
        self._path, self._before = path, before
        # Threads do not help sequential reading.
        self._batches = file.iter_batches(ROWS, [index], [column], use_threads=False)
        self._begin = 0
        self._values: Any = ()

    def row(self, row: int) -> Encoded:
        with _undamaged(self._path):
            while row >= self._begin + len(self._values):
                self._begin += len(self._values)
                self._values = next(self._batches).column(0)
            value: Any = self._values[row - self._begin].as_py()
        name, data = None, value
        if isinstance(value, dict):
            name, data = value.get("path"), value["bytes"]
        name = printable(self._path / (name or str(self._before + row)))
        return Encoded(name, data or b"", "" if data else "the row has no image bytes")


def _images(file: Any, path: Path) -> str:
    """The column of images: bytes, or a struct with `bytes`, as in Hugging Face data sets."""
    kinds = {field.name: field.type for field in file.schema_arrow}
    kind = str(kinds.get(COLUMN, ""))
    if not kind.startswith(("binary", "large_binary")) and not (
        kind.startswith("struct<") and "bytes: " in kind
    ):
        raise ConfigError(
            f"{path}: needs a column {COLUMN!r} of encoded images, as bytes or a struct with "
            f"bytes; it has {', '.join(kinds) or 'none'}"
        )
    return COLUMN


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    # pyarrow's errors are ValueErrors or OSErrors.
    except (*BROKEN_ARCHIVE, zlib.error, ValueError, StopIteration) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ConfigError(f"{path}: damaged or truncated ({damage(error)})") from None
