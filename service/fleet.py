"""The models that this process serves: their queues and engines."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from models.resnet import on_meta
from models.summary import count_layers, count_macs, count_parameters
from models.variants import variant
from service import catalog, engines
from service.batcher import Batcher
from service.errors import ConfigError
from service.metrics import Metrics
from service.ranking import Row
from service.settings import ModelSettings, Settings
from service.turns import Turns
from service.worker import Pixels, Worker

DeviceTurns = defaultdict[str, Turns]


class Model:
    """A served model: its queue, its engines, and what is true of its network.

    `batch_share` is how many places in the queue one request with many images takes at a time.

    Raises:
        ConfigError: its SPEC, device or precision cannot be served.
    """

    def __init__(
        self, settings: ModelSettings, service: Settings, metrics: Metrics, turns: DeviceTurns
    ) -> None:
        loaded = catalog.load(settings.spec, settings.architecture, service.cache_dir)
        bundle = loaded.bundle
        self.name = settings.name or bundle.name
        self.spec = bundle.input
        self.labels = bundle.labels
        self.batch_share = max(1, min(settings.max_batch, settings.max_queue // 2))
        self.batcher: Batcher[Pixels, Row] = Batcher(
            max_jobs=settings.max_queue,
            max_bytes=settings.max_queue_bytes,
            max_delay=settings.max_delay_ms / 1000,
        )
        devices = engines.devices(settings)

        def worker(device: str) -> Worker:
            first, *better = engines.engines_for(settings, device)
            blueprint = engines.blueprint(bundle, settings, device, service)
            tolerance = settings.parity_tolerance
            return Worker(
                f"{self.name}/{device}",
                self.batcher,
                partial(engines.start_any, [first], blueprint, tolerance),
                rebuild=partial(_start_again, settings, service, device, loaded.sha256),
                improve=[partial(engines.start, kind, blueprint, tolerance) for kind in better],
                turns=turns[device],
                share=settings.share,
                timeout=service.engine_timeout_s,
                serves=lambda: self.ready,
                on_ready=partial(self._announce, metrics, loaded.sha256 or ""),
                on_batch=metrics.batch_size.labels(self.name).observe,
                on_error=metrics.engine_errors.labels(self.name, device).inc,
                on_out_of_memory=metrics.out_of_memory.labels(self.name, device).inc,
            )

        self.workers = [worker(device) for device in devices]
        network = on_meta(bundle.architecture)
        # What /v1/models tells, in its order; the engine's part is known once it runs.
        self._facts = {
            "architecture": bundle.variant or "custom",
            "depth": variant(bundle.variant).depth if bundle.variant else bundle.architecture.depth,
            "parameters": count_parameters(network),
            "layers": count_layers(network),
            "macs": count_macs(network, bundle.input.size),
            "num_classes": bundle.architecture.num_classes,
            "configuration": asdict(bundle.architecture),
            "input": asdict(bundle.input),
            "device": _joined(devices),
        }
        self._precision = _joined([engines.precision(settings, device) for device in devices])
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
        metrics.watch_model(
            self.name,
            devices,
            settings.max_queue,
            depth=lambda: self.batcher.depth,
            ready=lambda: self.ready,
        )

    def _announce(self, metrics: Metrics, sha256: str, warm: engines.Warm) -> None:
        engine = warm.engine
        what = (self.name, self._facts["architecture"], engine.device, engine.precision)
        # Of a device that has a better engine now, only that one serves.
        for kind in engines.KINDS:
            metrics.model_info.labels(*what, kind, sha256).set(float(kind == engine.name))

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
    settings: ModelSettings, service: Settings, device: str, sha256: str | None, kind: str | None
) -> engines.Warm:
    """An engine of `kind`, None: the usual one, from the SPEC, as its weights were not kept.

    Raises:
        RuntimeError: it does not start, or the weights are not those of `sha256` any more.
    """
    loaded = catalog.load(settings.spec, settings.architecture, service.cache_dir)
    if loaded.sha256 != sha256:
        raise RuntimeError(f"{settings.spec} has changed since the start; start again to serve it")
    blueprint = engines.blueprint(loaded.bundle, settings, device, service)
    kinds = [kind or engines.engines_for(settings, device)[0]]
    return engines.start_any(kinds, blueprint, settings.parity_tolerance)


def _joined(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values))


class Fleet:
    """All models, with engines in threads of this process.

    Raises:
        ConfigError: a model cannot be served, or two have the same name.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        engines.set_cpu_threads(settings.engine_threads or engines.usual_threads())
        self.models: dict[str, Model] = {}
        turns: DeviceTurns = defaultdict(Turns)
        for index, row in enumerate(settings.models):
            try:
                model = Model(row, settings, metrics, turns)
            except ConfigError as error:
                raise ConfigError(f"models[{index}]: {error}") from None
            if model.name in self.models:
                raise ConfigError(f"models[{index}].name: {model.name!r} is taken; give it another")
            self.models[model.name] = model

    def start(self) -> None:
        """Starts the engines; they load and warm up in their own threads."""
        for model in self.models.values():
            for worker in model.workers:
                worker.start()

    def dead(self) -> dict[str, str]:
        """Why only another process can serve again, by model; empty if this one can."""
        return {name: model.lost for name, model in self.models.items() if model.lost}

    def close(self, timeout: float) -> bool:
        """Lets the engines finish what waits, for at most `timeout` seconds; whether they did.

        An engine that is loading or does not come back has nothing to finish, and is not waited
        for.
        """
        until = time.monotonic() + timeout
        workers = [worker for model in self.models.values() for worker in model.workers]
        for model in self.models.values():
            model.batcher.close()
        for worker in workers:
            worker.stop()
            if worker.running is not None and worker.state != "lost":
                worker.join(max(0.0, until - time.monotonic()))
        return not any(worker.is_alive() for worker in workers)
