"""Classifying files without a server, through the same decoding and engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from service import catalog, engines
from service import settings as configuration
from service.decode import decode
from service.engines import Warm
from service.errors import CallerError
from service.postprocess import top_k
from service.ranking import rank as ranked
from service.rows import Row
from service.settings import Settings


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
