"""Rows of CSV, TSV, JSON lines and parquet files, with the line of each."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.data.members import damage
from models.extras import install

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
PARQUET = ".parquet"


class Row(NamedTuple):
    """`line`: of a text file, from 1 with the header; in parquet, the row from 1."""

    line: int
    values: Mapping[str, Any]


def pyarrow(path: Path) -> Any:
    """pyarrow, with pyarrow.parquet.

    Raises:
        ValueError: it is not installed; the message names `path`.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: needs {install('parquet')}") from None
    return arrow


def read(path: Path) -> tuple[tuple[str, ...], Iterator[Row]]:
    """The columns of a table and its rows. A JSON lines file has the columns of its first line.

    Raises:
        ValueError: the file cannot be read, now or at a row; the message names it.
    """
    suffix = path.suffix.lower()
    reader = _parquet if suffix == PARQUET else _json if suffix == ".jsonl" else _csv
    rows = _named(path, reader(path))
    return tuple(next(rows).values), rows


def _named(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, with errors in one line that names the file."""
    try:
        yield from rows
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder") from None
    except UnicodeDecodeError as error:
        kind = "JSON lines" if path.suffix.lower() == ".jsonl" else "CSV"
        raise ValueError(f"{path}: not a {kind} file in UTF-8 ({error})") from None
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = re.sub('"[^"]*"', "", file.readline())
        file.seek(0)
        separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
        delimiter = max(separators, key=header.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        yield Row(1, dict.fromkeys(columns))
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(columns):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(fields)} fields, not {len(columns)}"
                )
            yield Row(reader.line_num, dict(zip(columns, fields, strict=True)))


def _json(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        first = True
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict):  # The file's fault, not a caller's.
                raise ValueError(f"{path}: line {number} is not a JSON object")  # noqa: TRY004
            if first:
                yield Row(0, dict.fromkeys(values))
            first = False
            yield Row(number, values)
        if first:
            yield Row(0, {})


def _parquet(path: Path) -> Iterator[Row]:
    arrow = pyarrow(path)
    if not path.is_file():
        raise FileNotFoundError
    try:
        with arrow.parquet.ParquetFile(path) as file:
            yield Row(0, dict.fromkeys(file.schema_arrow.names))
            line = 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    line += 1
                    yield Row(line, values)
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: not a whole parquet file ({damage(error)})") from None
