"""The batch sizes that an engine computes, and how many queued images it takes at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from service.engines import faults

log = logging.getLogger(__name__)
# Seconds that a batch costs besides the engine, to form and to answer.
HANDOVER = 200e-6
# A larger batch must be this much faster by the image to be worth its latency.
GAIN = 1.03
# Batches of up to this size are kept even if they gain nothing today.
SMALL = 8
# A larger batch is not tried if it would take longer than this, in seconds: clients would wait for
# each other's images, and a device this slow gains nothing from batches.
LONGEST = 0.3
# Each size is timed in a few samples of equal length, and the fastest counts. A sample is as long
# as this many batches of one image, within bounds in seconds: a busy machine disturbs long batches
# more often than short ones, but all samples alike.
REPEATS = 3
SAMPLE = 10
SHORTEST_SAMPLE, LONGEST_SAMPLE = 0.01, 0.1
# Batches that are slower or faster than cached by this factor are measured again.
DRIFT = 1.5
# A busy moment of the machine makes batches that are shorter than this, in seconds, look slow.
RELIABLE = 0.03
# Computes a batch of so many images; returns the seconds that it took.
Run = Callable[[int], float]


def sizes(max_batch: int) -> list[int]:
    """Powers of two, and `max_batch`."""
    powers = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch]
    return [*powers, max_batch]


class Buckets:
    """Batch sizes, and the seconds that each takes."""

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

        Five images may be fastest as four and one on a CPU, and padded to eight on a GPU.
        """
        return self._take[min(waiting, self.largest)]

    def fit(self, count: int) -> int:
        """The batch size that `count` images are padded to."""
        return next(size for size in self.seconds if size >= count)

    @property
    def per_image(self) -> float:
        """Seconds for an image, at the batch size with the highest throughput."""
        return min(seconds / size for size, seconds in self.seconds.items())

    def worthwhile(self) -> Buckets:
        """Only sizes that are ever taken, and small ones: the others would only cost memory."""
        small = max(size for size in self.seconds if size <= SMALL or size == min(self.seconds))
        return self.up_to(max(self.fit(max(self._take)), small))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self.seconds), "utf-8")

    @staticmethod
    def read(file: Path) -> Buckets:
        """Reads what `write` wrote."""
        seconds = json.loads(file.read_text("utf-8"))
        return Buckets({int(size): float(took) for size, took in seconds.items()})

    def up_to(self, largest: int) -> Buckets:
        """Only sizes up to `largest`, which is one of them."""
        return Buckets({size: took for size, took in self.seconds.items() if size <= largest})


def measure(run: Run, max_batch: int) -> Buckets:
    """Runs larger and larger batches, until two in a row reliably gain no throughput, or the next
    would take too long or does not fit into memory.

    Each size runs once before it is timed, so that no request pays for compiling, for the choice
    of algorithms or for allocating memory.
    """
    seconds: dict[int, float] = {}
    best_rate, without_gain, smaller, sample = 0.0, 0, 0, 0.0
    for size in sizes(max_batch):
        try:
            run(size)
            sample = sample or _sample(run(size))
            took = _shortest(run, size, sample)
        except Exception as error:
            if not seconds or not faults.out_of_memory(error):
                raise
            log.warning("out of memory for batches of %d: %s", size, faults.in_one_line(error))
            break
        # It cannot be slower than batches of half the size: then the machine was busy.
        seconds[size] = min(took, seconds[smaller] * size / smaller) if smaller else took
        smaller = size
        rate = size / (seconds[size] + HANDOVER)
        without_gain = 0 if rate > best_rate * GAIN else without_gain + 1
        best_rate = max(best_rate, rate)
        settled = without_gain >= 2 and seconds[size] > RELIABLE
        if settled or 2 * seconds[size] > LONGEST:
            break
    return Buckets(seconds)


def confirmed(run: Run, buckets: Buckets) -> bool:
    """Whether batches still take as long as they did: all of them together, and none much less,
    which means that the machine was busy when it was measured. Runs each size."""
    total = 0.0
    for size, seconds in buckets.seconds.items():
        run(size)  # The first may allocate.
        took = run(size)
        if took * DRIFT < seconds:
            return False
        total += took
    return total <= DRIFT * sum(buckets.seconds.values())


def _sample(single: float) -> float:
    """How long a sample lasts if a batch of one takes `single`; all in seconds."""
    return min(max(SAMPLE * single, SHORTEST_SAMPLE), LONGEST_SAMPLE)


def _shortest(run: Run, size: int, sample: float) -> float:
    """Seconds of a batch in the fastest of a few samples; one is enough for a slow batch."""
    shortest = float("inf")
    for _ in range(REPEATS):
        spent, runs = 0.0, 0
        while spent < sample:
            spent, runs = spent + run(size), runs + 1
        shortest = min(shortest, spent / runs)
        if shortest > LONGEST / REPEATS:
            break
    return shortest
