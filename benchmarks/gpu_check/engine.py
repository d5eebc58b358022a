"""An engine alone: its speed by batch size, its memory, and how far it is from fp32."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import EXACT_BATCH, blueprint_for, exact, expected, pictures
from benchmarks.gpu_check.stage import Figures, Options
from service.engines.blueprint import Blueprint
from service.engines.engine import Warm
from service.engines.parity import ParityError
from service.engines.start import start_engine
from service.inference.ranking import Ranking
from service.inference.tasks import Classify, Embed, Explain, Pixels, Task

SIZES = (1, 8, 32, 64, 128, 256)
FEWEST = 5  # batches of a measurement
TASKS: tuple[Task, ...] = (Explain(1), Embed(), Explain(), Classify())


def fused(options: Options) -> Iterator[Figures]:
    yield from measured("fused", options)


def eager(options: Options) -> Iterator[Figures]:
    yield from measured("eager", options)


def measured(kind: str, options: Options) -> Iterator[Figures]:
    """Its start; each of SIZES; its memory; its differences from fp32."""
    blueprint = blueprint_for(options)
    images = pictures(blueprint.bundle.input)
    began = time.perf_counter()
    try:
        warm = start_engine(kind, blueprint, None)
    except ParityError as error:
        # How fast it is wrong is of use to whoever repairs it.
        yield {"refused": str(error)}
        began = time.perf_counter()
        warm = start_engine(kind, blueprint, 1.0)
    engine = warm.engine
    yield {
        "precision": engine.precision,
        "start_s": round(time.perf_counter() - began, 2),
        "in_flight": engine.in_flight,
        "graphs": engine.graphs,
        "bucket_ms": {size: round(s * 1000, 3) for size, s in warm.buckets.seconds.items()},
        "parity": asdict(warm.parity),
    }
    at_start = _reserved(options)
    for size in SIZES:
        if size <= warm.buckets.largest:
            batch = [images[at % len(images)] for at in range(size)]
            yield {"size": size, **alone(warm, batch, options.seconds / 2)} | together(
                warm, batch, options.seconds
            )
    if not options.on_cpu:
        free, total = torch.cuda.mem_get_info(options.device)
        yield {
            "reserved_MiB": _reserved(options) >> 20,
            "grown_by_serving_MiB": (_reserved(options) - at_start) >> 20,
            # With the context, and with whatever else uses the device.
            "device_MiB": (total - free) >> 20,
        }
    yield differences(warm, images, expected(blueprint, images))
    yield details(warm, blueprint, images[:EXACT_BATCH])


def _reserved(options: Options) -> int:
    """Bytes of the device that torch holds."""
    return 0 if options.on_cpu else torch.cuda.memory_reserved(options.device)


def alone(warm: Warm, batch: Sequence[Pixels], seconds: float) -> Figures:
    """Milliseconds of one batch with nothing else in flight."""
    spent: list[float] = []
    while sum(spent) < seconds or len(spent) < FEWEST:
        began = time.perf_counter()
        warm.launch(batch)()
        spent.append(time.perf_counter() - began)
    milliseconds = sorted(each * 1000 for each in spent)
    return {
        "alone_ms": round(statistics.median(milliseconds), 3),
        "alone_p99_ms": round(milliseconds[int(0.99 * (len(spent) - 1))], 3),
    }


def together(warm: Warm, batch: Sequence[Pixels], seconds: float) -> Figures:
    """With as many batches in flight as the engine takes; `cpu`: CPUs that the process used."""
    flying: deque[Callable[[], Ranking]] = deque()
    done, cpu, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds or done < FEWEST:
        flying.append(warm.launch(batch))
        if len(flying) == warm.engine.in_flight:
            flying.popleft()()
            done += 1
    while flying:
        flying.popleft()()
        done += 1
    spent = time.perf_counter() - began
    return {
        "images_s": round(done * len(batch) / spent, 1),
        "cpu": round((time.process_time() - cpu) / spent, 2),
    }


def differences(
    warm: Warm, images: Sequence[Pixels], probabilities: NDArray[np.float32]
) -> Figures:
    """Of every batch size in every lane, with all lanes busy, from `probabilities` [N, K]."""
    engine, largest, equal, count = warm.engine, {}, 0, 0
    for size in warm.buckets.seconds:
        # All images once, and each lane at least once.
        batches = max(engine.in_flight, -(-len(images) // size))
        rows = [(at * size + np.arange(size)) % len(images) for at in range(batches)]
        by_lane = [0.0] * engine.in_flight
        for first in range(0, batches, engine.in_flight):
            lanes = rows[first : first + engine.in_flight]
            flying = [engine.launch([images[row] for row in each.tolist()], size) for each in lanes]
            for lane, (each, result) in enumerate(zip(lanes, flying, strict=True)):
                found, wanted = result().by_class(), probabilities[each]
                by_lane[lane] = max(by_lane[lane], float(np.abs(found - wanted).max()))
                equal += int((found.argmax(1) == wanted.argmax(1)).sum())
                count += size
        largest[size] = [round(each, 5) for each in by_lane]
    return {"differences": largest, "agreement": round(equal / count, 4)}


def details(warm: Warm, blueprint: Blueprint, images: Sequence[Pixels]) -> Figures:
    """Differences of features and class maps, relative to the largest, and of the probabilities of
    pixels that are no integers."""
    reference, count = exact(blueprint), min(len(images), warm.buckets.largest)
    tasks = [TASKS[at % len(TASKS)] for at in range(count)]
    wanted = reference.launch(images[:count], count, tasks)()
    found = warm.launch(images[:count], tasks)()
    # The likeliest class may be another where two are as likely: its map is, too.
    pairs = [
        (ours, exactly)
        for task, ours, exactly, mine, its in zip(
            tasks, found.details, wanted.details, found.classes, wanted.classes, strict=True
        )
        if ours is not None and exactly is not None and (task != Explain() or mine[0] == its[0])
    ]
    relative = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
    fractions = [np.minimum(each + np.float32(0.25), np.float32(255)) for each in images[:count]]
    exactly = reference.launch(fractions, count)().by_class()
    return {
        "detail_difference": round(max(relative, default=0.0), 5),
        "details": len(relative),
        "fraction_difference": round(
            float(np.abs(warm.launch(fractions)().by_class() - exactly).max()), 5
        ),
    }
