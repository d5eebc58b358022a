"""The models that this process serves: their queues and engines."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from models.resnet import on_meta
from models.summary import count_layers, count_macs, count_parameters, map_side
from models.variants import variant
from service.config import capacity
from service.config.settings import ModelSettings, Settings
from service.engines.device_share import Turns
from service.engines.devices import devices_of, engines_for, precision_of, set_cpu_threads
from service.engines.engine import Warm
from service.engines.engine_thread import Worker
from service.engines.start import blueprint_of, start_engine, start_first
from service.errors import ConfigError, LoadFailed
from service.inference.batcher import Batcher
from service.inference.ranking import Row
from service.inference.refcount import Lease
from service.inference.tasks import Pixels
from service.metrics import Metrics, ModelInfo
from service.repository import catalog
from service.repository.registry import Roster
from service.runtime import in_daemon, spinning_threads

log = logging.getLogger(__name__)
DeviceTurns = defaultdict[str, Turns]
# Between two looks at engines that load in threads of their own.
LOOK_SECONDS = 0.02
# What is wrong with a configuration, a file or a number; anything else is unforeseen.
FORESEEN = (ValueError, OSError, ArithmeticError)


class Model:
    """A served model: its queue, its engines, and what is true of its network.

    `batch_share` is how many places in the queue one request with many images takes at a time.

    Raises:
        ConfigError: its SPEC, device or precision cannot be served.
    """

    def __init__(
        self,
        settings: ModelSettings,
        service: Settings,
        metrics: Metrics,
        turns: DeviceTurns,
        request_seconds: float,
    ) -> None:
        loaded = catalog.load(settings.spec, settings.architecture, service.cache_dir)
        bundle = loaded.bundle
        self.name = settings.name or bundle.name
        self.row = settings
        self.lease = Lease()
        self.spec = bundle.input
        self.labels = bundle.labels
        self.batch_share = max(1, min(settings.max_batch, settings.max_queue // 2))
        self.batcher: Batcher[Pixels, Row] = Batcher(
            max_jobs=settings.max_queue,
            max_bytes=settings.max_queue_bytes,
            max_delay=settings.max_delay_ms / 1000,
        )
        devices = devices_of(settings)
        architecture = bundle.variant or "custom"
        self._info = ModelInfo(metrics, self.name, architecture, loaded.sha256 or "")

        def worker(device: str) -> Worker:
            first, *better = engines_for(settings, device)
            blueprint = blueprint_of(
                bundle, settings, device, service, request_seconds=request_seconds
            )
            tolerance = settings.parity_tolerance
            return Worker(
                f"{self.name}/{device}",
                self.batcher,
                partial(start_first, [first], blueprint, tolerance),
                rebuild=partial(
                    _start_again, settings, service, request_seconds, device, loaded.sha256
                ),
                improve=[partial(start_engine, kind, blueprint, tolerance) for kind in better],
                turns=turns[device],
                share=settings.share,
                timeout=service.engine_timeout_s,
                serves=partial(_is_ready, weakref.ref(self)),
                on_ready=partial(_announce, self._info),
                on_batch=partial(metrics.computed, self.name),
                on_error=metrics.engine_errors.labels(self.name, device).inc,
                on_out_of_memory=metrics.out_of_memory.labels(self.name, device).inc,
            )

        self.workers = [worker(device) for device in devices]
        network = on_meta(bundle.architecture)
        self.channels = network.out_channels
        self.map_side = map_side(network, bundle.input.size)
        # What /v1/models tells, in its order; the engine's part is known once it runs.
        self._facts = {
            "architecture": architecture,
            "depth": variant(bundle.variant).depth if bundle.variant else bundle.architecture.depth,
            "parameters": count_parameters(network),
            "layers": count_layers(network),
            "macs": count_macs(network, bundle.input.size),
            "num_classes": bundle.architecture.num_classes,
            "configuration": asdict(bundle.architecture),
            "input": asdict(bundle.input),
            "embedding": self.channels,
            "explain": self.map_side > 1,
            "device": _joined(devices),
        }
        self._precision = _joined([precision_of(settings, device) for device in devices])
        self._origin = {
            # The file's own digest; a provenance may carry that of the file it was converted from.
            "weights": {
                "source": loaded.source,
                "sha256": loaded.sha256,
                "provenance": bundle.provenance,
            },
            "metrics": bundle.metrics,
            "temperature": bundle.temperature,
            "card": bundle.card,
        }
        self._metrics = metrics
        self._devices = devices

    def show(self) -> None:
        """Lets the metrics tell of this model under its name."""
        self._info.show()
        self._metrics.watch_model(
            self.name,
            self._devices,
            self.row.max_queue,
            depth=lambda: self.batcher.depth,
            ready=lambda: self.ready,
        )

    def hide(self) -> None:
        """Another has this name now, or none."""
        self._info.hide()

    def close(self) -> None:
        """Lets the engines finish what waits, and end."""
        self.batcher.close()
        for worker in self.workers:
            worker.stop()

    @property
    def ready(self) -> bool:
        return any(worker.state == "ready" for worker in self.workers)

    @property
    def state(self) -> str:
        """ "ready" if any engine is, else "loading" if any may be, else "failed" or "lost"."""
        states = {worker.state for worker in self.workers}
        return next(state for state in ("ready", "loading", "failed", "lost") if state in states)

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty if it is."""
        return "" if self.ready else "; ".join(sorted({w.reason for w in self.workers}))

    @property
    def lost(self) -> str:
        """Why an engine of this model cannot recover in this process; empty if all may."""
        return "; ".join(sorted({w.reason for w in self.workers if w.state == "lost"}))

    def describe(self) -> dict[str, Any]:
        """The model's entry in `GET /v1/models`."""
        running = [worker.running for worker in self.workers if worker.running is not None]
        return {
            "name": self.name,
            **self._facts,
            "precision": _joined([warm.engine.precision for warm in running]) or self._precision,
            "engine": _joined([warm.engine.name for warm in running]) or None,
            **(running[0].describe() if running else {}),
            "state": self.state,
            "reason": self.reason,
            **self._origin,
        }


def _start_again(
    settings: ModelSettings,
    service: Settings,
    request_seconds: float,
    device: str,
    sha256: str | None,
    kind: str | None,
) -> Warm:
    """An engine of `kind`, None: the usual one, from the SPEC, as its weights were not kept.

    Raises:
        RuntimeError: it does not start, or the weights are not those of `sha256` any more.
    """
    loaded = catalog.load(settings.spec, settings.architecture, service.cache_dir)
    if loaded.sha256 != sha256:
        raise RuntimeError(f"{settings.spec} has changed since the start; start again to serve it")
    blueprint = blueprint_of(
        loaded.bundle, settings, device, service, request_seconds=request_seconds
    )
    kinds = [kind or engines_for(settings, device)[0]]
    return start_first(kinds, blueprint, settings.parity_tolerance)


def state_of(model: Model) -> dict[str, Any]:
    return {"ready": model.ready, "reason": model.reason, "card": model.describe()}


def facts_of(model: Model) -> dict[str, Any]:
    """What others must know of a model, as JSON can hold it."""
    return {
        "name": model.name,
        "settings": model.row.model_dump(mode="json"),
        "input": asdict(model.spec),
        "labels": list(model.labels),
        "channels": model.channels,
        "map_side": model.map_side,
        "card": model.describe(),
    }


# What a worker is given must not hold its model: a circle would never be collected, because what
# exists while serving is exempt from garbage collection.
def _announce(info: ModelInfo, warm: Warm) -> None:
    info.announce(warm.engine.device, warm.engine.precision, warm.engine.name)


def _is_ready(model: weakref.ref[Model]) -> bool:
    found = model()
    return found is not None and found.ready


def _joined(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values))


class Loader:
    """Opens models for this process, which share its devices, and shows them in its metrics.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`.
    """

    def __init__(self, settings: Settings, metrics: Metrics, request_seconds: float) -> None:
        set_cpu_threads(settings.engine_threads or spinning_threads())
        self._settings = settings
        self._metrics = metrics
        self._request_seconds = request_seconds
        self._turns: DeviceTurns = defaultdict(Turns)
        self._shown: list[Model] = []
        # Also those that only load; and threads that load, or compute for one that was replaced.
        self._started: weakref.WeakSet[Model] = weakref.WeakSet()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def open_all(self) -> list[Model]:
        """The models of the settings, not yet started.

        Raises:
            ConfigError: a model cannot be served, or two have the same name.
        """
        opened: list[Model] = []
        for index, row in enumerate(self._settings.models):
            try:
                model = self._open(row)
            except ConfigError as error:
                raise ConfigError(f"models[{index}]: {error}") from None
            if model.name in [other.name for other in opened]:
                raise ConfigError(f"models[{index}].name: {model.name!r} is taken; give it another")
            opened.append(model)
        return opened

    def _open(self, row: ModelSettings) -> Model:
        return Model(row, self._settings, self._metrics, self._turns, self._request_seconds)

    def start(self, model: Model) -> None:
        """Starts the engines; they load and warm up in their own threads."""
        self._started.add(model)
        for worker in model.workers:
            self._threads.add(worker)
            worker.start()

    async def load(self, row: ModelSettings) -> Model:
        """A model whose engines are all warm; cancelled, it leaves none behind.

        Raises:
            LoadFailed: it cannot be served.
        """
        log.info("%s: loading %s", row.name or "a model", row.spec)
        try:
            model = await in_daemon(lambda: self._open(row), self._threads)
        except FORESEEN as error:
            raise LoadFailed(" ".join(str(error).split())) from None
        # A file can be damaged in ways that a library answers with an exception of its own.
        except Exception as error:  # noqa: BLE001
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise LoadFailed(f"{row.spec}: {what}") from None
        self.start(model)
        try:
            reasons = await _failures(model)
        except BaseException:
            model.close()
            raise
        if reasons:
            model.close()
            raise LoadFailed(f"{row.spec}: {' '.join(reasons[0].split())}")
        return model

    def show(self, models: Sequence[Model]) -> None:
        """Makes the metrics tell of these and no others."""
        before, self._shown = self._shown, list(models)
        for model in before:
            if model not in models:
                model.hide()
        for name in {model.name for model in before} - {model.name for model in models}:
            self._metrics.unwatch_model(name)
        for model in models:
            if model not in before:
                model.show()

    def close(self, timeout: float) -> bool:
        """Lets the engines finish what waits, for at most `timeout` seconds; whether they did.

        An engine that is loading or does not come back has nothing to finish, and is not waited
        for.
        """
        until = time.monotonic() + timeout
        for model in list(self._started):
            model.close()
        threads = [thread for thread in self._threads if thread.is_alive()]
        for thread in threads:
            finishes = isinstance(thread, Worker) and thread.running and thread.state != "lost"
            if finishes:
                thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)


async def _failures(model: Model) -> list[str]:
    """Why engines did not start, once none is loading any more."""
    while any(worker.state == "loading" for worker in model.workers):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)
    return [worker.reason for worker in model.workers if worker.state in ("failed", "lost")]


def lost(models: Iterable[Model]) -> dict[str, str]:
    """Why only another process can serve again, by model; empty if this one can."""
    return {model.name: model.lost for model in models if model.lost}


class Fleet:
    """All models, with engines in threads of this process.

    Raises:
        ConfigError: a model cannot be served, or two have the same name.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        request_seconds: float = capacity.USUAL_REQUEST,
    ) -> None:
        self._loader = Loader(settings, metrics, request_seconds)
        self._roster: Roster[Model] = Roster(
            load=self._loader.load,
            install=self._install,
            discard=Model.close,
            timeout=settings.load_timeout_s,
        )
        self._roster.members = self._loader.open_all()
        self._serve()

    @property
    def models(self) -> Mapping[str, Model]:
        return self._models

    def start(self) -> None:
        for model in self._roster.members:
            self._loader.start(model)

    async def put(self, row: ModelSettings) -> bool:
        return await self._roster.put(row)

    async def delete(self, name: str) -> None:
        await self._roster.delete(name)

    async def reload(self, rows: Sequence[ModelSettings]) -> str:
        return await self._roster.reload(rows)

    async def _install(self) -> None:
        before = self._models
        self._serve()
        for name, model in before.items():
            if self._models.get(name) is not model:
                model.lease.retire(model.close)

    def _serve(self) -> None:
        self._models = {model.name: model for model in self._roster.members}
        self._loader.show(self._roster.members)

    def dead(self) -> dict[str, str]:
        return lost(self.models.values())

    def close(self, timeout: float) -> bool:
        return self._loader.close(timeout)
