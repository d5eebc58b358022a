"""`resnet-serve` with a device that computes nothing and takes its time.

python -m benchmarks.scale.sleeping_engine serve --model random:resnet20

It stands in for an accelerator, which leaves the CPUs to everything else: what is then measured is
the service around an engine. Its probabilities mean nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from service.cli.main import main
from service.engines.host import HostEngine
from service.engines.jpeg import Image
from service.inference.ranking import Ranking, rank
from service.inference.tasks import Task

# Seconds by batch size, of the shape that a GPU's have: small batches take as long as smaller ones.
SECONDS = {1: 0.080, 2: 0.082, 4: 0.086, 8: 0.100, 16: 0.160}
CLASSES = 10
# Settings without which the service would refuse such an engine, or ask it for larger batches.
ENVIRONMENT = {
    "RESNET_SERVE_PARITY_TOLERANCE": "1",
    "RESNET_SERVE_MAX_BATCH": str(max(SECONDS)),
    "RESNET_SERVE_ENGINE": "eager",
}


def launch(
    self: HostEngine, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
) -> Callable[[], Ranking]:
    """In the place of `HostEngine.launch`; there are no details."""
    ready = time.perf_counter() + SECONDS[size]
    probabilities = np.full((len(images), CLASSES), 1 / CLASSES, dtype=np.float32)

    def collect() -> Ranking:
        time.sleep(max(0.0, ready - time.perf_counter()))
        return rank(probabilities)

    return collect


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    HostEngine.launch = launch  # type: ignore[method-assign]
    main()
