"""Predictions as rows of a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from models.extras import install
from service.errors import ConfigError

# `file`, and `predictions` or `error`.
Row = dict[str, Any]
# A table's columns with their Arrow types.
COLUMNS = {
    "file": "string",
    "rank": "int64",
    "class_id": "int64",
    "label": "string",
    "probability": "float64",
    "error": "string",
}
# Rows of a parquet file that are in memory at a time.
ROW_GROUP = 16_384


def check(path: Path) -> None:
    """Checks that rows can be written to `path`.

    Raises:
        ConfigError: an unknown format, or parquet without pyarrow.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"--output {path}: must end in one of {', '.join(FORMATS)}, or be a folder"
        )
    if path.suffix == ".parquet":
        pyarrow("--output FILE.parquet")


def write(path: Path, format: str, rows: Iterable[Row]) -> None:
    """Writes rows to `path` in one of FORMATS."""
    FORMATS[format](path, rows)


def line(row: Row) -> bytes:
    """One line of JSON."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("wb") as file:
        file.writelines(map(line, rows))


def _flat(rows: Iterable[Row]) -> Iterator[Row]:
    """A row for each prediction, and one for each file without predictions."""
    for row in rows:
        for rank, prediction in enumerate(row["predictions"] or [{}], 1):
            yield {
                "file": row["file"],
                "rank": rank if prediction else None,
                "class_id": prediction.get("class_id"),
                "label": prediction.get("label"),
                "probability": prediction.get("probability"),
                "error": row["error"],
            }


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(_flat(rows))


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    arrow = pyarrow("--output FILE.parquet")
    schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in COLUMNS.items()])
    flat = _flat(rows)
    with arrow.parquet.ParquetWriter(path, schema) as file:
        while group := list(islice(flat, ROW_GROUP)):
            file.write_table(arrow.Table.from_pylist(group, schema))


def pyarrow(purpose: str) -> Any:
    """pyarrow, including pyarrow.parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{purpose} needs pyarrow: {install('parquet')}") from None
    return arrow


FORMATS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
