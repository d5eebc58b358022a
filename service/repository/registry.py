"""Which models are served, in which order, and how that changes: as a whole or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, TypeVar

from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import Conflict, LoadFailed, UnknownModel

T = TypeVar("T")


class Member(Protocol):
    """A model that serves; its settings may leave its name open."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> ModelSettings: ...


M = TypeVar("M", bound=Member)


class Registry(Generic[M]):
    """The models in their order; the first is the default one.

    Changes come one after another. Whatever is new is loaded first, beside what serves, and takes
    over only when all of it is ready. A caller who leaves does not stop a change half-way.

    `load` makes a model ready to serve, or raises `LoadFailed` and leaves nothing behind, as it
    does when it is cancelled. `install` makes `members` what is served, `discard` forgets
    one that was loaded in vain. Loading takes at most `timeout` seconds.
    """

    def __init__(
        self,
        *,
        load: Callable[[ModelSettings], Awaitable[M]],
        install: Callable[[], Awaitable[None]],
        discard: Callable[[M], None],
        timeout: float,
    ) -> None:
        self.members: list[M] = []
        self._load_one = load
        self._install = install
        self._discard = discard
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()

    async def put(self, settings: ModelSettings) -> bool:
        """Serves a model under the name that its settings have; whether the name is new.

        Raises:
            LoadFailed: it cannot be served; what was served still is.
            Conflict: there are the limit on the number of models is reached.
        """
        return await self._whole(self._put(settings))

    async def delete(self, name: str) -> None:
        """Serves a model no longer.

        Raises:
            UnknownModel: there is none of that name.
            Conflict: it is the default one.
        """
        await self._whole(self._delete(name))

    async def reload(self, models: Sequence[ModelSettings]) -> str:
        """Serves exactly `models`; says in words what changed. Unchanged ones serve on.

        Raises:
            LoadFailed: one of them cannot be served, or two have the same name; nothing changed.
        """
        return await self._whole(self._reload(models))

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        async def in_turn() -> T:
            async with self._turn:
                return await change

        task = asyncio.get_running_loop().create_task(in_turn())
        self._changes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # Who asked may have left, and never look.

    async def _put(self, settings: ModelSettings) -> bool:
        names = [member.name for member in self.members]
        created = settings.name not in names
        if created and len(names) >= MOST_MODELS:
            raise Conflict(f"the limit of {len(names)} models is reached; delete one first")
        loaded = await self._load(settings)
        if created:
            self.members = [*self.members, loaded]
        else:
            self.members = [
                loaded if name == settings.name else member
                for name, member in zip(names, self.members, strict=True)
            ]
        await self._install()
        return created

    async def _delete(self, name: str) -> None:
        names = [member.name for member in self.members]
        if name not in names:
            raise UnknownModel.called(name, names)
        if name == names[0]:
            raise Conflict(
                f"{name} is the default model and cannot be deleted; PUT another one under "
                "its name, or change the configuration's first model and send SIGHUP"
            )
        self.members = [m for m in self.members if m.name != name]
        await self._install()

    async def _reload(self, models: Sequence[ModelSettings]) -> str:
        wanted: list[M] = []
        loaded: list[M] = []
        try:
            for index, settings in enumerate(models):
                member = next((m for m in self.members if m.settings == settings), None)
                if member is None:
                    member = await self._load_numbered(index, settings)
                    loaded.append(member)
                _check_name(index, member, wanted)
                wanted.append(member)
        except BaseException:
            for member in loaded:
                self._discard(member)
            raise
        before = {member.name for member in self.members}
        after = {member.name for member in wanted}
        fresh = {member.name for member in loaded}
        changes = {
            "replaced": fresh & before,
            "added": fresh - before,
            "removed": before - after,
            "unchanged": after - fresh,
        }
        self.members = wanted
        await self._install()
        said = [f"{_listed(names)} {what}" for what, names in changes.items() if names]
        return "; ".join(said)

    async def _load_numbered(self, index: int, settings: ModelSettings) -> M:
        try:
            return await self._load(settings)
        except LoadFailed as error:
            raise LoadFailed(f"models[{index}]: {error}") from None

    async def _load(self, settings: ModelSettings) -> M:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._load_one(settings)
        except TimeoutError:
            raise LoadFailed(
                f"{settings.spec}: not ready after {self._timeout:g} s; increase load_timeout_s"
            ) from None


def _check_name(index: int, member: Member, others: Sequence[Member]) -> None:
    if member.name in [other.name for other in others]:
        raise LoadFailed(f"models[{index}].name: {member.name!r} is taken; give it another")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
