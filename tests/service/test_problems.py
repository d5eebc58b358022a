from __future__ import annotations

from service import errors
from service.problems import STATUSES


def test_every_refusal_has_a_status_and_is_counted_from_zero() -> None:
    assert set(STATUSES) == set(errors.REFUSALS)
