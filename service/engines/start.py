"""Starts an engine: built, warmed up with every batch size, and compared with fp32."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from service.config.settings import ModelSettings, Settings
from service.config.specs import check_calibration
from service.engines import cache, faults
from service.engines.blueprint import Blueprint
from service.engines.buckets import Buckets, Run, confirmed, measure
from service.engines.compiled import compiled
from service.engines.cuda_graph import free_unused, give_memory_back
from service.engines.devices import precision_of
from service.engines.eager import eager
from service.engines.engine import Engine, Warm
from service.engines.fused import fused
from service.engines.jpeg import Image
from service.engines.jpeg_check import decoder_for
from service.engines.parity import Parity, check
from service.engines.tuning import machine
from service.inference.tasks import Embed, Explain, Task

log = logging.getLogger(__name__)


def _openvino(blueprint: Blueprint) -> Engine:
    from service.engines.openvino import openvino  # noqa: PLC0415 - an extra

    return openvino(blueprint)


KINDS: dict[str, Callable[[Blueprint], Engine]] = {
    "eager": eager,
    "compile": compiled,
    "openvino": _openvino,
    "fused": fused,
}
# Version of the file that says why a kind of engine must not be tried again.
REFUSED = 1


def blueprint_of(
    bundle: Bundle,
    model: ModelSettings,
    device: str,
    service: Settings,
    *,
    request_seconds: float = 0.0,
    turn: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Blueprint:
    """What an engine for `model` on one of `devices_of(model)` is built from.

    `request_seconds`: CPU time that HTTP takes for a request; 0: there is no HTTP. `turn`: see
    `Blueprint`.

    Raises:
        ConfigError: the precision is int8, and the bundle was not calibrated.
    """
    check_calibration(model.precision, calibrated=bool(bundle.calibration))
    return Blueprint(
        bundle=bundle,
        device=device,
        precision=precision_of(model, device),
        max_batch=model.limits([device]).max_batch,
        threads=service.engine_threads,
        request_seconds=request_seconds,
        cache=cache.folder(service.cache_dir),
        turn=turn,
        decode=model.decode,
    )


def start_engine(kind: str, blueprint: Blueprint, tolerance: float | None) -> Warm:
    """A warm engine of a kind in `KINDS`; on CUDA, with as large batches as fit into memory.

    Raises:
        RuntimeError: it cannot be built, produces NaN, or differs too much from fp32. Libraries
            may raise other exceptions.
    """
    while True:
        try:
            return _started(kind, blueprint, tolerance)
        except Exception as error:
            most, again = blueprint.max_batch, blueprint.device != "cpu"
            if most == 1 or not (again and faults.out_of_memory(error)):
                raise
            why, half = faults.in_one_line(error), most // 2
            log.warning(
                "%s: out of memory for batches of %d, starting with %d: %s",
                blueprint.bundle.name,
                most,
                half,
                why,
            )
        blueprint = replace(blueprint, max_batch=half)
        free_unused()


def _started(kind: str, blueprint: Blueprint, tolerance: float | None) -> Warm:
    warm = _warm(kind, blueprint)
    tuning = warm.engine.tuning
    if tuning is not None and tuning.outdated(warm.buckets.per_image):
        log.info("%s: measuring again: the machine was busy before", blueprint.bundle.name)
        warm = _warm(kind, replace(blueprint, fresh=True))

    def infer(images: Sequence[Image]) -> NDArray[np.float32]:
        with blueprint.turn():
            return warm.infer(images)

    blueprint.progress(f"comparing its {blueprint.comparison.name} with fp32")
    sizes, lanes = warm.buckets.seconds.keys(), warm.engine.in_flight
    warm = replace(warm, parity=check(infer, sizes, lanes, blueprint, tolerance))
    return replace(warm, decoder=decoder_for(blueprint, warm, tolerance))


def _warm(kind: str, blueprint: Blueprint) -> Warm:
    """An engine that has run every batch size, not yet compared with fp32."""
    blueprint.progress("loading the weights")
    engine = KINDS[kind](blueprint)
    blank = np.zeros(blueprint.bundle.input.shape, dtype=np.uint8)
    comparison = blueprint.comparison

    def run(size: int, *tasks: Task) -> float:
        """Seconds of a batch of blank images."""
        asked = tasks or [comparison.task] * size
        with blueprint.turn():
            began = time.perf_counter()
            ranking = engine.launch([blank] * size, size, asked)()
            seconds = time.perf_counter() - began
        details = [detail for detail in ranking.details if detail is not None]
        if not all(np.isfinite(values).all() for values in (ranking.probabilities, *details)):
            raise RuntimeError(f"the network produces NaN in {engine.precision} on {engine.device}")
        return seconds

    engine.prepare(1)
    for task in (Embed(), Explain()):  # Also allocates what the maps need.
        run(1, task)
    buckets = _buckets(run, engine, blueprint)

    def probe() -> None:
        run(1)

    return Warm(engine, buckets, Parity(0, 0.0, 0.0), probe, comparison=comparison)


def _buckets(run: Run, engine: Engine, blueprint: Blueprint) -> Buckets:
    """The batch sizes, all of which have run: from the cache if still true, else measured now."""

    def prepared(size: int) -> float:
        blueprint.progress(f"batches of {size}, of up to {blueprint.max_batch} images")
        engine.prepare(size)
        return run(size)

    if engine.tuning is None:  # On a GPU, measuring takes less time than the rest of a start.
        found = measure(prepared, blueprint.max_batch)
        give_memory_back()  # What batches took that did not fit is for others.
        return found
    path = blueprint.cached("batches", ".json", engine.name, *machine(), engine.tuning.ways)
    buckets = None if blueprint.fresh else cache.load(path, Buckets.read)
    if buckets is None or not confirmed(run, buckets):
        buckets = measured = measure(run, blueprint.max_batch).worthwhile()
        cache.store(path, measured.write)
    return buckets


def start_first(kinds: Sequence[str], blueprint: Blueprint, tolerance: float | None) -> Warm:
    """The first of `kinds` that starts, else plain PyTorch; logs each that does not.

    Raises:
        RuntimeError: plain PyTorch does not start either, or the device cannot be used any more in
            this process. If a CUDA graph is to blame, the next process uses plain PyTorch.
    """
    name = blueprint.bundle.name
    for kind in kinds:
        if kind == "eager":
            break
        refused = blueprint.cached("refused", ".txt", REFUSED, kind)
        if (reason := cache.load(refused, Path.read_text)) is not None:
            log.warning(
                "%s: using eager, because engine %s failed before; remove %s to try it again: %s",
                name,
                kind,
                refused,
                reason,
            )
            continue
        try:
            return start_engine(kind, blueprint, tolerance)
        # Compilers fail in many ways; plain PyTorch can still serve.
        except Exception as error:
            if isinstance(error, faults.CaptureFailed):
                cache.store(refused, partial(_note, str(error)))
            if faults.poisons(error):
                raise
            why = faults.in_one_line(error)
            log.warning("%s: engine %s did not start, using eager: %s", name, kind, why)
        free_unused()
    if blueprint.precision == "int8":
        blueprint = replace(blueprint, precision="fp32")
    return start_engine("eager", blueprint, tolerance)


def _note(reason: str, path: Path) -> None:
    path.write_text(reason, "utf-8")
