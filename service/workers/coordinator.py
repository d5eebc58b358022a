"""The models of all processes, as the supervisor knows them.

Each model has a number, and a replacement has another one. So a successor cannot answer a front end
that still submits images to the model it replaced.

What `auto` and `cuda:all` mean is found out once for each model, by an engine process, and then
stays: when a GPU is lost, the successor of its process fails, and does not serve on the CPU.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import RETRY_SECONDS, ConfigError, NotReady, ServiceError, refusal_of
from service.inference.queue_share import gather
from service.repository.registry import Registry
from service.workers.control import Message
from service.workers.device_engine import DeviceEngine
from service.workers.engine_pool import EnginePool
from service.workers.keeper import MOST_RESTARTS
from service.workers.process import ChildProcess

log = logging.getLogger(__name__)
# The facts that the form of a model's requests and results follows from: front ends rely on them.
FORM = ("input", "labels", "outputs", "channels", "map_sides", "explains")
# For every front end to acknowledge a change. A frozen one is usually replaced sooner.
AGREEMENT_SECONDS = 60.0


@dataclass(eq=False)
class ServedModel:
    """A model's settings, its devices, and the facts that their engine processes reported."""

    number: int
    settings: ModelSettings
    devices: list[str]
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def pinned(self) -> ModelSettings:
        """The settings with which an engine process opens the model again."""
        return self.settings.model_copy(update={"name": self.name, "device": self.devices})


class Coordinator:
    """Keeps the engine processes and the front ends on the same models.

    `registry` changes them: the engine processes of its devices load a new model, every front end
    switches to it, and the engine processes end each old one when the last front end has
    disconnected from it. An engine process or front end that starts later gets the current models.

    `start_engine`: see `service.workers.engine_pool.EnginePool`.
    """

    def __init__(
        self,
        models: Sequence[ModelSettings],
        timeout: float,
        start_engine: Callable[[int, str], DeviceEngine],
    ) -> None:
        self.registry: Registry[ServedModel] = Registry(
            load=self._load,
            install=self._install,
            discard=self._discard,
            timeout=timeout,
        )
        self._configured = list(models)
        self.started = asyncio.Event()  # once all engine processes have reported their models
        self.engines = EnginePool(start_engine)
        self._devices: list[list[str]] = []  # of each configured model
        # What the first engine process of each device has opened, until all have.
        self._reports: dict[str, tuple[ChildProcess, Sequence[dict[str, Any]]]] = {}
        self._numbers = count()
        self._new: set[int] = set()  # models that load, or have loaded and do not serve yet
        self._front_ends: dict[ChildProcess, int] = {}  # and the version that each serves
        self._version = 0
        self._refusals: dict[int, str] = {}  # by version: why a front end cannot serve its models
        self._agreed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def settings(self) -> list[ModelSettings]:
        """Settings of all models, with their devices once those are known."""
        if self.started.is_set():
            return [model.pinned for model in self.registry.models]
        if not self._devices:
            return self._configured
        return [
            model.model_copy(update={"device": devices})
            for model, devices in zip(self._configured, self._devices, strict=True)
        ]

    def facts(self) -> list[dict[str, Any]]:
        """Numbers and facts of the models, for front ends."""
        return [{"number": model.number, **model.facts} for model in self.registry.models]

    # The engine processes

    def resolved(self, devices: list[list[str]]) -> None:
        """The first engine process has resolved the devices of each configured model.

        Raises:
            ConfigError: they cannot all have a process.
        """
        self._devices = devices
        try:
            self.engines.assign(dict.fromkeys(chain.from_iterable(devices)))
        except ServiceError as error:
            raise ConfigError(str(error)) from None

    def models_on(self, device: str) -> list[ServedModel]:
        """The models that serve on a device; none before the start."""
        return [model for model in self.registry.models if device in model.devices]

    async def engine_started(
        self,
        engine: DeviceEngine,
        child: ChildProcess,
        models: Sequence[ServedModel],
        facts: Sequence[dict[str, Any]],
    ) -> None:
        """Takes over an engine process that has opened `models`, or the configured ones of its
        device if that is the first one.

        Raises:
            ConfigError: two of the configured models have the same name.
        """
        if not self.started.is_set():
            self._reports[engine.device] = child, facts
            if len(self._reports) == len(self.engines):
                self._start_models()
            return
        opened = [self._reopened(*pair) for pair in zip(models, facts, strict=True)]
        engine.started(child, [model.number for model in opened])
        self._serve_on(engine)
        if any(new is not old for new, old in zip(opened, models, strict=True)):
            self._serve()
            await self._agree(required=True)

    def _start_models(self) -> None:
        """All first engine processes have opened their models."""
        reports = {device: iter(facts) for device, (_, facts) in self._reports.items()}
        for settings, devices in zip(self._configured, self._devices, strict=True):
            facts = self._merged(devices, [next(reports[device]) for device in devices])
            model = ServedModel(self._number(), settings, devices, facts)
            if model.name in [other.name for other in self.registry.models]:
                index = len(self.registry.models)
                raise ConfigError(
                    f"models[{index}].name: {model.name!r} is already in use; choose another"
                )
            self.registry.models.append(model)
        for engine in self.engines:
            child, _ = self._reports[engine.device]
            engine.started(child, [model.number for model in self.models_on(engine.device)])
        self._reports.clear()
        self.started.set()

    def _merged(self, devices: list[str], facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The facts of a model, from those of its engine on each device, for front ends."""
        first = dict(facts[0])
        first["settings"] = first["settings"] | {"device": devices}
        # They may be larger on one of the devices; the largest hold for the model.
        limits = [max(values) for values in zip(*(each["limits"] for each in facts), strict=True)]
        del first["card"]
        engines = [
            {"device": device, "index": self.engines.of(device).index, "card": each["card"]}
            for device, each in zip(devices, facts, strict=True)
        ]
        return {**first, "limits": limits, "engines": engines}

    def _reopened(self, model: ServedModel, facts: dict[str, Any]) -> ServedModel:
        """The model in a new engine process: a replacement if its form differs, or if its other
        devices would respond with other weights."""
        same = all(model.facts[key] == facts[key] for key in FORM)
        if same and (len(model.devices) == 1 or _digest(model.facts) == _digest_of(facts["card"])):
            return model
        log.warning("%s has changed on disk; serving the new version", model.name)
        merged = self._merged(model.devices, [facts] * len(model.devices))
        replacement = ServedModel(self._number(), model.settings, model.devices, merged)
        self.registry.models = [replacement if m is model else m for m in self.registry.models]
        return replacement

    def engine_ended(self, engine: DeviceEngine) -> None:
        """
        Raises:
            ConfigError: the service has not started yet.
        """
        engine.ended()
        if not self.started.is_set():
            raise ConfigError(f"{engine.role.name} ended while starting")

    def engine_breaks(self, engine: DeviceEngine, reason: str) -> None:
        """The processes of a device end again and again."""
        times = f"{engine.role.name} was restarted {MOST_RESTARTS} times and did not serve"
        engine.breaks(f"{times}: {reason}")
        self._tell_broken()

    def engine_serves(self, engine: DeviceEngine) -> None:
        engine.role.serves()
        if engine.broken:
            log.info("%s serves again", engine.role.name)
            engine.breaks("")
            self._tell_broken()

    def _tell_broken(self) -> None:
        for child in self._front_ends:
            child.send(broken=self.engines.broken())

    def _number(self) -> int:
        """A number whose index in the occupancy is free."""
        numbers = chain((model.number for model in self.registry.models), self._new)
        taken = {number % MOST_MODELS for number in numbers}
        return next(number for number in self._numbers if number % MOST_MODELS not in taken)

    async def _load(self, settings: ModelSettings) -> ServedModel:
        number = self._number()
        self._new.add(number)
        try:
            devices = await self.engines.any().resolve(number, settings)
            engines = [self.engines.of(device) for device in devices]
            pinned = settings.model_copy(update={"device": devices})
            facts = await gather(engine.load(number, pinned) for engine in engines)
            return ServedModel(number, settings, devices, self._merged(devices, facts))
        except BaseException:
            self._drop(number)  # Stops the loading.
            raise

    def _discard(self, model: ServedModel) -> None:
        self._drop(model.number)

    def _drop(self, number: int) -> None:
        self._new.discard(number)
        self._serve()

    def _serve(self) -> None:
        """Makes the engine processes end all other models."""
        self._new.difference_update(model.number for model in self.registry.models)
        for engine in self.engines:
            self._serve_on(engine)

    def _serve_on(self, engine: DeviceEngine) -> None:
        engine.serve([model.number for model in self.models_on(engine.device)], self._new)

    # The front ends

    def join(self, child: ChildProcess) -> None:
        """Adds a front end that was sent the current models."""
        self._front_ends[child] = self._version

    async def leave(self, child: ChildProcess) -> None:
        async with self._agreed:
            self._front_ends.pop(child, None)
            self._agreed.notify_all()

    async def on_front_end_message(self, child: ChildProcess, message: Message) -> None:
        """A front end serves the models of a version, or requests a change."""
        if "version" in message:
            async with self._agreed:
                if child in self._front_ends:
                    self._front_ends[child] = message["version"]
                    if "refusal" in message:
                        self._refusals[message["version"]] = message["refusal"]
                self._agreed.notify_all()
        else:
            task = asyncio.get_running_loop().create_task(self._change(child, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _change(self, child: ChildProcess, message: Message) -> None:
        created = False
        try:
            if "put" in message:
                settings = ModelSettings.model_validate(message["put"])
                created = await self.registry.put(settings)
            else:
                await self.registry.delete(message["delete"])
        except Exception as error:
            # The client waits: it gets a response, whatever goes wrong.
            if not isinstance(error, ServiceError):
                log.exception("a change of the models failed")
            child.send(response=message["request"], refusal=refusal_of(error))
        else:
            child.send(response=message["request"], created=created)

    async def _install(self, *, required: bool) -> None:
        if refusal := await self._agree(required=required):
            raise NotReady(f"nothing was changed: {refusal}; retry", RETRY_SECONDS)
        self._serve()

    async def _agree(self, *, required: bool) -> str:
        """Waits until every front end serves the current models; why one cannot, or "".

        If they are `required`, a front end serves them even if it cannot reach them yet.
        """
        self._version = version = self._version + 1
        for child in self._front_ends:
            child.send(models=self.facts(), version=version, required=required)
        try:
            async with asyncio.timeout(AGREEMENT_SECONDS), self._agreed:
                await self._agreed.wait_for(
                    lambda: all(served >= version for served in self._front_ends.values())
                )
        except TimeoutError:
            late = f"a front end has not responded for {AGREEMENT_SECONDS:g} s"
            return "" if required else late
        finally:
            refusal = self._refusals.pop(version, "")
        return refusal


def _digest(facts: dict[str, Any]) -> Any:
    return _digest_of(facts["engines"][0]["card"])


def _digest_of(card: dict[str, Any]) -> Any:
    """The digest of the file that a model was read from; None if there is none."""
    return card["weights"]["sha256"]
