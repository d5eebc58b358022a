from __future__ import annotations

import os

from service.ledger import Ledger


def test_everyone_sees_what_all_hold_and_the_dead_hold_nothing() -> None:
    fd = Ledger.allocate(3)
    first, second = Ledger(fd, 3), Ledger(fd, 3)
    os.close(fd)
    first.hold(0, 1, 5, 100)
    second.hold(2, 1, 7, 2**40)
    second.hold(2, 0, 1, 1)
    assert first.total(1) == second.total(1) == (12, 2**40 + 100)
    first.clear(2)
    assert second.total(1) == (5, 100)
    assert second.total(0) == (0, 0)


def test_a_lead_is_over_the_one_with_the_fewest_connections_who_still_accepts() -> None:
    fd = Ledger.allocate(3)
    ledger = Ledger(fd, 3)
    os.close(fd)
    assert ledger.lead(0, 5) == 0
    assert ledger.lead(1, 2) == 0
    assert ledger.lead(0, 5) == 3
    ledger.clear(1)
    assert ledger.lead(0, 5) == 0
    assert ledger.total(0) == (0, 0)
