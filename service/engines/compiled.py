"""Compiled for the CPU by torch's Inductor into a package on disk, which later starts load."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import bundle as bundles
from models import files
from service.engines import cache, faults
from service.engines.blueprint import Blueprint
from service.engines.eager import InPrecision, on_arrays
from service.engines.host import HostEngine
from service.engines.tuning import Forward, Tuning, Way, tune

log = logging.getLogger(__name__)
# Version of the cached package: float32 pixels in, probabilities and maps out.
FORM = 2
# Compiling takes a minute of one CPU, and longer on a busy machine; longer than this, it hangs.
MOST_SECONDS = 30 * 60
REMEDY = (
    "torch executes a compiled network from the folder for temporary files: set TMPDIR to a folder "
    "where that is allowed"
)


def compiled(blueprint: Blueprint) -> HostEngine:
    """The network compiled ahead of time with frozen weights, one package for all batch sizes.

    Compiling takes a minute of one CPU. It runs in its own process, so that it neither slows the
    service's threads down nor leaves its memory behind.

    Raises:
        RuntimeError: it cannot be compiled, for instance because there is no C++ compiler, or not
            be executed from the folder for temporary files.
    """
    temporary = tempfile.gettempdir()
    if os.statvfs(temporary).f_flag & os.ST_NOEXEC:
        raise RuntimeError(f"{temporary} is mounted noexec; {REMEDY}")
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
    try:
        run: Any = torch._inductor.aoti_load_package(str(package))
    except RuntimeError as error:
        if faults.not_executable(error):
            raise RuntimeError(f"{faults.in_one_line(error)}; {REMEDY}") from error
        raise
    forward = on_arrays(run, tuning.whole.threads)
    return HostEngine("compile", blueprint, forward, tuning)


def _compile_in_process(blueprint: Blueprint, threads: int, package: Path) -> None:
    weights = package.with_name("weights.safetensors")
    bundles.write(blueprint.bundle, weights)
    log.info("compiling %s for the CPU", blueprint.bundle.name)
    module = [sys.executable, "-m", "service.engines.compiler"]
    own_code = blueprint.bundle.own_code
    numbers = [str(number) for number in (blueprint.max_batch, threads)]
    # The compiler ends, with compilers of its own, when this pipe closes: as this process ends.
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603
            [*module, str(weights), blueprint.precision, *numbers, str(package), *own_code],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise RuntimeError(
                f"torch has not compiled it within {MOST_SECONDS / 60:.0f} minutes"
            ) from None
    finally:
        os.close(reading)
        os.close(writing)
    if process.returncode != 0 or not package.exists():
        lines = [line for line in said.splitlines() if line.strip()]
        raise RuntimeError(
            f"torch could not compile it: {lines[-1] if lines else 'no reason given'}"
        )
