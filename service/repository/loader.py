"""Opening models in this process, at startup and while others serve."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Sequence

from service.config.loading import of_model
from service.config.settings import ModelSettings, Settings
from service.engines.device_share import DeviceShares
from service.engines.devices import devices_of, set_cpu_threads
from service.engines.engine_thread import EngineThread
from service.errors import RETRY_SECONDS, ConfigError, LoadFailed, NotReady
from service.inference.decoding import Decoder
from service.metrics import Metrics
from service.repository import catalog
from service.repository.model import LocalModel, Shared
from service.runtime import in_daemon, spinning_threads

log = logging.getLogger(__name__)
# Between polls of engines that load in threads of their own.
POLL_SECONDS = 0.02
# Errors caused by bad configuration or input; anything else is a bug.
FORESEEN = (ValueError, OSError, ArithmeticError)


def resolved(models: Sequence[ModelSettings]) -> list[list[str]]:
    """The devices of each model.

    Raises:
        ConfigError: see `service.engines.devices.devices_of`.
    """
    devices = []
    for index, settings in enumerate(models):
        try:
            devices.append(devices_of(settings))
        except ConfigError as error:
            raise ConfigError(of_model(index, error)) from None
    return devices


class Loader:
    """Opens models, which share this process's devices, and shows them in its metrics.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`. `device`:
    the only one of this process, if each device has a process of its own.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, request_seconds: float, device: str = ""
    ) -> None:
        set_cpu_threads(settings.engine_threads or spinning_threads())
        self._shared = Shared(
            settings=settings,
            metrics=metrics,
            request_seconds=request_seconds,
            decoder=Decoder(settings.decode_threads, settings.max_pixels),
            devices=DeviceShares(),
        )
        # Why no model can start in this process any more; "" if one may.
        self.poisoned = ""
        self._device = device
        self._shown: list[LocalModel] = []
        # Includes models that are loading, and threads that load or serve a replaced model.
        self._started: weakref.WeakSet[LocalModel] = weakref.WeakSet()
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def open_all(self) -> list[LocalModel]:
        """The models of the settings, not yet started; if the process has one device, those whose
        `device` lists it.

        Raises:
            ConfigError: a model cannot be served, or two have the same name.
        """
        opened: list[LocalModel] = []
        for index, settings in enumerate(self._shared.settings.models):
            if self._device and self._device not in settings.device:
                continue
            try:
                model = self._open(settings)
            except ConfigError as error:
                raise ConfigError(of_model(index, error)) from None
            if model.name in [other.name for other in opened]:
                raise ConfigError(
                    f"models[{index}].name: {model.name!r} is already in use; choose another"
                )
            opened.append(model)
        return opened

    def _open(self, settings: ModelSettings) -> LocalModel:
        if self._device:
            settings = settings.model_copy(update={"device": self._device})
        service, began = self._shared.settings, time.perf_counter()
        loaded = catalog.load(
            settings.spec, settings.architecture, service.cache_dir, service.allow_code
        )
        return LocalModel(settings, loaded, self._shared, began)

    def start(self, model: LocalModel) -> None:
        """Starts the engines; they load and warm up in their own threads."""
        self._started.add(model)
        for worker in model.workers:
            self._threads.add(worker)
            worker.start()

    def resolve(self, settings: ModelSettings) -> list[str]:
        """The devices of a new model.

        Raises:
            LoadFailed: one of them is not available.
        """
        try:
            return devices_of(settings)
        except ConfigError as error:
            raise LoadFailed(str(error)) from None

    async def load(self, settings: ModelSettings) -> LocalModel:
        """A model whose engines are all warm; if cancelled, it leaves nothing behind.

        Raises:
            LoadFailed: it cannot be served.
            NotReady: its device is lost.
        """
        name = f"{settings.name}: " if settings.name else ""
        log.info("%sloading %s", name, settings.spec)
        try:
            model = await in_daemon(lambda: self._open(settings), self._threads)
        except FORESEEN as error:
            raise LoadFailed(" ".join(str(error).split())) from None
        # On a damaged file, a library may raise an exception of its own.
        except Exception as error:
            log.debug("%s cannot be read", settings.spec, exc_info=True)
            reason = " ".join(str(error).split())
            raise LoadFailed(f"{settings.spec}: its file is damaged: {reason}") from None
        try:
            self.start(model)
            reasons = await _failures(model)
        except BaseException:
            model.close()
            raise
        if reasons:
            reason = f"{settings.spec}: {' '.join(reasons[0].split())}"
            poisoned = any(worker.poisoned for worker in model.workers)
            model.close()
            if poisoned:
                self.poisoned = reason
                raise NotReady(f"{reason}; retry", RETRY_SECONDS)
            raise LoadFailed(reason)
        return model

    def show(self, models: Sequence[LocalModel]) -> None:
        """Shows exactly these models in the metrics."""
        previous, self._shown = self._shown, list(models)
        for model in previous:
            if model not in models:
                model.hide()
        for name in {model.name for model in previous} - {model.name for model in models}:
            self._shared.metrics.unwatch_model(name)
        for model in models:
            if model not in previous:
                model.show()

    def close(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds for the engines to finish queued jobs; whether they did.

        It does not wait for an engine that is loading or lost, which has nothing to finish.
        """
        end = time.monotonic() + timeout
        for model in list(self._started):
            model.close()
        threads = [thread for thread in self._threads if thread.is_alive()]
        for thread in threads:
            # One that is ready and runs no engine any more is about to end.
            if isinstance(thread, EngineThread) and (
                thread.state == "ready" or (thread.running and thread.state != "lost")
            ):
                thread.join(max(0.0, end - time.monotonic()))
        self._shared.decoder.close()
        return not any(thread.is_alive() for thread in threads)


async def _failures(model: LocalModel) -> list[str]:
    """Waits for the engines to load; returns why some did not start."""
    while any(worker.state == "loading" for worker in model.workers):  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    return [worker.reason for worker in model.workers if worker.state in ("failed", "lost")]


def lost(models: Iterable[LocalModel]) -> dict[str, str]:
    """By model, why this process cannot recover; empty if it can."""
    return {model.name: model.lost for model in models if model.lost}
