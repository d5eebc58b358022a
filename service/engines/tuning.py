"""How many threads and streams an engine uses on the CPU: chosen by measuring.

A batch is computed whole, by all of the engine's threads, or split among streams, each of which
computes its part with fewer threads that wait less for each other. Small batches are faster whole,
large ones split; from which size on depends on the machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import hardware
from service import runtime
from service.config import capacity
from service.config.capacity import PLAN, Costs
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.comparison import FEATURES, Comparison
from service.engines.decode_cost import decode_seconds

# Version of the cached file.
FORM = 2
# Seconds after which no more ways to split batches are tried.
BUDGET = 1.0
# Batches are timed up to the size that takes this many seconds.
LONGEST = 0.1
REPEATS = 3
# Splitting must be this much faster, because it needs a second copy of the weights.
GAIN = 1.05
# Fewer threads do not wait long for each other: on two CPUs, splitting gained 3 and 5 %.
FEWEST_TO_SPLIT = 4
# If the machine is now faster by this factor, it is measured again.
OUTDATED = 1.5
Seconds = Mapping[int, float]  # by the size of the batch
# Pixels 0 to 255, float32 [N, H, W, C], to probabilities [N, K] and a function that fetches their
# maps [N, F, h, w] until the next call.
Forward = Callable[
    [NDArray[np.float32]], tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]
]


@dataclass(frozen=True, slots=True)
class Way:
    """`streams` parts of a batch at once, each computed by `threads`."""

    threads: int
    streams: int = 1


@dataclass(frozen=True, slots=True)
class Tuning:
    """`whole` computes small batches; `split`, if it is faster, those of `split_from` images and
    more. `costs` led to this choice, None: the user chose; `per_image`: the seconds that were
    measured for an image, 0: none were."""

    whole: Way
    split: Way | None = None
    split_from: int = 0
    costs: Costs | None = None
    per_image: float = 0.0

    @property
    def ways(self) -> tuple[object, ...]:
        """All that determines how long a batch takes."""
        return self.whole, self.split, self.split_from

    def outdated(self, per_image: float) -> bool:
        """Whether the machine was busy when it was measured: an image now takes `per_image`
        seconds, so much less that another choice may be right."""
        return self.per_image > OUTDATED * per_image

    def describe(self) -> dict[str, Any]:
        """The part of `GET /v1/models`."""
        figures: dict[str, Any] = {"threads": self.whole.threads}
        if self.split is not None:
            figures |= {"streams": self.split.streams, "split_from": self.split_from}
        if self.costs is not None:
            costs = asdict(self.costs).items()
            figures["cpu_ms"] = {part: round(seconds * 1000, 3) for part, seconds in costs}
        return figures

    def __str__(self) -> str:
        threads = self.whole.threads
        text = f"{threads} thread{'' if threads == 1 else 's'}"
        if self.split is not None:
            text += f", batches of {self.split_from} or more in {self.split.streams} streams"
        if self.costs is not None:
            engine, decoding, request = (seconds * 1000 for seconds in asdict(self.costs).values())
            text += (
                f"; an image costs {engine:.3g} ms of CPU in the engine, {decoding:.3g} ms in the "
                f"decoder and {request:.3g} ms in HTTP, on {runtime.cpu_time():g} CPUs"
            )
        return text


def tune(
    build: Callable[[Way], Forward], blueprint: Blueprint, kind: str, *, streams: bool
) -> Tuning:
    """The tuning of an engine of a kind, whose forwards `build` makes; cached between starts for
    the same network and machine.

    `streams`: whether batches can be split, and threads sleep while they wait; torch's spin.
    """
    if blueprint.threads is not None and (blueprint.threads < FEWEST_TO_SPLIT or not streams):
        return Tuning(Way(blueprint.threads))
    facts = (FORM, kind, streams, blueprint.threads, blueprint.request_seconds > 0)
    path = blueprint.cached("tuning", ".json", *facts, *machine())
    cached = None if blueprint.fresh else cache.load(path, _read)
    if cached is not None:
        return cached
    tuning = measure(build, blueprint, streams=streams)
    if blueprint.fresh and blueprint.cache is not None:
        # Plans made from wrong costs are wrong, too: the next start measures.
        for plan in blueprint.cache.glob(f"{PLAN}-*.json"):
            plan.unlink(missing_ok=True)
    cache.store(path, lambda file: file.write_text(json.dumps(asdict(tuning)), "utf-8"))
    return tuning


def machine() -> tuple[str, float]:
    """What measurements depend on."""
    return hardware.name("cpu"), runtime.cpu_time()


def _read(file: Path) -> Tuning:
    values = json.loads(file.read_text("utf-8"))
    split, costs = values["split"], values["costs"]
    return Tuning(
        Way(**values["whole"]),
        Way(**split) if split else None,
        values["split_from"],
        Costs(**costs) if costs else None,
        values["per_image"],
    )


def measure(build: Callable[[Way], Forward], blueprint: Blueprint, *, streams: bool) -> Tuning:
    """The tuning for this machine, measured now."""
    threads = blueprint.threads or (runtime.cpus() if streams else runtime.spinning_threads())
    began = time.perf_counter()

    def timed(way: Way) -> Seconds:
        return seconds_of(build(way), blueprint)  # One at a time: each has its own weights.

    whole = timed(Way(threads))
    splits: dict[Way, Seconds] = {}
    for way in _splits(threads, blueprint.max_batch) if streams else ():
        splits[way] = timed(way)
        slower = len(splits) > 1 and per_image(splits[way]) >= min(map(per_image, splits.values()))
        if slower or time.perf_counter() - began > BUDGET:
            break
    tuning = choose(threads, whole, splits)
    if blueprint.threads is not None:
        return tuning
    costs = Costs(
        engine=tuning.per_image * min(threads, runtime.cpu_time()),
        decode=decode_seconds(blueprint.bundle.input),
        request=blueprint.request_seconds,
    )
    fewer = capacity.engine_threads(costs, runtime.cpu_time())
    if fewer >= threads:
        return replace(tuning, costs=costs)
    return replace(with_fewer(tuning, fewer), costs=costs, per_image=per_image(timed(Way(fewer))))


def choose(threads: int, whole: Seconds, splits: Mapping[Way, Seconds]) -> Tuning:
    """The fastest of the ways that use `threads` threads."""
    tuning = Tuning(Way(threads), per_image=per_image(whole))
    if not splits:
        return tuning
    split, seconds = min(splits.items(), key=lambda item: per_image(item[1]))
    if per_image(whole) < per_image(seconds) * GAIN:
        return tuning
    return Tuning(Way(threads), split, first_faster(seconds, whole), per_image=per_image(seconds))


def with_fewer(tuning: Tuning, threads: int) -> Tuning:
    """The tuning for fewer threads: fewer streams of the same number of threads."""
    split = tuning.split and Way(tuning.split.threads, threads // tuning.split.threads)
    if split is None or split.streams < 2:
        return Tuning(Way(threads))
    return Tuning(Way(threads), split, tuning.split_from)


def _splits(threads: int, max_batch: int) -> Iterator[Way]:
    """Streams of as few threads as can use all of them, then of twice as many, and so on."""
    if threads < FEWEST_TO_SPLIT:
        return
    per_stream = -(-threads // max_batch)
    while threads // per_stream >= 2:
        yield Way(per_stream, threads // per_stream)
        per_stream *= 2


def per_image(seconds: Seconds) -> float:
    """Seconds for an image, at the batch size with the highest throughput."""
    return min(took / size for size, took in seconds.items())


def first_faster(split: Seconds, whole: Seconds) -> int:
    """The smallest size from which on every batch is faster split."""
    sizes = sorted(split.keys() & whole.keys())
    slower = [size for size in sizes if split[size] >= whole[size]]
    return next((size for size in sizes if not slower or size > slower[-1]), sizes[-1])


def seconds_of(forward: Forward, blueprint: Blueprint) -> Seconds:
    """How long batches of 1, 2, 4 ... images take, up to those that take LONGEST."""
    seconds: dict[int, float] = {}
    size = 1
    while size <= blueprint.max_batch:
        blank = np.zeros((size, *blueprint.bundle.input.shape), np.float32)
        # The first run allocates; of a slow batch, it is the only one.
        times = [_took(forward, blank, blueprint.comparison)]
        while len(times) <= REPEATS and sum(times) < LONGEST:
            times.append(_took(forward, blank, blueprint.comparison))
        seconds[size] = min(times)
        if 2 * seconds[size] > LONGEST:
            break
        size *= 2
    return seconds


def _took(forward: Forward, batch: NDArray[np.float32], comparison: Comparison) -> float:
    started = time.perf_counter()
    _, fetch = forward(batch)
    if comparison == FEATURES:
        fetch()
    return time.perf_counter() - started
