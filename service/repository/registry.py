"""The served models and their order; changes are all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from service.config.loading import of_model
from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import Conflict, LoadFailed, UnknownModel

T = TypeVar("T")


class Install(Protocol):
    """Starts serving the registry's models; if they are `required`, whatever it takes.

    Raises:
        ServiceError: not every process can serve them; never if they are `required`.
    """

    async def __call__(self, *, required: bool) -> None: ...


class RegisteredModel(Protocol):
    """A model that serves; its settings may have no name."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> ModelSettings: ...


M = TypeVar("M", bound=RegisteredModel)


class Registry(Generic[M]):
    """The models in their order; the first is the default one.

    Changes are made one after another. New models load beside those that serve, and take over only
    when all of them are ready. A client that disconnects does not stop a change half-way.

    `load` makes a model ready to serve, or raises `LoadFailed`; failed or cancelled, it leaves
    nothing behind. `install` starts serving `models`; if it fails, those before serve again.
    `discard` drops a loaded model that is not needed after all. Loading may take `timeout` seconds.
    """

    def __init__(
        self,
        *,
        load: Callable[[ModelSettings], Awaitable[M]],
        install: Install,
        discard: Callable[[M], None],
        timeout: float,
    ) -> None:
        self.models: list[M] = []
        self._load_one = load
        self._install = install
        self._discard = discard
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    async def put(self, settings: ModelSettings) -> bool:
        """Serves a model under the name in its settings; returns whether the name is new.

        Raises:
            LoadFailed: it cannot be served; nothing changed.
            NotReady: not every process can serve it now; nothing changed.
            Conflict: the limit on the number of models is reached.
        """
        return await self._exclusively(self._put(settings))

    async def delete(self, name: str) -> None:
        """Stops serving a model.

        Raises:
            UnknownModel: no model has that name.
            Conflict: it is the default model.
        """
        await self._exclusively(self._delete(name))

    async def reload(self, models: Sequence[ModelSettings]) -> str:
        """Serves exactly `models`; returns a description of the changes. Unchanged models stay.

        Raises:
            LoadFailed: one of them cannot be served, or two have the same name; nothing changed.
            NotReady: not every process can serve them now; nothing changed.
        """
        return await self._exclusively(self._reload(models))

    async def _exclusively(self, change: Coroutine[Any, Any, T]) -> T:
        async def locked() -> T:
            async with self._lock:
                return await change

        task = asyncio.get_running_loop().create_task(locked())
        self._changes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # Else asyncio logs it if the client has disconnected.

    async def _put(self, settings: ModelSettings) -> bool:
        names = [model.name for model in self.models]
        created = settings.name not in names
        if created and len(names) >= MOST_MODELS:
            raise Conflict(f"the limit of {len(names)} models is reached; delete one first")
        loaded = await self._load(settings)
        if created:
            models = [*self.models, loaded]
        else:
            models = [
                loaded if name == settings.name else model
                for name, model in zip(names, self.models, strict=True)
            ]
        await self._switch(models)
        return created

    async def _delete(self, name: str) -> None:
        names = [model.name for model in self.models]
        if name not in names:
            raise UnknownModel.called(name, names)
        if name == names[0]:
            raise Conflict(
                f"{name} is the default model and cannot be deleted; PUT another one under "
                "its name, or change the configuration's first model and send SIGHUP"
            )
        await self._switch([model for model in self.models if model.name != name])

    async def _switch(self, models: list[M]) -> None:
        """Serves `models`, or what served before if not every process can."""
        previous, self.models = self.models, models
        try:
            await self._install(required=False)
        except BaseException:
            self.models = previous
            await self._install(required=True)
            for model in models:
                if model not in previous:
                    self._discard(model)
            raise

    async def _reload(self, configuration: Sequence[ModelSettings]) -> str:
        models: list[M] = []
        loaded: list[M] = []
        try:
            for index, settings in enumerate(configuration):
                model = next((m for m in self.models if m.settings == settings), None)
                if model is None:
                    model = await self._load_numbered(index, settings)
                    loaded.append(model)
                _check_name(index, model, models)
                models.append(model)
        except BaseException:
            for model in loaded:
                self._discard(model)
            raise
        before = {model.name for model in self.models}
        after = {model.name for model in models}
        new = {model.name for model in loaded}
        changes = {
            "replaced": new & before,
            "added": new - before,
            "removed": before - after,
            "unchanged": after - new,
        }
        await self._switch(models)
        return "; ".join(
            f"{', '.join(sorted(names))} {change}" for change, names in changes.items() if names
        )

    async def _load_numbered(self, index: int, settings: ModelSettings) -> M:
        try:
            return await self._load(settings)
        except LoadFailed as error:
            raise LoadFailed(of_model(index, error)) from None

    async def _load(self, settings: ModelSettings) -> M:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._load_one(settings)
        except TimeoutError:
            raise LoadFailed(
                f"{settings.spec}: not ready after {self._timeout:g} s; increase load_timeout_s"
            ) from None


def _check_name(index: int, model: RegisteredModel, others: Sequence[RegisteredModel]) -> None:
    if model.name in [other.name for other in others]:
        raise LoadFailed(f"models[{index}].name: {model.name!r} is already in use; choose another")
