"""Predictions as rows of a file, whoever made them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from service.errors import ConfigError

# `file`, and `predictions` or `error`.
Row = dict[str, Any]
Writer = Callable[[Iterable[Row]], None]


def writer(path: Path) -> Writer:
    """Writes rows to `path` in the format of its suffix.

    Raises:
        ConfigError: no such format, or parquet without pyarrow.
    """
    formats = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in formats:
        raise ConfigError(f"--output {path}: must end in one of {', '.join(formats)}")
    if path.suffix == ".parquet":
        _pyarrow()
    write = formats[path.suffix]
    return lambda rows: write(path, rows)


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _flat(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for each prediction, and one for each file that has none."""
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
        names = ("file", "rank", "class_id", "label", "probability", "error")
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(_flat(rows))


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    pyarrow = _pyarrow()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(_flat(rows))), path)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "--output FILE.parquet needs pyarrow: pip install 'resnet-serve[parquet]'"
        ) from None
    return pyarrow
