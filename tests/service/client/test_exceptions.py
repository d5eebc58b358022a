from __future__ import annotations

import pickle

from service.client import (
    Busy,
)


def test_refusals_cross_processes() -> None:
    told = Busy(429, "queue_full", "later", "r1", 2.0)
    again = pickle.loads(pickle.dumps(told))
    assert type(again) is Busy
    assert vars(again) == vars(told)
