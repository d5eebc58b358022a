"""One engine starts, and captures its graphs, while another one serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.gpu_check.engines import NEAR, blueprint_for, pictures
from benchmarks.gpu_check.stage import Figures, Options
from service.engines import faults
from service.engines.cuda_graph import give_memory_back
from service.engines.engine import Warm
from service.engines.start import start_engine
from service.inference.tasks import Pixels

MAX_BATCH = 32
STARTS = 2
PAUSE = 0.01  # seconds after a fault


class Serving(threading.Thread):
    """Computes batches of all sizes by `warm` until it is stopped; counts batches and faults.

    A batch is wrong if it is not NEAR the same one before.
    """

    def __init__(self, warm: Warm, images: list[Pixels]) -> None:
        super().__init__(daemon=True)
        self.warm, self.images = warm, images
        self.served, self.wrong = 0, 0
        self.faults: list[str] = []
        self._stopping = threading.Event()
        self._first = {
            size: warm.launch(images[:size])().by_class() for size in warm.buckets.seconds
        }

    def run(self) -> None:
        while not self._stopping.is_set():
            for size, wanted in self._first.items():
                try:
                    found = self.warm.launch(self.images[:size])().by_class()
                # Whatever a library raises is what is counted.
                except Exception as error:  # noqa: BLE001
                    self.faults.append(faults.in_one_line(error))
                    time.sleep(PAUSE)
                else:
                    self.served += 1
                    self.wrong += not np.allclose(found, wanted, rtol=0, atol=NEAR)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def capture(options: Options) -> Iterator[Figures]:
    """What each of the kinds that may serve sees while an engine starts STARTS times beside it."""
    blueprint = blueprint_for(replace(options, max_batch=min(MAX_BATCH, options.max_batch)))
    images = pictures(blueprint.bundle.input, blueprint.max_batch)
    # Plain PyTorch allocates and frees while it serves, which is what a capture may forbid.
    for kind in dict.fromkeys(("eager", options.kind)):
        serving = Serving(start_engine(kind, blueprint, None), images)
        serving.start()
        ended = [
            _outcome(lambda: start_engine(options.kind, blueprint, None)) for _ in range(STARTS)
        ]
        serving.stop()
        yield {
            "serves": kind,
            "starts": ended,
            "served": serving.served,
            "wrong": serving.wrong,
            "faults": len(serving.faults),
            "first_fault": serving.faults[0] if serving.faults else None,
            # It fails if a capture left torch's allocator broken.
            "empty_cache": "ok" if options.on_cpu else _outcome(give_memory_back),
        }


def _outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001
        return faults.in_one_line(error)
    return "ok"
