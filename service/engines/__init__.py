"""Engines: one network on one device, from pixels to ranked probabilities."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from service.engines import cache, faults
from service.engines.blueprint import Blueprint
from service.engines.buckets import Buckets, confirmed, measure
from service.engines.compiled import compiled
from service.engines.eager import eager
from service.engines.hardware import devices, engines_for, precision, set_cpu_threads
from service.engines.parity import Parity, check
from service.engines.tuning import Tuning, machine
from service.errors import ConfigError
from service.ranking import Ranking
from service.settings import ModelSettings, Settings
from service.task import Head, Pixels

__all__ = [
    "Blueprint", "Engine", "Parity", "Ranking", "Warm", "blueprint", "devices", "engines_for",
    "faults", "precision", "set_cpu_threads", "start", "start_any",
]  # fmt: skip

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a worker thread drives; only that one thread calls it.

    `name`: the kind; `device`: where it runs; `precision`: fp32, bf16, fp16 or int8;
    `in_flight`: how many batches may be launched before the first of them is collected;
    `tuning`: of an engine on the CPU, how many threads it has, and why.
    """

    name: str
    device: str
    precision: str
    in_flight: int

    @property
    def tuning(self) -> Tuning | None: ...

    def launch(
        self, images: Sequence[Pixels], size: int, *, maps: bool = False
    ) -> Callable[[], Ranking]:
        """Begins to compute N images [H, W, 3], padded to `size`.

        The result waits for the end and gives the ranking, with the network's `maps` if they are
        wanted; batches are collected in the order in which they were launched.
        """


def _openvino(blueprint: Blueprint) -> Engine:
    from service.engines.openvino import openvino  # noqa: PLC0415 - an extra

    return openvino(blueprint)


KINDS: dict[str, Callable[[Blueprint], Engine]] = {
    "eager": eager,
    "compile": compiled,
    "openvino": _openvino,
}


@dataclass(frozen=True)
class Warm:
    """An engine that has run every batch size and was compared with fp32.

    `probe` is one real forward, which raises if it fails or gives NaN; `head` is the network's.
    """

    engine: Engine
    buckets: Buckets
    parity: Parity
    probe: Callable[[], None]
    head: Head

    def launch(self, images: Sequence[Pixels], *, maps: bool = False) -> Callable[[], Ranking]:
        """As the engine's, for at most `buckets.largest` images."""
        return self.engine.launch(images, self.buckets.fit(len(images)), maps=maps)

    def up_to(self, largest: int) -> Warm:
        """The same engine, for batches of at most as many images as `largest` are padded to."""
        return replace(self, buckets=self.buckets.up_to(self.buckets.fit(largest)))

    def infer(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Probabilities [N, K] of any number of images, in the order of the classes."""
        step = self.buckets.largest
        pieces = [images[start : start + step] for start in range(0, len(images), step)]
        return np.concatenate([self.launch(piece)().by_class() for piece in pieces])

    def describe(self) -> dict[str, Any]:
        tuning = self.engine.tuning
        return {
            **({} if tuning is None else tuning.describe()),
            "batch_ms": {n: round(s * 1000, 3) for n, s in self.buckets.seconds.items()},
            "parity": asdict(self.parity),
        }


def blueprint(
    bundle: Bundle,
    model: ModelSettings,
    device: str,
    service: Settings,
    *,
    request_seconds: float = 0.0,
) -> Blueprint:
    """What an engine for `model` on one of `devices(model)` is built from.

    `request_seconds`: CPU time of a request's HTTP; 0: nothing comes over HTTP.

    Raises:
        ConfigError: int8 is asked for, and the bundle was not calibrated.
    """
    if model.precision == "int8" and not bundle.calibration:
        raise ConfigError(
            "precision: int8 needs a calibrated bundle; "
            "`resnet-serve calibrate --model SPEC IMAGES OUT.safetensors` makes one"
        )
    return Blueprint(
        bundle=bundle,
        device=device,
        precision=precision(model, device),
        max_batch=model.max_batch,
        threads=service.engine_threads,
        request_seconds=request_seconds,
        cache=cache.folder(service.cache_dir),
    )


def start(kind: str, blueprint: Blueprint, tolerance: float | None) -> Warm:
    """A warm engine of a kind in `KINDS`.

    Raises:
        RuntimeError: it cannot be built, gives NaN, or differs too much from fp32. Libraries
            may raise other things as well.
    """
    warm = _warm(kind, blueprint)
    tuning = warm.engine.tuning
    if tuning is not None and tuning.outdated(warm.buckets.per_image):
        log.info("%s: measured again: the machine is faster than it was", blueprint.bundle.name)
        warm = _warm(kind, replace(blueprint, fresh=True))
    return replace(warm, parity=check(warm.infer, blueprint, tolerance))


def _warm(kind: str, blueprint: Blueprint) -> Warm:
    """An engine that has run every batch size, not yet compared with fp32."""
    engine = KINDS[kind](blueprint)
    blank = np.zeros((blueprint.bundle.input.size,) * 2 + (3,), dtype=np.uint8)

    def run(size: int, *, maps: bool = False) -> None:
        ranking = engine.launch([blank] * size, size, maps=maps)()
        if not np.isfinite(ranking.probabilities).all():
            raise RuntimeError(f"the network gives NaN in {engine.precision} on {engine.device}")

    run(1, maps=True)  # What is needed for them is taken now, too.
    buckets = _buckets(run, engine, blueprint)
    last: Any = blueprint.bundle.network().head
    head = Head(*(part.detach().float().numpy().copy() for part in (last.weight, last.bias)))
    return Warm(engine, buckets, Parity(0, 0.0, 0.0), lambda: run(1), head)


def _buckets(run: Callable[[int], object], engine: Engine, blueprint: Blueprint) -> Buckets:
    """The batch sizes, which have all been run: as they were measured at an earlier start, if that
    is still true, else as they are measured now."""
    if engine.tuning is None:  # A GPU measures its own in less time than a start takes.
        return measure(run, blueprint.max_batch)
    path = blueprint.cached("batches", ".json", engine.name, *machine(), engine.tuning.ways)
    buckets = None if blueprint.fresh else cache.kept(path, Buckets.read)
    if buckets is None or not confirmed(run, buckets):
        buckets = measured = measure(run, blueprint.max_batch).worthwhile()
        cache.keep(path, measured.write)
    return buckets


def start_any(kinds: Sequence[str], blueprint: Blueprint, tolerance: float | None) -> Warm:
    """The first of `kinds` that starts, else plain PyTorch; a log line for each that does not.

    Raises:
        RuntimeError: plain PyTorch does not start either.
    """
    for kind in kinds:
        if kind == "eager":
            break
        try:
            return start(kind, blueprint, tolerance)
        # Compilers fail in many ways; whichever it is, plain PyTorch can still serve.
        except Exception as error:  # noqa: BLE001
            log.warning(
                "%s: engine %s did not start, eager serves: %s", blueprint.bundle.name, kind, error
            )
    if blueprint.precision == "int8":
        blueprint = replace(blueprint, precision="fp32")
    return start("eager", blueprint, tolerance)
