"""The mistakes worth telling."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.evaluation.confusion import (
    MOST_CLASSES,
    MOST_MISTAKES,
    Mistake,
    commonest,
    summary,
    worst,
)

CONFUSION = np.array([[9, 1, 0], [4, 5, 4], [0, 0, 7]])


def test_the_worst_classes_come_first_and_those_without_images_never() -> None:
    assert worst(np.array([0.5, np.nan, 0.1, 0.5, 0.9])) == [2, 0, 3]
    assert worst(np.array([np.nan, 0.3]), 5) == [1]
    assert worst(np.array([np.nan])) == []


def test_the_commonest_mistakes_come_first_and_right_answers_never() -> None:
    assert commonest(CONFUSION, 2) == [Mistake(1, 0, 4), Mistake(1, 2, 4)]
    assert commonest(CONFUSION, 9) == [Mistake(1, 0, 4), Mistake(1, 2, 4), Mistake(0, 1, 1)]
    assert commonest(np.diag([3, 4])) == []
    assert CONFUSION[0, 0] == 9, "the matrix itself stays"


def test_a_summary_has_each_class_and_the_whole_matrix_of_few() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    found = summary(confusion, ("ant", "bee", "cat"))
    assert found == {
        "per_class": [
            {"label": "ant", "accuracy": 0.75, "images": 4},
            {"label": "bee", "accuracy": None, "images": 0},
            {"label": "cat", "accuracy": 0.5, "images": 4},
        ],
        "confusion": [[3, 1, 0], [0, 0, 0], [2, 0, 2]],
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("classes", "whole"), [(MOST_CLASSES, True), (MOST_CLASSES + 1, False)])
def test_of_many_classes_a_summary_has_the_commonest_mistakes(classes: int, whole: bool) -> None:
    confusion = np.eye(classes, dtype=np.int64) * 50
    confusion[0, 1:] = np.arange(1, classes)
    confusion[2, 3:] = 1
    found = summary(confusion, [str(index) for index in range(classes)])
    assert ("confusion" in found, "mistakes" in found) == (whole, not whole)
    if not whole:
        assert len(found["mistakes"]) == 2 * classes - 4 <= MOST_MISTAKES
        assert found["mistakes"][0] == {"label": "0", "as": str(classes - 1), "images": classes - 1}


def test_a_summary_of_a_thousand_classes_is_small() -> None:
    confusion = np.ones((1000, 1000), np.int64)
    found = summary(confusion, [f"a class of animals, number {index}" for index in range(1000)])
    assert len(found["mistakes"]) == MOST_MISTAKES
    assert len(json.dumps(found)) < 150_000


def test_other_labels_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^2 labels do not fit a confusion matrix \(3, 3\)$"):
        summary(np.eye(3, dtype=np.int64), ("a", "b"))
