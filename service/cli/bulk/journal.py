"""Rows on disk such that a run that was killed goes on where it was: none lost, none twice.

Rows are appended to a journal, a line of JSON each, in the order of the images. A finished file is
made of a journal under another name and renamed, so that a file that is there is whole; the row to
go on with is told by the files that are there and by the journal's whole lines. Nothing else is
kept but the arguments, which must stay the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from models import files
from service.cli.bulk import rows
from service.cli.bulk.inputs import WHOLE, Shard
from service.cli.bulk.rows import Row
from service.errors import ConfigError

ROWS_PER_FILE = 100_000
ARGUMENTS = "arguments.json"


@dataclass(frozen=True)
class Layout:
    """Where the rows of a run go: to one file, or, with `rows_per_file`, to a folder's parts.

    `state` is the folder of the journal, on the same file system.
    """

    output: Path
    format: str
    rows_per_file: int | None
    shard: Shard

    @property
    def _of(self) -> str:
        return "" if self.shard == WHOLE else f"-{self.shard.index + 1}-of-{self.shard.count}"

    @property
    def state(self) -> Path:
        if self.rows_per_file:
            # Readers of folders of parquet pass over names that begin like this.
            return self.output / f"_resume{self._of}"
        return self.output.with_name(f"{self.output.name}.resume")

    def file(self, index: int) -> Path:
        if self.rows_per_file:
            return self.output / f"part{self._of}-{index:05}{self.format}"
        return self.output

    def parts(self) -> list[Path]:
        """Those parts that are there."""
        # Those of a cluster are called by what is in them.
        name = re.compile(rf"part{self._of}-(\d{{5,}}|ray-\w+){re.escape(self.format)}")
        folder = self.output.iterdir() if self.rows_per_file and self.output.is_dir() else ()
        return [path for path in folder if name.fullmatch(path.name)]


def layout(output: Path, rows_per_file: int | None, shard: Shard) -> Layout:
    """A folder if `output` is one or has no suffix, else a file.

    Raises:
        ConfigError: nothing can be written there.
    """
    if output.is_dir() or not output.suffix:
        rows.pyarrow("--output FOLDER")
        found = Layout(output, ".parquet", rows_per_file or ROWS_PER_FILE, shard)
    elif rows_per_file:
        raise ConfigError("--rows-per-file: only where --output is a folder, which has no suffix")
    else:
        rows.check(output)
        found = Layout(output, output.suffix, None, shard)
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    return found


class Journal:
    """The rows of one run. `done`: how many are kept already; `last`: the name of the last of
    those, if it is known; `complete`: there are no more."""

    def __init__(self, layout: Layout, arguments: dict[str, Any], overwrite: bool) -> None:
        self._layout = layout
        self._arguments = arguments
        self.last: str | None = None
        with self._explained():
            layout.state.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(layout.state, os.O_RDONLY)
            try:
                self._take()
                if overwrite:
                    for path in (*layout.parts(), *layout.state.iterdir()):
                        path.unlink()
                rows_in_all = self._begin()
                self._index = self._parts()
                self._file, self._lines = self._opened()
            except BaseException:
                os.close(self._lock)
                raise
        self.complete = rows_in_all is not None
        self.done = self._index * (layout.rows_per_file or 0) + self._lines
        if rows_in_all is not None:
            self.done = rows_in_all

    def write(self, batch: Iterable[Row]) -> None:
        """Keeps rows, in the order of the images; once this returns a kill does not lose them.

        Raises:
            ConfigError: they cannot be written; what was kept before stays.
        """
        with self._explained():
            for row in batch:
                self._file.write(rows.line(row))
                self._lines += 1
                self.done += 1
                if self._lines == self._layout.rows_per_file:
                    self._seal()
                    self._index += 1
                    self._file, self._lines = self._opened()
            self._file.flush()

    def finish(self) -> None:
        """Makes the last file: there are no more rows.

        Raises:
            ConfigError: as `write`.
        """
        with self._explained():
            if self._layout.rows_per_file is None:
                self._seal()
                shutil.rmtree(self._layout.state)
                return
            if self._lines:
                self._seal()
            self._write_arguments({"rows": self.done})

    def close(self) -> None:
        """Ends the run, which may go on later."""
        with suppress(OSError):  # The disk may be full, which `write` has said.
            self._file.close()
        os.close(self._lock)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self._layout.output}: another run is writing there") from None

    def _begin(self) -> int | None:
        """How many rows there are, if all is done. Refuses what was begun with other arguments."""
        try:
            begun = json.loads((self._layout.state / ARGUMENTS).read_bytes())
        except FileNotFoundError:
            if self._layout.parts():
                raise self._refused("has the parts of another run") from None
            self._write_arguments({})
            return None
        except ValueError:
            raise self._refused("has an unreadable state") from None
        rows_in_all: int | None = begun.pop("rows", None)
        for name in {**begun, **self._arguments}:
            if begun.get(name) != self._arguments.get(name):
                raise self._refused(
                    f"was begun with {name} {_shown(begun.get(name))}, "
                    f"not {_shown(self._arguments.get(name))}"
                )
        return rows_in_all

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self._layout.output} {why}; repeat that command to go on with it, "
            "or add --overwrite to begin anew"
        )

    def _write_arguments(self, more: dict[str, Any]) -> None:
        path = self._layout.state / ARGUMENTS
        with files.atomic(path) as file:
            file.write_text(json.dumps(self._arguments | more))

    def _parts(self) -> int:
        if self._layout.rows_per_file is None:
            return 0
        index = next(index for index in count() if not self._layout.file(index).exists())
        self._path(index - 1).unlink(missing_ok=True)
        return index

    def _path(self, index: int) -> Path:
        return self._layout.state / f"{index:05}.jsonl"

    def _opened(self) -> tuple[Any, int]:
        """The journal, cut after its last whole line, and how many it has."""
        file = self._path(self._index).open("ab+")
        file.seek(0)
        lines = length = 0
        for line in file:
            name = _whole_line(line)
            if name is None:
                break
            self.last = name
            lines, length = lines + 1, length + len(line)
        file.truncate(length)
        file.seek(length)
        if lines and lines == self._layout.rows_per_file:  # It was killed as it made the part.
            self._file = file
            self._seal()
            self._index += 1
            return self._opened()
        return file, lines

    def _seal(self) -> None:
        """Makes the file that the journal is for."""
        self._file.close()
        journal, file = self._path(self._index), self._layout.file(self._index)
        if self._layout.format == ".jsonl":
            files.move(journal, file)
            return
        fresh = self._layout.state / "made"
        rows.write(fresh, self._layout.format, _read(journal))
        files.move(fresh, file)
        journal.unlink()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self._layout.output}: {error.strerror or error}; what was done is kept, "
                "and the same command goes on with it"
            ) from None


def _whole_line(line: bytes) -> str | None:
    """The name of the file whose row it is; None of a line that was cut short."""
    try:
        return str(json.loads(line)["file"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(journal: Path) -> Iterator[Row]:
    with journal.open("rb") as lines:
        yield from map(json.loads, lines)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
