"""Compiled by torch's Inductor into a package on disk, which later starts load."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import bundle as bundles
from models import files
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.eager import InPrecision, on_arrays
from service.engines.host import HostEngine
from service.engines.tuning import Forward, Tuning, Way, tune

log = logging.getLogger(__name__)
# Version of the cached package: float32 pixels in, probabilities and maps out.
FORM = 2


def compiled(blueprint: Blueprint) -> HostEngine:
    """The network compiled ahead of time with frozen weights, one package for all batch sizes.

    Compiling takes a minute of one CPU. It runs in its own process, so that it neither slows the
    service's threads down nor leaves its memory behind.

    Raises:
        RuntimeError: it cannot be compiled, for instance because there is no C++ compiler.
    """
    tuning = _tuning(blueprint)
    threads = tuning.whole.threads
    package = blueprint.cached("compiled", ".pt2", FORM, threads)
    if (engine := cache.load(package, partial(_engine, blueprint, tuning))) is not None:
        return engine
    with files.scratch("compile") as folder:
        compiled_package = folder / "network.pt2"
        _compile_in_process(blueprint, threads, compiled_package)
        cache.store(package, lambda path: shutil.copyfile(compiled_package, path))
        return _engine(blueprint, tuning, compiled_package)


def _tuning(blueprint: Blueprint) -> Tuning:
    """Threads are compiled in: the plain network is timed to choose them."""

    def build(way: Way) -> Forward:
        return on_arrays(InPrecision(blueprint), way.threads)

    return tune(build, blueprint, "eager", streams=False)


def _engine(blueprint: Blueprint, tuning: Tuning, package: Path) -> HostEngine:
    run: Any = torch._inductor.aoti_load_package(str(package))
    forward = on_arrays(run, tuning.whole.threads)
    return HostEngine("compile", blueprint, forward, tuning)


def _compile_in_process(blueprint: Blueprint, threads: int, package: Path) -> None:
    weights = package.with_name("weights.safetensors")
    bundles.write(blueprint.bundle, weights)
    log.info("compiling %s for %s", blueprint.bundle.name, blueprint.device)
    # The compiler ends, with compilers of its own, when this pipe closes: as this process ends.
    reading, writing = os.pipe()
    try:
        process = subprocess.run(  # noqa: S603
            [
                sys.executable,
                "-m",
                "service.engines.compiler",
                str(weights),
                blueprint.device,
                blueprint.precision,
                str(blueprint.max_batch),
                str(threads),
                str(package),
            ],
            stdin=reading,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
    finally:
        os.close(reading)
        os.close(writing)
    if process.returncode != 0 or not package.exists():
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        raise RuntimeError(
            f"torch could not compile it: {lines[-1] if lines else 'no reason given'}"
        )
