from __future__ import annotations

import numpy as np

from service.inference.ranking import Prediction, Row, rank, top_k

LABELS = ["a", "b", "c", "d"]


def ranked(*probabilities: float) -> Row:
    return rank(np.array([probabilities], dtype=np.float32)).rows()[0]


def test_predictions_fall_and_ties_keep_the_order_of_classes() -> None:
    row = ranked(0.1, 0.3, 0.3, 0.3)
    assert [p.label for p in top_k(row, LABELS, 4)] == ["b", "c", "d", "a"]


def test_k_predictions_as_plain_numbers() -> None:
    row = ranked(0.5, 0.0, 0.25, 0.25)
    assert top_k(row, LABELS, 2) == [Prediction(0, "a", 0.5), Prediction(2, "c", 0.25)]
    assert type(top_k(row, LABELS, 1)[0].probability) is float
