"""Writing rows so that a killed run can continue: no row is lost or duplicated.

Rows are appended to a journal, one line of JSON each, in the order of the images. Each finished
file is made from a journal under a temporary name and renamed, so that a file that exists is
complete. The finished files and the journal's complete lines tell where to continue. The only other
state is the arguments, which must stay the same, and whether the run may replace its output.
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
from service.cli import outputs
from service.cli.bulk import rows
from service.cli.bulk.inputs import WHOLE, Shard
from service.cli.bulk.rows import Row
from service.errors import ConfigError

ROWS_PER_FILE = 100_000
ARGUMENTS = "arguments.json"


@dataclass(frozen=True)
class Layout:
    """Where a run writes its rows: to one file or, with `rows_per_file`, to parts in a folder.

    `state` is the journal's folder, on the same file system.
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
            # Readers of parquet folders skip names that begin with an underscore.
            return self.output / f"_resume{self._of}"
        return self.output.with_name(f"{self.output.name}.resume")

    def file(self, index: int) -> Path:
        if self.rows_per_file:
            return self.output / f"part{self._of}-{index:05}{self.format}"
        return self.output

    def parts(self) -> list[Path]:
        """The existing parts."""
        # Parts from a cluster are named after their content.
        name = re.compile(rf"part{self._of}-(\d{{5,}}|ray-\w+){re.escape(self.format)}")
        folder = self.output.iterdir() if self.rows_per_file and self.output.is_dir() else ()
        return [path for path in folder if name.fullmatch(path.name)]


def layout(output: Path, rows_per_file: int | None, shard: Shard) -> Layout:
    """The layout of `output`: a folder if it is one or has no suffix, else a file.

    Raises:
        ConfigError: it cannot be written to.
    """
    if os.path.lexists(output) and not output.is_dir():
        outputs.check_regular(output)
        output = files.target_of(output)
    if not output.suffix and output.is_file():
        raise ConfigError(
            f"--output {output}: is a file; choose a folder, or end in .jsonl or .csv"
        )
    if output.is_dir() or not output.suffix:
        rows.pyarrow("--output FOLDER")
        made = Layout(output, ".parquet", rows_per_file or ROWS_PER_FILE, shard)
    elif rows_per_file:
        raise ConfigError("--rows-per-file: only if --output is a folder, without a suffix")
    else:
        rows.check(output)
        made = Layout(output, output.suffix, None, shard)
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    return made


class Journal:
    """The rows of one run. `done`: how many are already written; `last`: the name of the last of
    them, if known; `complete`: the run has finished."""

    def __init__(self, layout: Layout, arguments: dict[str, Any], overwrite: bool) -> None:
        self._layout = layout
        self._arguments = arguments
        self.last: str | None = None
        self._replaces = overwrite
        self._check_unbegun()
        with self._reporting():
            layout.state.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(layout.state, os.O_RDONLY)
            try:
                self._take()
                if overwrite:
                    for path in (*layout.parts(), *layout.state.iterdir()):
                        path.unlink()
                total = self._begin()
                self._index = self._parts()
                self._file, self._lines = self._opened()
            except BaseException:
                os.close(self._lock)
                raise
        self.complete = total is not None
        self.done = self._index * (layout.rows_per_file or 0) + self._lines
        if total is not None:
            self.done = total

    def write(self, batch: Iterable[Row]) -> None:
        """Appends rows, in the order of the images; after this returns, a kill does not lose them.

        Raises:
            ConfigError: they cannot be written; earlier rows are unaffected.
        """
        with self._reporting():
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
        """Writes the last file.

        Raises:
            ConfigError: as `write`.
        """
        with self._reporting():
            if self._layout.rows_per_file is None:
                self._check_free()
                # Whatever is there after a kill from here on is this run's own.
                self._write_arguments({"rows": self.done})
                self._seal()
                shutil.rmtree(self._layout.state)
                return
            if self._lines:
                self._seal()
            self._write_arguments({"rows": self.done})

    def close(self) -> None:
        """Ends this run, which may be continued later."""
        with suppress(OSError):  # `write` has already reported a full disk.
            self._file.close()
        if self.complete and self._layout.rows_per_file is None:
            shutil.rmtree(self._layout.state)
        os.close(self._lock)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self._layout.output}: another run is writing to it") from None

    def _check_unbegun(self) -> None:
        """Refuses to begin where there is a file, or files in place of the state."""
        state = self._layout.state
        if (state / ARGUMENTS).exists():
            return
        if self._layout.rows_per_file is None:
            outputs.check(self._layout.output, overwrite=self._replaces)
        if self._layout.parts() and not self._replaces:
            raise self._refusal("contains parts of another run")
        if state.is_dir() and any(not path.name.endswith(".part") for path in state.iterdir()):
            raise ConfigError(f"{state} has files that are no run's; move them away")

    def _check_free(self) -> None:
        """Refuses to replace what another program wrote in the meantime."""
        output = self._layout.output
        if self._layout.rows_per_file is None and output.exists() and not self._replaces:
            raise ConfigError(
                f"{output} was written by something else during this run; move it away to "
                "continue, or add --overwrite to start again"
            )

    def _begin(self) -> int | None:
        """The number of rows, if the run is complete. Refuses a run with other arguments."""
        try:
            started = json.loads((self._layout.state / ARGUMENTS).read_bytes())
        except FileNotFoundError:
            self._write_arguments({"overwrite": True} if self._replaces else {})
            return None
        except ValueError:
            raise self._refusal("has a damaged state") from None
        total: int | None = started.pop("rows", None)
        self._replaces = started.pop("overwrite", False)
        for name in {**started, **self._arguments}:
            if started.get(name) != self._arguments.get(name):
                raise self._refusal(
                    f"was started with {name} {_shown(started.get(name))}, "
                    f"not {_shown(self._arguments.get(name))}"
                )
        if self._layout.rows_per_file is None and total is not None:
            # It was killed while it finished: before or after the journal became the output.
            unsealed = self._path(0).exists()
            if not unsealed and self._layout.output.exists():
                return total
            self._replaces, total = unsealed, None
        self._check_free()
        return total

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self._layout.output} {why}; run the same command as before to continue, "
            "or add --overwrite to start again"
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
        """The journal, truncated after its last complete line, and its number of lines."""
        file = self._path(self._index).open("ab+")
        file.seek(0)
        lines = length = 0
        for line in file:
            name = _name_in(line)
            if name is None:
                break
            self.last = name
            lines, length = lines + 1, length + len(line)
        file.truncate(length)
        file.seek(length)
        if (
            lines and lines == self._layout.rows_per_file
        ):  # The run was killed while writing the part.
            self._file = file
            self._seal()
            self._index += 1
            return self._opened()
        return file, lines

    def _seal(self) -> None:
        """Turns the journal into its file."""
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
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self._layout.output}: {error.strerror or error}; completed work is kept, "
                "run the same command to continue"
            ) from None


def _name_in(line: bytes) -> str | None:
    """The file that the line's row is about; None if the line is incomplete."""
    try:
        return str(json.loads(line)["file"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(journal: Path) -> Iterator[Row]:
    with journal.open("rb") as lines:
        yield from map(json.loads, lines)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
