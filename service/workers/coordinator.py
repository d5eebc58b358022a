"""The models of all processes, as the supervisor knows them.

Each model has a number, and a replacement has another one. So a successor cannot answer a front end
that still submits images to the model it replaced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import RETRY_SECONDS, NotReady, ServiceError, error_of, refusal_of
from service.repository.registry import Registry
from service.workers.control import Message
from service.workers.process import ChildProcess

log = logging.getLogger(__name__)
# The facts that the form of a model's requests and results follows from: front ends rely on them.
FORM = ("input", "labels", "channels", "map_side")
# For every front end to acknowledge a change. A frozen one is usually replaced sooner.
AGREEMENT_SECONDS = 60.0


@dataclass(eq=False)
class ServedModel:
    """A model's settings, and the facts that the engine process reported."""

    number: int
    settings: ModelSettings
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.facts["name"])


class Coordinator:
    """Keeps the engine process and the front ends on the same models.

    `registry` changes them: the engine process loads new models, every front end switches to them,
    and the engine process ends each old one when the last front end has disconnected from it. An
    engine process or front end that starts later gets the current models.
    """

    def __init__(self, models: Sequence[ModelSettings], timeout: float) -> None:
        self.registry: Registry[ServedModel] = Registry(
            load=self._load,
            install=self._install,
            discard=lambda model: self._serve(),
            timeout=timeout,
        )
        self._configured = list(models)
        self.started = asyncio.Event()  # once the first engine process has reported its models
        self._numbers = count()
        self._engine: ChildProcess | None = None
        self._engine_up = asyncio.Event()
        self._loaded: set[int] = set()  # by the current engine process
        self._loading: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._front_ends: dict[ChildProcess, int] = {}  # and the version that each serves
        self._version = 0
        self._refusals: dict[int, str] = {}  # by version: why a front end cannot serve its models
        self._agreed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def settings(self) -> list[ModelSettings]:
        """Settings of the models that a new engine process opens."""
        if not self.started.is_set():
            return self._configured
        return [
            model.settings.model_copy(update={"name": model.name}) for model in self.registry.models
        ]

    def facts(self) -> list[dict[str, Any]]:
        """Numbers and facts of the models, for front ends."""
        return [{"number": model.number, **model.facts} for model in self.registry.models]

    # The engine process

    def engines(self) -> list[ChildProcess]:
        """The engine process, unless it is starting."""
        return [] if self._engine is None else [self._engine]

    async def engine_started(
        self,
        child: ChildProcess,
        models: Sequence[ServedModel],
        facts: Sequence[dict[str, Any]],
    ) -> None:
        """Takes over an engine process that has opened `models`, or the configured ones if it is
        the first."""
        if self.started.is_set():
            opened = [self._reopened(*pair) for pair in zip(models, facts, strict=True)]
        else:
            pairs = zip(self._configured, facts, strict=True)
            opened = self.registry.models = [ServedModel(self._number(), *pair) for pair in pairs]
        child.send(numbers=[model.number for model in opened])
        self._loaded = {model.number for model in opened}
        self._engine = child
        self._serve()
        self._engine_up.set()
        self.started.set()
        if any(new is not old for new, old in zip(opened, models, strict=False)):
            await self._agree(required=True)

    def _reopened(self, model: ServedModel, facts: dict[str, Any]) -> ServedModel:
        """The model in a new engine process: a replacement if its form differs."""
        if all(model.facts[key] == facts[key] for key in FORM):
            return model
        log.warning("%s has changed on disk; serving the new version", model.name)
        replacement = ServedModel(self._number(), model.settings, facts)
        self.registry.models = [replacement if m is model else m for m in self.registry.models]
        return replacement

    def engine_ended(self) -> None:
        self._engine = None
        self._engine_up.clear()
        for loading in self._loading.values():
            if not loading.done():
                detail = "the engine process ended while loading the model; retry"
                loading.set_exception(NotReady(detail, 1.0))

    def on_engine_message(self, message: Message) -> None:
        """A model has been loaded, or refused."""
        loading = self._loading.get(message["loaded"])
        if loading is None or loading.done():
            return
        if "refusal" in message:
            loading.set_exception(error_of(message["refusal"]))
        else:
            self._loaded.add(message["loaded"])
            loading.set_result(message["facts"])

    def _number(self) -> int:
        """A number whose index in the occupancy is free."""
        taken = {model.number % MOST_MODELS for model in self.registry.models}
        taken |= {number % MOST_MODELS for number in self._loading}
        return next(number for number in self._numbers if number % MOST_MODELS not in taken)

    async def _load(self, settings: ModelSettings) -> ServedModel:
        await self._engine_up.wait()
        assert self._engine is not None
        number = self._number()
        self._loading[number] = asyncio.get_running_loop().create_future()
        try:
            self._engine.send(load=number, settings=settings.model_dump(mode="json"))
            return ServedModel(number, settings, await self._loading[number])
        except BaseException:
            self._serve()  # Stops the loading.
            raise
        finally:
            del self._loading[number]

    def _serve(self) -> None:
        """Makes the engine process end all other models."""
        if self._engine is None:
            return
        numbers = [model.number for model in self.registry.models]
        if not self._loaded.issuperset(numbers):
            # The engine process that loaded one of them has ended; the next one will open it.
            self._engine.kill()
        else:
            self._engine.send(serve=numbers)
            self._loaded.intersection_update(numbers)

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
