"""Responses with many predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from service.cli.trial import Instant
from service.http import schemas
from service.inference.decoding import DecodedImage
from service.inference.interfaces import Computed
from service.inference.ranking import Row
from service.json_pieces import PIECE

CLASSES = 3 * PIECE


class Wide(Instant):
    labels = tuple(f"label {index}" for index in range(CLASSES))


def computed() -> Computed:
    probabilities = np.linspace(1, 0, CLASSES, dtype=np.float32)
    row = Row(np.arange(CLASSES, dtype=np.int32)[::-1], probabilities)
    decoded = DecodedImage(np.zeros((32, 32, 3), np.uint8), 0, 0, (32, 32))
    return Computed(Wide(), row, decoded, 0.05, 0.1, 0.2, 0.3, 0.65, 1)


@pytest.mark.parametrize("k", [1, PIECE, PIECE + 1, CLASSES])
def test_any_number_of_predictions_is_written(k: int) -> None:
    image = computed()
    timing_ms = schemas.timing_of(image)
    document = json.loads(schemas.classification_json("m", image, k, timing_ms))
    assert document == schemas.classification_of("m", image, k, timing_ms)
    predictions = document["predictions"]
    assert len(predictions) == k
    assert predictions[-1]["class_id"] == CLASSES - k
    assert predictions[-1]["label"] == f"label {CLASSES - k}"
    batch = json.loads(schemas.batch_json("m", ["a", "b"], [image, "it is damaged"], k))
    assert batch == {
        "model": "m",
        "results": [
            {"filename": "a", "predictions": predictions},
            {"filename": "b", "error": "it is damaged"},
        ],
    }
