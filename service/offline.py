"""Classifying files without a server, through the same decoding and engines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from service import catalog, engines
from service import settings as configuration
from service.decode import decode
from service.engines import Warm
from service.errors import CallerError, ConfigError
from service.postprocess import top_k
from service.ranking import rank as ranked
from service.settings import Settings

Row = dict[str, Any]
Writer = Callable[[Iterable[Row]], None]


def open_model(spec: str, **flags: str | None) -> tuple[Bundle, Warm]:
    """The bundle that `spec` names and a warm engine for it; `flags` as those of `serve`.

    Raises:
        ConfigError: see `service.settings.load` and `service.catalog.load`.
    """
    bundle = catalog.load(spec).bundle
    return bundle, warm(bundle, **flags)


def warm(bundle: Bundle, **flags: str | None) -> Warm:
    """A warm engine for `bundle`, by the flags of `serve` and by its environment."""
    settings = configuration.load({"models": [bundle.name], **flags})
    model = settings.models[0]
    device = engines.devices(model)[0]
    blueprint = engines.blueprint(bundle, model, device, settings)
    kinds = engines.engines_for(model, device)[:1]
    return engines.start_any(kinds, blueprint, model.parity_tolerance)


def classify(files: Sequence[Path], bundle: Bundle, engine: Warm, k: int) -> Iterator[Row]:
    """A row for each file, in order: `file`, and `predictions` or `error`."""
    remaining = iter(files)
    while batch := list(islice(remaining, engine.buckets.largest)):
        decoded = [_decode(file, bundle) for file in batch]
        pixels = [image for image in decoded if not isinstance(image, str)]
        rankings = iter(ranked(engine.infer(pixels)).rows() if pixels else ())
        for file, image in zip(batch, decoded, strict=True):
            row: Row = {"file": str(file), "predictions": [], "error": ""}
            if isinstance(image, str):
                row["error"] = image
            else:
                best = top_k(next(rankings), bundle.labels, k)
                row["predictions"] = [asdict(prediction) for prediction in best]
            yield row


def _decode(file: Path, bundle: Bundle) -> NDArray[np.uint8] | str:
    try:
        return decode(file.read_bytes(), bundle.input, Settings.model_fields["max_pixels"].default)
    except (CallerError, OSError) as error:
        return str(error)


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
