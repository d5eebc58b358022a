from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput
from service.http.instances import Instances
from service.http.routers.vertex import classes, options_of
from service.inference.ranking import Row

MODEL: Any = SimpleNamespace(labels=["cat", "dog", "ship"])
ROW = Row(np.array([2, 0, 1], np.int32), np.array([0.5, 0.25, 0.25], np.float32))
COMPUTED: Any = SimpleNamespace(model=MODEL, row=ROW)


def wanted(**parameters: Any) -> tuple[int, float]:
    return options_of(MODEL, Instances([], "instances", parameters))


def test_as_many_as_asked_for_and_as_likely() -> None:
    assert wanted() == (3, 0.0)
    assert wanted(maxPredictions=2, confidenceThreshold=0.5) == (2, 0.5)
    # As there, more than there are classes means all.
    assert wanted(maxPredictions=10_000) == (3, 0.0)
    two = {"ids": ["2", "0"], "displayNames": ["ship", "cat"], "confidences": [0.5, 0.25]}
    assert classes(COMPUTED, 2, 0.0) == two
    assert classes(COMPUTED, 3, 0.3) == {
        "ids": ["2"],
        "displayNames": ["ship"],
        "confidences": [0.5],
    }


@pytest.mark.parametrize(
    "parameters",
    [
        {"maxPredictions": 0},
        {"maxPredictions": 1.5},
        {"confidenceThreshold": 1.1},
        {"confidenceThreshold": "0.5"},
        {"confidenceThreshold": True},
        {"threshold": 0.5},
    ],
)
def test_a_wrong_parameter_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"parameters: .*{next(iter(parameters))}"):
        wanted(**parameters)
