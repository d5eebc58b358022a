from __future__ import annotations

import math
from functools import partial

import pytest

from service.errors import QueueFull
from service.inference.pace import CERTAIN, FASTEST, IDLE, MOST, SLOWEST, Excess, Load, Pace, Paces


def test_until_something_was_measured_nothing_takes_long() -> None:
    pace = Pace()
    pace.computed(4, 1.0)
    assert (pace.seconds(1000), pace.until_done(1000), pace.slowdown) == (0.0, 0.0, 1.0)


def test_a_queue_goes_at_the_best_rate_and_ends_with_a_batch_of_one() -> None:
    pace = Pace()
    pace.measured({4: 2.0, 1: 1.0})  # 0.5 s for an image of four
    assert pace.seconds(8) == pytest.approx(4.0)
    assert pace.until_done(8) == pytest.approx(5.0)
    assert pace.until_done(0) == pytest.approx(1.0)


def test_a_batch_is_compared_with_the_size_that_it_is_padded_to() -> None:
    pace = Pace()
    pace.measured({1: 1.0, 4: 2.0})
    for size in (3, 4):
        pace.computed(size, 2.0)
        assert pace.slowdown == pytest.approx(1.0)
    pace.computed(100, 2.0)  # Split, or larger than any: as the largest.
    assert pace.slowdown == pytest.approx(1.0)


def test_a_device_that_is_shared_makes_the_queue_slower_and_recovers() -> None:
    pace = Pace()
    pace.measured({1: 1.0})
    for _ in range(50):
        pace.computed(1, 3.0)
    assert pace.until_done(1) == pytest.approx(6.0, rel=0.01)
    for _ in range(50):
        pace.computed(1, 0.5)
    assert pace.until_done(1) == pytest.approx(1.0, rel=0.01)


def test_no_single_batch_makes_it_absurd() -> None:
    pace = Pace()
    pace.measured({1: 1.0})
    for seconds, bound in ((1e9, SLOWEST), (0.0, FASTEST)):
        for _ in range(200):
            pace.computed(1, seconds)
        assert pace.slowdown == pytest.approx(bound, rel=0.01)


def test_a_new_engine_begins_with_what_was_measured_of_it() -> None:
    pace = Pace()
    pace.measured({1: 1.0})
    pace.computed(1, 50.0)
    pace.measured({1: 2.0})
    assert pace.slowdown == 1.0
    assert pace.seconds(2) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("load", "late"),
    [
        (Load(within=10 / CERTAIN + 0.01), 0.0),
        (Load(within=10 / CERTAIN - 0.01), 10.0 / CERTAIN),
        (Load(within=10 / CERTAIN + 0.01, spent=1.0), 11.0 / CERTAIN),
        # The loop works while the engine does: the longer of them counts.
        (Load(within=10 / CERTAIN + 0.01, on_loop=9.0), 0.0),
        (Load(within=10 / CERTAIN + 0.01, on_loop=20.0), 20.0 / CERTAIN),
        (Load(within=math.inf, spent=1e9), 0.0),
        (IDLE, 0.0),
    ],
)
def test_what_would_come_too_late_is_seen_before(load: Load, late: float) -> None:
    pace = Pace()
    pace.measured({1: 1.0})
    assert load.too_late(pace, 9) == pytest.approx(late)


def test_with_nobody_ahead_a_client_may_find_out() -> None:
    pace = Pace()
    pace.measured({1: 10.0})
    assert Load(within=0.001).too_late(pace, 0) == 0.0


def test_those_who_are_refused_are_told_different_times() -> None:
    excess = Excess()
    error = QueueFull("full", 0.1, partial(excess.spread, 0.05))
    told = [error.retry_seconds() for _ in range(200)]
    assert told[0] == 1
    assert len(set(told)) >= 5
    assert all(1 <= seconds <= 11 for seconds in told)
    # The more were refused, the longer the time over which they are spread.
    assert max(told[:20]) < max(told)


def test_nobody_is_told_to_wait_for_ever_because_many_were_refused() -> None:
    excess = Excess()
    assert max(excess.spread(1.0) for _ in range(10_000)) <= MOST


def test_after_a_while_the_refused_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("service.inference.pace.time.perf_counter", lambda: now)
    excess = Excess()
    for _ in range(1000):
        excess.spread(1.0)
    now += 200.0
    assert excess.spread(1.0) < 0.001


def test_engines_that_share_a_queue_are_as_fast_as_all_of_them_together() -> None:
    fast, slow, unknown = Pace(), Pace(), Pace()
    fast.measured({1: 1.0, 4: 2.0})  # 0.5 s for an image of four
    slow.measured({1: 2.0})
    paces = Paces([fast, slow, unknown])
    assert paces.seconds(10) == pytest.approx(10 / (2.0 + 0.5))
    # The last image goes to the engine that is done with it first.
    assert paces.until_done(10) == pytest.approx(4.0 + 1.0)


def test_of_engines_that_share_a_queue_nothing_may_be_known() -> None:
    assert (Paces([Pace()]).seconds(10), Paces([]).until_done(10)) == (0.0, 0.0)
