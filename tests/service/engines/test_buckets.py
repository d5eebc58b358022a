"""Which batch sizes are computed, by what each takes. An engine only claims how long it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.engines.buckets import Buckets, confirmed, measure, sizes


class Device:
    """It takes `seconds` of a batch's size to run one; `ran` are their sizes."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.ran: list[int] = []
        self._seconds = seconds

    def run(self, size: int) -> float:
        self.ran.append(size)
        return self._seconds(size)


@pytest.mark.parametrize(
    ("max_batch", "expected"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])],
)
def test_batch_sizes_are_powers_of_two_up_to_the_limit(max_batch: int, expected: list[int]) -> None:
    assert sizes(max_batch) == expected


def test_where_a_larger_batch_costs_no_more_everything_waiting_is_taken() -> None:
    gpu = Buckets({1: 0.0020, 2: 0.0020, 4: 0.0021, 8: 0.0022})
    assert [gpu.take(waiting) for waiting in (1, 2, 3, 5, 8, 100)] == [1, 2, 3, 5, 8, 8]
    assert [gpu.fit(count) for count in (1, 3, 5, 8)] == [1, 4, 8, 8]


def test_where_every_image_costs_its_own_nothing_is_computed_for_padding() -> None:
    cpu = Buckets({1: 0.100, 2: 0.190, 4: 0.360, 8: 0.720})
    assert [cpu.take(waiting) for waiting in (1, 2, 3, 5, 7, 100)] == [1, 2, 2, 4, 4, 4]


# Forming and answering a batch costs 0.2 ms besides its engine.
@pytest.mark.parametrize(
    ("seconds", "waiting", "taken", "why"),
    [
        ({1: 0.0998, 2: 0.1958}, 2, 1, "2 % more images a second are not worth the latency"),
        ({1: 0.0998, 2: 0.1921}, 2, 2, "4 % are"),
        ({1: 0.0998, 2: 0.1958, 4: 0.3847}, 4, 4, "4 % over the best, if not over the one before"),
        ({1: 0.0002, 2: 0.0004}, 2, 2, "0.2 ms once more for two images: 1.33 times as many"),
        ({1: 0.0102, 2: 0.0204}, 2, 1, "0.2 ms are less than 3 % of so long a batch"),
        ({1: 0.1, 2: 0.3, 4: 0.15}, 2, 1, "two would be padded to two, not to the faster four"),
        ({1: 0.1, 2: 0.1, 4: 0.11}, 3, 3, "what fits into four is not computed as two and one"),
        ({1: 2.0, 2: 2.2}, 2, 2, "nor do devices of less than an image a second differ"),
        ({1: 0.1, 2: 0.1}, 0, 0, "nobody waits"),
    ],
)
def test_so_many_of_those_that_wait_are_taken(
    seconds: dict[int, float], waiting: int, taken: int, why: str
) -> None:
    assert Buckets(seconds).take(waiting) == taken, why


def test_sizes_are_in_order_and_can_be_limited() -> None:
    buckets = Buckets({4: 0.4, 1: 0.1, 8: 0.7, 2: 0.2})
    assert list(buckets.seconds.items()) == [(1, 0.1), (2, 0.2), (4, 0.4), (8, 0.7)]
    assert buckets.up_to(4).seconds == {1: 0.1, 2: 0.2, 4: 0.4}


@pytest.mark.parametrize(
    ("seconds", "runs", "why"),
    [
        (1 / 2048, 3 * 21, "three samples of 10 ms, so that a clock's steps do not count"),
        (1 / 128, 3 * 10, "three samples of ten"),
        (1 / 64, 3 * 7, "three samples of 100 ms, of which one was disturbed the least"),
        (1 / 16, 3 * 2, "as many samples of slow ones"),
        (1 / 4, 1, "one of a batch so slow that a disturbance hardly counts"),
    ],
)
def test_a_batch_is_timed_so_often(seconds: float, runs: int, why: str) -> None:
    made = Device(lambda _: seconds)
    assert measure(made.run, 1).seconds == {1: seconds}
    assert len(made.ran) == 2 + runs, (
        f"once for what only the first pays for, once for a sample's length, and then {why}"
    )


def test_a_busy_machine_makes_large_batches_no_slower_by_the_image_than_small_ones() -> None:
    """After every 40 ms of computing something else computes for 20 ms: between small batches, or
    within large ones."""
    computed = 0.0

    def seconds(size: int) -> float:
        nonlocal computed
        before, computed = computed, computed + 0.01 * size
        return 0.01 * size + 0.02 * (computed // 0.04 - before // 0.04)

    made = Device(seconds)
    per_image = [took / size for size, took in measure(made.run, 8).seconds.items()]
    assert max(per_image) < 1.2 * min(per_image), "though many a batch of one takes only 10 ms"


def test_measuring_stops_where_larger_batches_gain_nothing() -> None:
    made = Device(lambda size: 0.01 if size <= 4 else 0.0026 * size)
    assert list(measure(made.run, 256).seconds) == [1, 2, 4, 8, 16]
    assert set(made.ran) == {1, 2, 4, 8, 16}


@pytest.mark.parametrize(
    ("rates", "measured", "why"),
    [
        # Images a second of 1, 2, 4, ... at a time.
        ([100, 100, 100, 200], [1, 2, 4], "2 and 4 gain nothing"),
        ([100, 150, 200, 202, 203, 400], [1, 2, 4, 8, 16], "8 and 16 gain less than 3 %"),
        ([100, 150, 200, 204, 208, 400], [1, 2, 4, 8, 16], "16 gains less over 8, the best yet"),
        ([100, 101, 150, 151, 200], [1, 2, 4, 8, 16], "4 gains between 2 and 8, which do not"),
        ([100, 103.5, 104, 105, 200], [1, 2, 4, 8], "2 gains 1 % by its handover, 3.5 % in all"),
    ],
)
def test_measuring_ends_where_two_in_a_row_gain_nothing(
    rates: list[float], measured: list[int], why: str
) -> None:
    # The 0.2 ms of handing a batch over are part of its rate.
    by_size = {2**power: 2**power / rate - 0.0002 for power, rate in enumerate(rates)}
    made = Device(by_size.__getitem__)
    assert list(measure(made.run, max(by_size)).seconds) == measured, why


@pytest.mark.parametrize(("each", "largest"), [(0.00095, 32), (0.00093, 64)])
def test_batches_of_less_than_30_ms_are_not_relied_upon(each: float, largest: int) -> None:
    """From 8 images on they gain less than 3 %; 32 take 30.4 ms, or 29.8."""
    made = Device(lambda size: each * size)
    assert max(measure(made.run, 256).seconds) == largest


def test_a_busy_moment_does_not_end_the_measuring_of_a_fast_network() -> None:
    made = Device(lambda size: 0.001 + 0.0005 * size + (0.02 if size in (2, 4) else 0.0))
    assert list(measure(made.run, 32).seconds) == [1, 2, 4, 8, 16, 32]


def test_measuring_stops_where_a_batch_would_take_too_long() -> None:
    made = Device(lambda size: 0.09 * size**0.9)
    assert list(measure(made.run, 256).seconds) == [1, 2]


@pytest.mark.parametrize(("seconds", "measured"), [(0.15, [1, 2]), (0.1501, [1])])
def test_no_batch_is_tried_that_would_take_longer_than_300_ms(
    seconds: float, measured: list[int]
) -> None:
    made = Device(lambda _: seconds)
    assert list(measure(made.run, 2).seconds) == measured


def test_a_disturbed_measurement_does_not_forbid_larger_batches() -> None:
    made = Device(lambda size: 0.002 + 0.0003 * size + (0.5 if size in (4, 8) else 0.0))
    found = measure(made.run, 16)
    assert found.take(100) == 16
    assert found.seconds[8] == pytest.approx(4 * found.seconds[2])


def test_batches_for_which_there_is_no_memory_are_not_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Device(lambda _: 0.01)

    def run(size: int) -> float:
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return made.run(size)

    assert list(measure(run, 32).seconds) == [1, 2, 4]
    assert caplog.messages == ["out of memory for batches of 8: CUDA out of memory."]
    with pytest.raises(torch.OutOfMemoryError):
        measure(lambda size: run(size + 4), 32)


def test_what_fails_for_another_reason_is_no_matter_of_size() -> None:
    made = Device(lambda _: 0.01)

    def run(size: int) -> float:
        if size == 4:
            raise RuntimeError("broken")
        return made.run(size)

    with pytest.raises(RuntimeError, match="broken"):
        measure(run, 32)


def test_what_was_measured_comes_back_from_a_file(tmp_path: Path) -> None:
    measured = Buckets({1: 0.1, 2: 0.15, 4: 0.4})
    measured.write(tmp_path / "sizes")
    assert json.loads((tmp_path / "sizes").read_text()) == {"1": 0.1, "2": 0.15, "4": 0.4}
    read = Buckets.read(tmp_path / "sizes")
    assert read.seconds == {1: 0.1, 2: 0.15, 4: 0.4}
    assert [read.fit(count) for count in (1, 2, 3)] == [1, 2, 4]
    assert read.per_image == 0.075, "in twos"


@pytest.mark.parametrize(
    ("times", "good"), [(1, True), (1.5, True), (1.51, False), (0.67, True), (0.66, False)]
)
def test_what_was_measured_holds_until_it_takes_half_as_long_again_or_two_thirds(
    times: float, good: bool
) -> None:
    taken = {1: 0.125, 2: 0.25, 4: 0.375}
    made = Device(lambda size: times * taken[size])
    assert confirmed(made.run, Buckets(taken)) is good
    if good:
        assert made.ran == [1, 1, 2, 2, 4, 4], "all are warm"


@pytest.mark.parametrize(("times", "good"), [(1.5, True), (1.6, False)])
def test_one_size_that_was_disturbed_is_noticed(times: float, good: bool) -> None:
    """As long as it took so long, it would not be taken for a batch."""
    made = Device(lambda size: {1: 0.125, 2: 0.25, 4: 0.5}[size])
    assert confirmed(made.run, Buckets({1: 0.125, 2: 0.25, 4: times * 0.5})) is good


def test_sizes_are_confirmed_all_together_and_without_their_first_run() -> None:
    """One alone may have been disturbed, and the first run of each may allocate."""
    taken = {1: 0.125, 2: 0.25, 4: 0.375}
    made = Device(lambda size: 100.0 if made.ran.count(size) == 1 else {1: 0.5}.get(size, 0.25))
    assert confirmed(made.run, Buckets(taken))


@pytest.mark.parametrize(
    ("seconds", "largest", "why"),
    [
        ({1: 0.1, 2: 0.15, 4: 0.3, 8: 0.6, 16: 1.2}, 8, "16 gains nothing; small ones stay"),
        ({1: 0.1, 2: 0.15, 4: 0.3, 8: 0.6, 16: 1.0, 32: 2.0}, 16, "16 gains where 8 does not"),
        ({1: 0.1, 8: 0.19, 16: 0.7, 32: 0.72}, 32, "17 are taken at once, and padded to 32"),
        ({1: 0.1, 2: 0.2}, 2, "there are no others"),
        ({12: 0.1, 24: 0.2}, 12, "nor smaller ones"),
    ],
)
def test_sizes_that_are_never_taken_need_no_memory(
    seconds: dict[int, float], largest: int, why: str
) -> None:
    buckets = Buckets(seconds)
    useful = buckets.worthwhile()
    assert useful.largest == largest, why
    waiting = range(1, 2 * max(seconds))
    assert [useful.take(count) for count in waiting] == [buckets.take(count) for count in waiting]
