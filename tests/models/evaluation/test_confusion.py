"""The mistakes worth telling."""

from __future__ import annotations

import numpy as np

from models.evaluation.confusion import Mistake, commonest, worst

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
