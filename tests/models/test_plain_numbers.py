"""NumPy's numbers are numbers too; truth values, texts and tensors are none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from models.plain_numbers import integer, number


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7)])
def test_an_integer_is_pythons(value: Any) -> None:
    for found in (integer(value), number(value)):
        assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_a_real_number_is_pythons_and_no_integer(value: Any) -> None:
    found = number(value)
    assert (found, type(found)) == (0.5, float)
    assert integer(value) is None


@pytest.mark.parametrize("value", [True, np.bool_(True), "7", None, 7j, [7], torch.tensor(7)])
def test_anything_else_is_none(value: Any) -> None:
    assert integer(value) is number(value) is None


def test_what_is_not_finite_stays_a_number() -> None:
    assert number(10**400) == 10**400
    assert number(np.float32("inf")) == math.inf
