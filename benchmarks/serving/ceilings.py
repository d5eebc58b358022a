"""What each part of a request could do alone, which no service here can exceed.

python -m benchmarks.serving.ceilings --model builtin:resnet20-cifar10 FOLDER

The engine without decoding and HTTP, by batch size; one thread that decodes; HTTP with nothing
behind it. JSON on stdout, images per second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import images
from models.preprocess import InputSpec
from service.cli.load.report import Run
from service.cli.load.runs import run_load
from service.cli.load.target import Target
from service.config.loading import validated
from service.config.settings import ModelSettings, Settings
from service.engines.devices import devices_of, engines_for, set_cpu_threads
from service.engines.start import blueprint_of, start_first
from service.errors import ConfigError
from service.inference.decoding import decode_image
from service.inference.tasks import Pixels
from service.repository import catalog

Probabilities = NDArray[np.float32]
Infer = Callable[[list[Pixels]], Probabilities]
BUCKETS = (1, 2, 4, 8, 16, 32)
ECHO_CONNECTIONS = (1, 16, 64)
MAX_PIXELS = 50_000_000


def raw_engine(spec: str, engine: str, precision: str) -> Infer:
    """A warm engine, with every CPU, that takes lists of any length."""
    threads = len(os.sched_getaffinity(0))
    set_cpu_threads(threads)
    model = validated(
        ModelSettings, spec=spec, engine=engine, precision=precision, max_batch=max(BUCKETS)
    )
    service = Settings(engine_threads=threads)
    device = devices_of(model)[0]
    blueprint = blueprint_of(catalog.load(spec).bundle, model, device, service)
    # The last kind is the one that serves in the end.
    kinds = engines_for(model, device)[-1:]
    return start_first(kinds, blueprint, model.parity_tolerance).infer


def engine_rates(infer: Infer, pixels: Sequence[Pixels], seconds: float) -> dict[str, float]:
    """Images per second by batch size; `pixels` are uint8 [H, W, 3], used in turn."""
    turn = cycle(pixels)

    def batch(size: int) -> int:
        return len(infer(list(islice(turn, size))))

    return {str(size): _rate(partial(batch, size), seconds) for size in BUCKETS}


def decode_rate(encoded: Sequence[bytes], spec: InputSpec, seconds: float) -> float:
    """Images per second that one thread decodes."""
    turn = cycle(encoded)
    return _rate(
        lambda: len(decode_image(next(turn), spec, MAX_PIXELS).pixels) // spec.height, seconds
    )


def echo_rates(encoded: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Answers per second of a server that only reads and answers, by number of connections."""
    with echo() as url:
        target = Target.of(url, encoded)
        return {
            str(count): run_load(target, Run(count, seconds, warm_up=0.3)).images_per_second
            for count in ECHO_CONNECTIONS
        }


@contextmanager
def echo() -> Iterator[str]:
    """The URL of a running `benchmarks.serving.echo`."""
    command = [sys.executable, "-m", "benchmarks.serving.echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Per second, of what `work` returns the number of."""
    work()  # The first time may allocate.
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
    return round(done / elapsed, 1)


def measure(
    spec: str, encoded: Sequence[bytes], *, engine: str, precision: str, seconds: float
) -> dict[str, Any]:
    """All ceilings; `seconds` for each figure.

    Raises:
        ConfigError: the model, the engine or the precision cannot be had.
    """
    infer = raw_engine(spec, engine, precision)
    input_spec = catalog.load(spec).bundle.input
    pixels = [decode_image(image, input_spec, MAX_PIXELS).pixels for image in encoded]
    return {
        "engine": engine_rates(infer, pixels, seconds),
        "engine_threads": len(os.sched_getaffinity(0)),
        "decode_one_thread": decode_rate(encoded, input_spec, seconds),
        "echo": echo_rates(encoded, seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:resnet20-cifar10", help="a SPEC")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("folder", type=Path, help="its files are the images")
    given = parser.parse_args()
    try:
        figures = measure(
            given.model,
            images.read(given.folder),
            engine=given.engine,
            precision=given.precision,
            seconds=given.seconds,
        )
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
