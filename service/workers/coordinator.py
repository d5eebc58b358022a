"""The models of all processes, as the supervisor knows them.

A model has a number for as long as it serves; another that takes its place has another. So a front
end that still asks the one that was replaced cannot be answered by its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import NotReady, ServiceError, error_of, refusal_of
from service.repository.registry import Registry
from service.workers.process import ChildProcess

log = logging.getLogger(__name__)
# For every front end to say that it serves other models; one that takes longer is as good as dead.
AGREEMENT_SECONDS = 30.0


@dataclass(eq=False)
class Served:
    """A model as it was asked for, and what the engine process told of it."""

    number: int
    settings: ModelSettings
    told: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.told["name"])


class Coordinator:
    """Keeps the engine process and the front ends at the same models.

    `roster` changes them: the engine process loads, then every front end turns to what is new,
    then the engine process ends what is old, each when the last front end has left it. An engine
    process or front end that starts later is told the models of then.
    """

    def __init__(self, rows: Sequence[ModelSettings], timeout: float) -> None:
        self.roster: Registry[Served] = Registry(
            load=self._load,
            install=self._install,
            discard=lambda served: self._serve(),
            timeout=timeout,
        )
        self._first = list(rows)
        self.known = asyncio.Event()  # once the first engine process has told its models
        self._numbers = count()
        self._engine: ChildProcess | None = None
        self._engine_up = asyncio.Event()
        self._loaded: set[int] = set()  # by the present engine process
        self._loading: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._front_ends: dict[ChildProcess, int] = {}  # and the version that each serves
        self._version = 0
        self._agreed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def rows(self) -> list[ModelSettings]:
        """What an engine process that starts now shall open."""
        named = [
            each.settings.model_copy(update={"name": each.name}) for each in self.roster.members
        ]
        return named if self.known.is_set() else self._first

    def listed(self) -> list[dict[str, Any]]:
        """What front ends are told."""
        return [{"number": each.number, **each.told} for each in self.roster.members]

    # The engine process

    def engines(self) -> list[ChildProcess]:
        """The one there is, unless it is just starting."""
        return [] if self._engine is None else [self._engine]

    async def engine_started(
        self, child: ChildProcess, asked: Sequence[Served], told: Sequence[dict[str, Any]]
    ) -> None:
        """It has opened the models of `asked`; of the first start where nothing serves yet."""
        if self.known.is_set():
            opened = [self._again(*pair) for pair in zip(asked, told, strict=True)]
        else:
            rows = zip(self._first, told, strict=True)
            opened = self.roster.members = [Served(self._number(), *pair) for pair in rows]
        child.send(numbers=[served.number for served in opened])
        self._loaded = {served.number for served in opened}
        self._engine = child
        self._serve()
        self._engine_up.set()
        self.known.set()
        if any(now is not before for now, before in zip(opened, asked, strict=False)):
            await self._agree()

    def _again(self, served: Served, told: dict[str, Any]) -> Served:
        """The model as another engine process has opened it, which is another if it differs."""
        if all(served.told[key] == told[key] for key in ("input", "labels")):
            return served
        log.warning("%s has changed on disk; the new version serves", served.name)
        other = Served(self._number(), served.settings, told)
        self.roster.members = [other if m is served else m for m in self.roster.members]
        return other

    def engine_ended(self) -> None:
        self._engine = None
        self._engine_up.clear()
        for loading in self._loading.values():
            if not loading.done():
                ended = "the engine process ended while loading the model; retry"
                loading.set_exception(NotReady(ended, 1.0))

    def hear_engine(self, message: dict[str, Any]) -> None:
        """It has loaded a model, or could not."""
        loading = self._loading.get(message["loaded"])
        if loading is None or loading.done():
            return
        if "refusal" in message:
            loading.set_exception(error_of(message["refusal"]))
        else:
            self._loaded.add(message["loaded"])
            loading.set_result(message["facts"])

    def _number(self) -> int:
        """One whose row in the ledger no other has."""
        taken = {served.number % MOST_MODELS for served in self.roster.members}
        taken |= {number % MOST_MODELS for number in self._loading}
        return next(number for number in self._numbers if number % MOST_MODELS not in taken)

    async def _load(self, row: ModelSettings) -> Served:
        await self._engine_up.wait()
        assert self._engine is not None
        number = self._number()
        self._loading[number] = asyncio.get_running_loop().create_future()
        try:
            self._engine.send(load=number, settings=row.model_dump(mode="json"))
            return Served(number, row, await self._loading[number])
        except BaseException:
            self._serve()  # Ends what is loading.
            raise
        finally:
            del self._loading[number]

    def _serve(self) -> None:
        """Has the engine process end all models but these."""
        if self._engine is None:
            return
        numbers = [served.number for served in self.roster.members]
        if not self._loaded.issuperset(numbers):
            # One was loaded by an engine process that has ended since; the next will have it.
            self._engine.process.kill()
        else:
            self._engine.send(serve=numbers)
            self._loaded.intersection_update(numbers)

    # The front ends

    def join(self, child: ChildProcess) -> None:
        """A front end has been told the present models."""
        self._front_ends[child] = self._version

    async def leave(self, child: ChildProcess) -> None:
        async with self._agreed:
            self._front_ends.pop(child, None)
            self._agreed.notify_all()

    async def hear_front_end(self, child: ChildProcess, message: dict[str, Any]) -> None:
        """It serves the models of a version, or asks for a change."""
        if "version" in message:
            async with self._agreed:
                if child in self._front_ends:
                    self._front_ends[child] = message["version"]
                self._agreed.notify_all()
        else:
            task = asyncio.get_running_loop().create_task(self._answer(child, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, child: ChildProcess, message: dict[str, Any]) -> None:
        created = False
        try:
            if "put" in message:
                row = ModelSettings.model_validate(message["put"])
                created = await self.roster.put(row)
            else:
                await self.roster.delete(message["delete"])
        except ServiceError as error:
            child.send(answer=message["question"], refusal=refusal_of(error))
        else:
            child.send(answer=message["question"], created=created)

    async def _install(self) -> None:
        await self._agree()
        self._serve()

    async def _agree(self) -> None:
        """Every front end serves the present models."""
        self._version = version = self._version + 1
        for child in self._front_ends:
            child.send(models=self.listed(), version=version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGREEMENT_SECONDS), self._agreed:
                await self._agreed.wait_for(
                    lambda: all(has >= version for has in self._front_ends.values())
                )
