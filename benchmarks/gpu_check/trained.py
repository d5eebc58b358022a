"""Whether engines choose the classes that fp32 chooses, with the trained network that is built in:
an untrained one has hardly any margin between its classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gpu_check.engine import differences
from benchmarks.gpu_check.engines import blueprint_for, expected, pictures
from benchmarks.gpu_check.stage import Figures, Options
from service.engines.start import start_engine

MODEL = "builtin:resnet20-cifar10"
COUNT = 256
MAX_BATCH = 64


def trained(options: Options) -> Iterator[Figures]:
    """By kind of engine: the share of images whose class is fp32's."""
    blueprint = blueprint_for(replace(options, model=MODEL, max_batch=MAX_BATCH))
    images = pictures(blueprint.bundle.input, COUNT)
    probabilities = expected(blueprint, images)
    for kind in dict.fromkeys((options.kind, "eager")):
        found = differences(start_engine(kind, blueprint, None), images, probabilities)
        yield {"kind": kind, "images": COUNT, **found}
