"""One request from bytes to predictions: here the stages meet."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from models.resnet import on_meta
from models.summary import count_layers, count_macs, count_parameters
from models.variants import variant
from service import catalog, engines
from service.batcher import Batcher
from service.decode import Decoder
from service.engines.ranking import Row
from service.errors import (
    BadParameter,
    ConfigError,
    DeadlineExceeded,
    NotReady,
    UnknownModel,
)
from service.metrics import PHASES, Metrics
from service.postprocess import Prediction, top_k
from service.settings import ModelSettings, Settings
from service.turns import Turns
from service.worker import Pixels, Worker

RETRY_SECONDS = 1.0
DeviceTurns = defaultdict[str, Turns]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one image became; times in seconds.

    `queue` is all waiting: for a thread to decode in, and for the engine.
    """

    model: str
    predictions: list[Prediction]
    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int


class Model:
    """A served model: its queue, its engines, and what is true of its network.

    `batch_share` is how many places in the queue one request with many images takes at a time.

    Raises:
        ConfigError: its SPEC, device or precision cannot be served.
    """

    def __init__(
        self, settings: ModelSettings, service: Settings, metrics: Metrics, turns: DeviceTurns
    ) -> None:
        loaded = catalog.load(settings.spec, settings.architecture)
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
                improve=[partial(engines.start, kind, blueprint, tolerance) for kind in better],
                turns=turns[device],
                share=settings.share,
                on_ready=partial(self._announce, metrics, loaded.sha256 or ""),
                on_batch=metrics.batch_size.labels(self.name).observe,
                on_error=metrics.engine_errors.labels(self.name, device).inc,
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
        """ "ready" if any engine is, else "loading" if any still may be, else "failed"."""
        states = {worker.state for worker in self.workers}
        return next(state for state in ("ready", "loading", "failed") if state in states)

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty if it is."""
        return "" if self.ready else "; ".join(sorted({w.reason for w in self.workers}))

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


def _joined(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values))


class Pipeline:
    """All models behind one decoder.

    `draining`: a shutdown has begun, readiness says so, requests are still served.
    `refusing`: the grace is over, only what was accepted is still served.

    Raises:
        ConfigError: a model cannot be served, or two have the same name.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        engines.set_cpu_threads(settings.engine_threads)
        self.metrics = metrics
        self.draining = self.refusing = False
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
        self._decoder = Decoder(settings.decode_threads, settings.max_pixels)

    def start(self) -> None:
        """Starts the engines; they load and warm up in their own threads."""
        for model in self.models.values():
            for worker in model.workers:
                worker.start()

    def close(self, timeout: float) -> bool:
        """Lets the engines finish what waits, for at most `timeout` seconds; whether they did.

        An engine that is still loading has nothing to finish and is not waited for.
        """
        until = time.monotonic() + timeout
        workers = [worker for model in self.models.values() for worker in model.workers]
        for model in self.models.values():
            model.batcher.close()
        for worker in workers:
            worker.stop()
            if worker.state != "loading":
                worker.join(max(0.0, until - time.monotonic()))
        self._decoder.close()
        return not any(worker.is_alive() for worker in workers)

    def unready(self) -> dict[str, str]:
        """Why the service is not ready: a reason for each model that is not; empty if it is."""
        if self.draining:
            return dict.fromkeys(self.models, "draining: the service is shutting down")
        return {name: model.reason for name, model in self.models.items() if not model.ready}

    def find(self, name: str | None) -> Model:
        """The model called `name`, or the first one.

        Raises:
            UnknownModel: there is none; the message offers names.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            near = difflib.get_close_matches(name, self.models, n=1) or list(self.models)
            raise UnknownModel(f"no model is called {name!r}; there is {', '.join(near)}")
        return self.models[name]

    def check(self, model: Model, k: int | None) -> int:
        """How many predictions to give; refuses what needs no body to be refused.

        Raises:
            BadParameter: `k` is not between 1 and the number of classes.
            NotReady: the model is loading, its engine down.
            QueueFull: its queue has no place.
        """
        if self.refusing:
            raise NotReady("the service is shutting down; ask another replica", RETRY_SECONDS)
        classes = len(model.labels)
        if k is not None and not 1 <= k <= classes:
            raise BadParameter(f"top_k must be from 1 to {classes}, not {k}")
        if not model.ready:
            raise NotReady(f"{model.name} is not ready: {model.reason}", RETRY_SECONDS)
        model.batcher.check()
        return min(5, classes) if k is None else k

    async def classify(self, model: Model, data: bytes, k: int, deadline: float) -> Answer:
        """The `k` likeliest classes of one encoded image.

        `deadline` is a time of the event loop's clock. Cancelling the call, as when the caller
        leaves, gives the image's place in the queue back.

        Raises:
            UndecodableImage, TooLarge: see `service.decode.decode`.
            QueueFull: the queue has no place.
            EngineFailed: the engine failed while computing it.
            DeadlineExceeded: the deadline passed first.
        """
        started = time.perf_counter()
        job = model.batcher.admit(len(data))
        try:
            async with asyncio.timeout_at(deadline):
                decoded = await self._decoder.decode(data, model.spec)
                model.batcher.submit(job, decoded.pixels, decoded.pixels.nbytes)
                row = await job.future
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed before the answer was computed; "
                "allow more time with X-Request-Timeout-Ms, or retry when the service is less busy"
            ) from None
        finally:
            job.future.cancel()  # A no-op when it is done; else it frees the place.
        predictions = top_k(*row, model.labels, k)
        answer = Answer(
            model=model.name,
            predictions=predictions,
            decode=decoded.seconds,
            queue=max(0.0, job.started - job.admitted - decoded.seconds),
            inference=job.finished - job.started,
            total=time.perf_counter() - started,
            batch_size=job.batch_size,
        )
        self.metrics.classified(model.name, {phase: getattr(answer, phase) for phase in PHASES})
        return answer
