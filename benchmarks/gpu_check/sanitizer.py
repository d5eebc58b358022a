"""The engine under torch's own detector of races between streams."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from benchmarks.gpu_check.engine import TASKS
from benchmarks.gpu_check.engines import blueprint_for, pictures
from benchmarks.gpu_check.stage import Figures, NotPossible, Options
from service.engines.start import start_engine
from service.inference.tasks import Pixels

MODEL = "random:resnet20"
MAX_BATCH = 4
ROUNDS = 8


def sanitizer(options: Options) -> Iterator[Figures]:
    """Starts each kind of engine and computes every batch size in every lane; a race raises.

    torch prints to stderr which accesses race, and from where.
    """
    if "TORCH_CUDA_SANITIZER" not in os.environ:
        raise NotPossible("TORCH_CUDA_SANITIZER is not set")
    blueprint = blueprint_for(replace(options, model=MODEL, max_batch=MAX_BATCH))
    images = pictures(blueprint.bundle.input, MAX_BATCH)
    for kind in dict.fromkeys((options.kind, "eager")):
        warm = start_engine(kind, blueprint, None)
        for turn, size in enumerate(islice(cycle(warm.buckets.seconds), ROUNDS)):
            # Pixels that are no integers have memory of their own.
            pixels: list[Pixels] = list(images[:size])
            if turn % 2:
                pixels = [each.astype(np.float32) for each in pixels]
            flying = [warm.launch(pixels, TASKS[:size]) for _ in range(warm.engine.in_flight)]
            for result in flying:
                result()
        yield {"kind": kind, "races": 0, "batches": ROUNDS * warm.engine.in_flight}
