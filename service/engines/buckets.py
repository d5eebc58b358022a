"""Which batch sizes an engine computes, and how many waiting images it takes at once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from service.engines import faults

log = logging.getLogger(__name__)
# What forming and answering a batch costs besides the engine, in seconds.
HANDOVER = 200e-6
# A larger batch must be this much faster by the image to be worth its latency.
GAIN = 1.03
# Batches of up to this size are kept, whether or not they gain anything today.
SMALL = 8
# A larger batch is not tried where it would take longer than this, in seconds: callers would wait
# for each other's images, and a device this slow gains nothing from batches.
LONGEST = 0.3
# Each size is timed by a few samples of equal length, and the fastest of them counts. A sample is
# as long as this many batches of one image, within bounds in seconds: what disturbs a busy machine
# hits a long batch more often than a short one, but no sample more often than another.
REPEATS = 3
SAMPLE = 10
SHORTEST_SAMPLE, LONGEST_SAMPLE = 0.01, 0.1
# Batches that take so many times what they took, or less by as much, are measured again.
DRIFT = 1.5
# What is shorter than this, in seconds, a busy moment of the machine makes look slow.
RELIABLE = 0.03


def sizes(max_batch: int) -> list[int]:
    """Powers of two, and `max_batch`."""
    powers = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch]
    return [*powers, max_batch]


class Buckets:
    """Batch sizes by the seconds that each takes."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self.seconds = dict(sorted(seconds.items()))
        self.largest = max(self.seconds)
        self._take = [0] + [self._best(count) for count in range(1, self.largest + 1)]

    def _best(self, waiting: int) -> int:
        """How many of `waiting` images give the most images a second, padding included."""
        best, best_rate = 1, 0.0
        for size, seconds in self.seconds.items():
            count = min(size, waiting)
            rate = count / (seconds + HANDOVER)
            if rate > best_rate * GAIN:
                best, best_rate = count, rate
            if size >= waiting:
                break
        return best

    def take(self, waiting: int) -> int:
        """How many of `waiting` images to compute in the next batch.

        On a CPU five may be best as four and one, on a GPU as five padded to eight.
        """
        return self._take[min(waiting, self.largest)]

    def fit(self, count: int) -> int:
        """The batch size that `count` images are padded to."""
        return next(size for size in self.seconds if size >= count)

    @property
    def per_image(self) -> float:
        """Seconds that an image takes in the batch that computes most of them."""
        return min(seconds / size for size, seconds in self.seconds.items())

    def worthwhile(self) -> Buckets:
        """Those sizes that are ever taken, and small ones: larger ones would only need memory."""
        small = max(size for size in self.seconds if size <= SMALL or size == min(self.seconds))
        return self.up_to(max(self.fit(max(self._take)), small))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self.seconds), "utf-8")

    @staticmethod
    def read(file: Path) -> Buckets:
        """What `write` wrote."""
        seconds = json.loads(file.read_text("utf-8"))
        return Buckets({int(size): float(took) for size, took in seconds.items()})

    def up_to(self, largest: int) -> Buckets:
        """Those sizes of which no batch is larger than `largest`, which is one of them."""
        return Buckets({size: took for size, took in self.seconds.items() if size <= largest})


def measure(run: Callable[[int], object], max_batch: int) -> Buckets:
    """Runs batches of growing size, until two in a row reliably compute no more images a second,
    or the next would take too long, or does not fit into memory.

    Each size runs for real before it is timed, so that no request pays for compiling it, for
    the choice of algorithms or for memory.
    """
    seconds: dict[int, float] = {}
    best_rate, without_gain, smaller, sample = 0.0, 0, 0, 0.0
    for size in sizes(max_batch):
        try:
            run(size)
            sample = sample or _sample(_took(run, size))
            took = _shortest(run, size, sample)
        except Exception as error:
            if not seconds or not faults.out_of_memory(error):
                raise
            log.warning("no memory for batches of %d: %s", size, faults.in_one_line(error))
            break
        # Two batches of half the size would do: what took longer was disturbed.
        seconds[size] = min(took, seconds[smaller] * size / smaller) if smaller else took
        smaller = size
        rate = size / (seconds[size] + HANDOVER)
        without_gain = 0 if rate > best_rate * GAIN else without_gain + 1
        best_rate = max(best_rate, rate)
        settled = without_gain >= 2 and seconds[size] > RELIABLE
        if settled or 2 * seconds[size] > LONGEST:
            break
    return Buckets(seconds)


def confirmed(run: Callable[[int], object], buckets: Buckets) -> bool:
    """Whether batches still take as long as they took: all of them together, and none much less,
    which would have been disturbed when it was measured. Each size has been run by then."""
    total = 0.0
    for size, seconds in buckets.seconds.items():
        run(size)  # The first may allocate.
        took = _took(run, size)
        if took * DRIFT < seconds:
            return False
        total += took
    return total <= DRIFT * sum(buckets.seconds.values())


def _sample(single: float) -> float:
    """How long a sample lasts where a batch of one takes `single`; all in seconds."""
    return min(max(SAMPLE * single, SHORTEST_SAMPLE), LONGEST_SAMPLE)


def _took(run: Callable[[int], object], size: int) -> float:
    started = time.perf_counter()
    run(size)
    return time.perf_counter() - started


def _shortest(run: Callable[[int], object], size: int, sample: float) -> float:
    """Seconds of a batch in the fastest of a few samples; of a slow one, one is enough."""
    shortest = float("inf")
    for _ in range(REPEATS):
        spent, runs = 0.0, 0
        while spent < sample:
            spent, runs = spent + _took(run, size), runs + 1
        shortest = min(shortest, spent / runs)
        if shortest > LONGEST / REPEATS:
            break
    return shortest
