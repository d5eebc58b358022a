"""With how many threads and streams an engine computes on the CPU: chosen by measuring.

A batch is computed whole, by all of the engine's threads, or shared among streams, each of which
computes its part with fewer threads that wait less for each other. Small batches are faster whole,
large ones shared; on which machine, and from which size on, only measuring tells.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import hardware
from models.preprocess import InputSpec
from service import runtime
from service.config import capacity
from service.config.capacity import PLAN, Costs
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.inference.decoding import decode

# Of the kept file.
FORM = 2
# Seconds after which no further way to split batches is tried.
BUDGET = 1.0
# Batches are timed up to the size that takes this many seconds.
LONGEST = 0.1
REPEATS = 3
# Splitting must be this much faster, since it needs a second copy of the weights.
GAIN = 1.05
# Of fewer threads, none waits long for another: on two CPUs, splits gained 3 and 5 %.
FEWEST_TO_SPLIT = 4
# What was measured on a machine so much slower than it is now is measured again.
OUTDATED = 1.5
# Up to this many pixels a side, images are sent as PNG, and beyond as photographs.
SMALL_SIDE = 64
PHOTO = (500, 375)
# Of the typical file as a network sees it: more than any asks for.
MAX_PIXELS = 2**30
Seconds = Mapping[int, float]  # by the size of the batch
# Pixels 0 to 255, float32 [N, H, W, 3], to probabilities [N, K] and the maps that they came from
# [N, C, h, w], which are fetched before the next call if they are wanted.
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
    """`whole` is how small batches are computed; `split`, where it is any faster, is how those of
    `split_from` images and more are. `costs` led to it, None where the user chose; `per_image`:
    the seconds for an image that were measured with it, 0: none were."""

    whole: Way
    split: Way | None = None
    split_from: int = 0
    costs: Costs | None = None
    per_image: float = 0.0

    @property
    def ways(self) -> tuple[object, ...]:
        """All that decides how long a batch takes."""
        return self.whole, self.split, self.split_from

    def outdated(self, per_image: float) -> bool:
        """Whether the machine is now, when an image takes `per_image` seconds, so much faster that
        another choice may be right: it was busy when it was measured."""
        return self.per_image > OUTDATED * per_image

    def describe(self) -> dict[str, Any]:
        """As `GET /v1/models` tells it."""
        figures: dict[str, Any] = {"threads": self.whole.threads}
        if self.split is not None:
            figures |= {"streams": self.split.streams, "split_from": self.split_from}
        if self.costs is not None:
            costs = asdict(self.costs).items()
            figures["cpu_ms"] = {part: round(seconds * 1000, 3) for part, seconds in costs}
        return figures

    def __str__(self) -> str:
        text = f"{self.whole.threads} threads"
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
    """The tuning of an engine of a kind, whose forwards `build` makes.

    `streams`: whether batches can be split, and threads sleep while they wait; torch's spin.

    It is kept between starts: for the same network, on the same machine.
    """
    if blueprint.threads is not None and (blueprint.threads < FEWEST_TO_SPLIT or not streams):
        return Tuning(Way(blueprint.threads))
    facts = (FORM, kind, streams, blueprint.threads, blueprint.request_seconds > 0)
    path = blueprint.cached("tuning", ".json", *facts, *machine())
    kept = None if blueprint.fresh else cache.kept(path, _read)
    if kept is not None:
        return kept
    tuning = measured(build, blueprint, streams=streams)
    if blueprint.fresh and blueprint.cache is not None:
        # What was planned from costs that are wrong is wrong, too: the next start measures.
        for plan in blueprint.cache.glob(f"{PLAN}-*.json"):
            plan.unlink(missing_ok=True)
    cache.keep(path, lambda file: file.write_text(json.dumps(asdict(tuning)), "utf-8"))
    return tuning


def machine() -> tuple[str, float]:
    """What figures that were measured are true of."""
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


def measured(build: Callable[[Way], Forward], blueprint: Blueprint, *, streams: bool) -> Tuning:
    """The tuning by what this machine does now."""
    threads = blueprint.threads or (runtime.cpus() if streams else runtime.spinning_threads())
    began = time.perf_counter()

    def timed(way: Way) -> Seconds:
        return seconds_of(build(way), blueprint)  # No two at once: each has its own weights.

    whole = timed(Way(threads))
    splits: dict[Way, Seconds] = {}
    for way in _splits(threads, blueprint.max_batch) if streams else ():
        splits[way] = timed(way)
        slower = len(splits) > 1 and per_image(splits[way]) >= min(map(per_image, splits.values()))
        if slower or time.perf_counter() - began > BUDGET:
            break
    tuning = chosen(threads, whole, splits)
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


def chosen(threads: int, whole: Seconds, splits: Mapping[Way, Seconds]) -> Tuning:
    """The fastest of all ways that use so many threads."""
    tuning = Tuning(Way(threads), per_image=per_image(whole))
    if not splits:
        return tuning
    split, seconds = min(splits.items(), key=lambda item: per_image(item[1]))
    if per_image(whole) < per_image(seconds) * GAIN:
        return tuning
    return Tuning(Way(threads), split, first_faster(seconds, whole), per_image=per_image(seconds))


def with_fewer(tuning: Tuning, threads: int) -> Tuning:
    """The same for fewer threads: fewer streams of as many as before."""
    split = tuning.split and Way(tuning.split.threads, threads // tuning.split.threads)
    if split is None or split.streams < 2:
        return Tuning(Way(threads))
    return Tuning(Way(threads), split, tuning.split_from)


def _splits(threads: int, max_batch: int) -> Iterator[Way]:
    """Streams of as few threads as use all of them, then of twice as many, and so on."""
    if threads < FEWEST_TO_SPLIT:
        return
    per_stream = -(-threads // max_batch)
    while threads // per_stream >= 2:
        yield Way(per_stream, threads // per_stream)
        per_stream *= 2


def per_image(seconds: Seconds) -> float:
    """Seconds for an image in the batch size that computes most of them."""
    return min(took / size for size, took in seconds.items())


def first_faster(split: Seconds, whole: Seconds) -> int:
    """The smallest size from which on every batch is faster when it is split."""
    sizes = sorted(split.keys() & whole.keys())
    slower = [size for size in sizes if split[size] >= whole[size]]
    return next((size for size in sizes if not slower or size > slower[-1]), sizes[-1])


def seconds_of(forward: Forward, blueprint: Blueprint) -> Seconds:
    """How long batches of 1, 2, 4 ... images take, as far as they take no longer than LONGEST."""
    side = blueprint.bundle.input.size
    seconds: dict[int, float] = {}
    size = 1
    while size <= blueprint.max_batch:
        blank = np.zeros((size, side, side, 3), np.float32)
        # The first run allocates; it is one of those that count where it takes long.
        times = [_took(forward, blank)]
        while len(times) <= REPEATS and sum(times) < LONGEST:
            times.append(_took(forward, blank))
        seconds[size] = min(times)
        if 2 * seconds[size] > LONGEST:
            break
        size *= 2
    return seconds


def _took(forward: Forward, batch: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    forward(batch)
    return time.perf_counter() - started


def decode_seconds(spec: InputSpec) -> float:
    """How long one thread decodes a typical file for: a photograph, or a small PNG."""
    file = typical_file(spec)

    def took() -> float:
        started = time.perf_counter()
        decode(file, spec, MAX_PIXELS)
        return time.perf_counter() - started

    return min(took() for _ in range(2 * REPEATS))


def typical_file(spec: InputSpec) -> bytes:
    """A JPEG of about 45 kB and 500 x 375 pixels; for small networks a PNG of their input's size.

    Noise makes it take as long as a photograph, which a smooth picture of that size does not.
    """
    small = spec.size <= SMALL_SIDE
    width, height = (spec.size, spec.size) if small else PHOTO
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, 10, (height, width, 1))
    buffer = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(buffer, "PNG" if small else "JPEG")
    return buffer.getvalue()
