"""Too little memory on the device: at the start, and while serving."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu_check.engines import blueprint_for, pictures
from benchmarks.gpu_check.served import Served
from benchmarks.gpu_check.stage import Figures, Options
from service.engines.cuda_graph import give_memory_back
from service.engines.start import start_engine

# Of the memory that the engine takes if it can: enough for its weights and for what goes in and
# comes out, too little for the largest batches.
SHARE = 0.6
LOADED = 64
DELAY = 0.2  # seconds that images wait for each other, so that they are one batch


def memory(options: Options) -> Iterator[Figures]:
    """Whether an engine that does not fit serves with smaller batches."""
    # Its cache may note that the engine did not start, which holds for no other stage.
    yield at_the_start(replace(options, scratch=options.scratch / "memory"))
    _limit(options.device, None)
    yield under_load(replace(options, max_batch=LOADED))


def at_the_start(options: Options) -> Figures:
    """An engine starts with SHARE of the memory that it takes otherwise."""
    blueprint = blueprint_for(options)
    images = pictures(blueprint.bundle.input)
    largest = start_engine(options.kind, blueprint, None).buckets.largest
    limit = int(SHARE * torch.cuda.max_memory_reserved(options.device))
    gc.collect()  # The engine.
    give_memory_back()
    _limit(options.device, limit)
    served = Served(options, options.kind)
    running = served.running
    found = asyncio.run(served.ask(images))
    served.close()
    return {
        "when": "start",
        "limit_MiB": limit >> 20,
        "engine": running.engine.name,
        "largest_before": largest,
        "largest": running.buckets.largest,
        "answered": len(found),
        "smaller": running.buckets.largest < largest,
    }


def under_load(options: Options) -> Figures:
    """Memory goes while an engine serves that allocates as it computes: plain PyTorch."""
    images = pictures(blueprint_for(options).bundle.input, LOADED)
    served = Served(options, "eager", max_delay=DELAY)
    running, device = served.running, options.device
    taken = running.buckets.take(LOADED)
    # The thread is idle: nothing was asked yet.
    needs = []
    for size in (taken // 2, taken):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        running.launch(images[:size])()
        needs.append(torch.cuda.max_memory_allocated(device) - before)
    give_memory_back()
    _limit(device, torch.cuda.memory_reserved(device) + sum(needs) // 2)
    first = asyncio.run(served.ask(images))
    after_first = served.events.out_of_memory
    second = asyncio.run(served.ask(images))
    largest = served.running.buckets.largest
    served.close()
    return {
        "when": "serving",
        "batch": taken,
        "needs_MiB": [need >> 20 for need in needs],
        "answered": len(first) + len(second),
        "out_of_memory": after_first,
        "out_of_memory_later": served.events.out_of_memory - after_first,
        "largest": largest,
        "smaller": largest < taken,
        "state": served.thread.state,
    }


def _limit(device: str, limit: int | None) -> None:
    """Lets this process take so many bytes of the device; None: all of them."""
    total = torch.cuda.mem_get_info(device)[1]
    fraction = 1.0 if limit is None else min(1.0, limit / total)
    torch.cuda.set_per_process_memory_fraction(fraction, torch.device(device))
