"""A model served by this process: its queue, its engines, and the facts of its network."""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from models.bundle import Bundle
from models.interchange.opening import Loaded
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.summary import count_layers, count_macs, count_parameters, map_sides
from service.config.choices import Decode
from service.config.settings import ModelSettings, Settings
from service.engines.builder import EngineBuilder
from service.engines.device_share import DeviceShares, Tenant
from service.engines.devices import devices_of, precision_of
from service.engines.engine import EngineEvents, Warm
from service.engines.engine_thread import EngineThread
from service.engines.nvml import meter_of
from service.inference.batcher import Batcher
from service.inference.decoding import Decoder
from service.inference.interfaces import Computed, batch_share
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import ImageInput, Pixels
from service.metrics import Metrics
from service.repository import catalog
from service.repository.model_info import ModelInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shared:
    """Resources that the models of a process share.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`.
    """

    settings: Settings
    metrics: Metrics
    request_seconds: float
    decoder: Decoder
    devices: DeviceShares


class LocalModel:
    """A served model: its queue, its engines, and the facts of its network.

    See `service.inference.interfaces.Model`. `began`: when it began to be opened, by
    `time.perf_counter`; None: now.

    Raises:
        ConfigError: its device or precision cannot be served.
    """

    def __init__(
        self, settings: ModelSettings, loaded: Loaded, shared: Shared, began: float | None = None
    ) -> None:
        bundle, service, metrics = loaded.bundle, shared.settings, shared.metrics
        self.name = settings.name or bundle.name
        self.settings = settings
        self.users = RefCount()
        self.entering = 0
        self.input = bundle.input
        self.labels = bundle.labels
        self.outputs = bundle.outputs
        devices = devices_of(settings)
        self.limits = settings.limits(devices)
        self.batch_share = batch_share(self.limits)
        self.batcher: Batcher[ImageInput, Row] = Batcher(
            max_jobs=self.limits.max_queue,
            max_bytes=settings.max_queue_bytes,
            max_delay=settings.max_delay_ms / 1000,
        )
        self._decoder = shared.decoder
        began = time.perf_counter() if began is None else began
        self._info = ModelInfo(
            metrics, self.name, bundle.variant or "custom", loaded.sha256 or "", began
        )
        read = partial(_read_again, settings, service, loaded.sha256)
        self.workers = [self._worker(device, bundle, read, shared) for device in devices]
        network = bundle.skeleton()
        self.channels = network.out_channels
        self.map_sides = map_sides(network, bundle.input.size)
        one_layer = bundle.architecture.num_classes > 0 and not (
            bundle.architecture.head or bundle.head
        )
        self.explains = one_layer and math.prod(self.map_sides) > 1
        # The entry in /v1/models, in its order, but for the engine's part, known once it runs.
        self._facts = _network_card(bundle, network) | {
            "embedding": self.channels,
            "explain": self.explains,
            "exact_decode": settings.exact_decode,
            "device": _joined(devices),
        }
        self._precision = _joined([precision_of(settings, device) for device in devices])
        self._origin = {
            # The file's own digest; a provenance may carry that of the file it was converted from.
            "weights": {
                "source": loaded.source,
                "sha256": loaded.sha256,
                "storage": bundle.storage,
                "provenance": bundle.provenance,
            },
            "metrics": bundle.metrics,
            "temperature": bundle.temperature,
            "card": bundle.card,
        }
        self._metrics = metrics
        self._devices = devices

    def _worker(
        self, device: str, bundle: Bundle, read: Callable[[], Bundle], shared: Shared
    ) -> EngineThread:
        """The thread of a device's engine. It must not hold this model: a cycle would never be
        collected, because objects that exist while serving are exempt from garbage collection."""
        settings, service, metrics = self.settings, shared.settings, shared.metrics
        share, tenant = shared.devices[device], Tenant(settings.share)
        builder = EngineBuilder(
            bundle,
            read,
            settings,
            service,
            device,
            shared.request_seconds,
            turn=partial(share.alone, tenant),
        )
        return EngineThread(
            f"{self.name}/{device}",
            self.batcher,
            builder,
            EngineEvents(
                ready=partial(_announce, self._info, metrics),
                batch=partial(metrics.computed, self.name, device),
                error=partial(metrics.engine_failed, self.name, device),
                out_of_memory=partial(metrics.lacked_memory, self.name, device),
            ),
            device=share,
            tenant=tenant,
            timeout=service.engine_timeout_s,
            serves=partial(_is_ready, weakref.ref(self)),
        )

    def show(self) -> None:
        """Shows this model in the metrics."""
        self._info.show()
        self._metrics.watch_model(
            self.name,
            self._devices,
            self.limits.max_queue,
            depth=lambda: self.batcher.depth,
            ready=lambda: self.ready,
        )

    def hide(self) -> None:
        """Removes this model from the metrics' model info."""
        self._info.hide()

    def check(self, load: Load) -> None:
        self.batcher.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        on_device = self.decode == "device"
        return await decode_and_queue(
            self, self._decoder, self.batcher, image, job, deadline, on_device=on_device
        )

    def close(self) -> None:
        """Lets the engines finish queued jobs, and end."""
        self.batcher.close()
        for worker in self.workers:
            worker.stop()

    @property
    def ready(self) -> bool:
        return any(worker.state == "ready" for worker in self.workers)

    @property
    def decode(self) -> Decode:
        """Where plain JPEGs are decoded: "device" if all engines that run decode them."""
        running = [worker.running for worker in self.workers if worker.running is not None]
        on_device = running and all(warm.decodes_on_device for warm in running)
        return "device" if on_device else "host"

    @property
    def state(self) -> str:
        """The best state of its engines: "ready", "loading", "failed" or "lost"."""
        states = {worker.state for worker in self.workers}
        return next(state for state in ("ready", "loading", "failed", "lost") if state in states)

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty if it is."""
        return "" if self.ready else "; ".join(sorted({w.reason for w in self.workers}))

    @property
    def lost(self) -> str:
        """Why an engine of this model cannot recover in this process; empty if all can."""
        return "; ".join(sorted({w.reason for w in self.workers if w.state == "lost"}))

    def describe(self) -> dict[str, Any]:
        """The model's entry in `GET /v1/models`."""
        running = [worker.running for worker in self.workers if worker.running is not None]
        return {
            "name": self.name,
            **self._facts,
            "precision": _joined([warm.engine.precision for warm in running]) or self._precision,
            "engine": _joined([warm.engine.name for warm in running]) or None,
            "decode": self.decode,
            **(running[0].describe() if running else {}),
            "state": self.state,
            "reason": self.reason,
            **self._origin,
        }


def _read_again(settings: ModelSettings, service: Settings, sha256: str | None) -> Bundle:
    """The bundle of a model whose weights were not kept.

    Raises:
        RuntimeError: the file has changed since `sha256`.
    """
    loaded = catalog.load(
        settings.spec, settings.architecture, service.cache_dir, service.allow_code
    )
    if loaded.sha256 != sha256:
        raise RuntimeError(f"{settings.spec} has changed on disk; restart the service to serve it")
    return loaded.bundle


def _network_card(bundle: Bundle, network: ResNet) -> dict[str, Any]:
    """What `GET /v1/models` says of a network, wherever it runs."""
    architecture, size = bundle.architecture, bundle.input.size
    return {
        "architecture": bundle.variant or "custom",
        "depth": bundle.depth,
        "parameters": count_parameters(network),
        "layers": count_layers(network),
        "macs": count_macs(network, size, architecture.in_channels),
        "num_classes": architecture.num_classes,
        "outputs": bundle.outputs,
        "configuration": asdict(architecture),
        "block": bundle.block,
        "head": bundle.head,
        "views": bundle.views,
        "input": _input_card(bundle.input),
    }


def _announce(info: ModelInfo, metrics: Metrics, warm: Warm) -> None:
    engine = warm.engine
    info.announce(engine.device, engine.precision, engine.name, engine.graphs)
    if engine.device != "cpu":
        metrics.watch_gpu(engine.device, meter_of(engine.device).read)


def _is_ready(model: weakref.ref[LocalModel]) -> bool:
    served = model()
    return served is not None and served.ready


def _input_card(spec: InputSpec) -> dict[str, Any]:
    """The input specification in `GET /v1/models`."""
    card = asdict(spec)
    if spec.crop != "letterbox":
        del card["fill"]
    return card


def _joined(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def state_of(model: LocalModel) -> dict[str, Any]:
    return {"ready": model.ready, "reason": model.reason, "card": model.describe()}


def facts_of(model: LocalModel) -> dict[str, Any]:
    """The facts of a model that other processes need, as JSON values."""
    return {
        "name": model.name,
        "settings": model.settings.model_dump(mode="json"),
        "limits": list(model.limits),
        "input": asdict(model.input),
        "labels": list(model.labels),
        "outputs": model.outputs,
        "channels": model.channels,
        "map_sides": list(model.map_sides),
        "explains": model.explains,
        "card": model.describe(),
    }
