"""The engine process of one device, as the supervisor knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

from service.config.settings import ModelSettings
from service.errors import RETRY_SECONDS, NotReady, error_of
from service.workers.control import Message
from service.workers.process import ChildProcess, Role


class DeviceEngine:
    """The engine process of one device, whichever process that is by now.

    `index`: its own among the engine processes, for ever; `device`: "" until the first one has
    resolved the devices; `child`: None while it starts; `broken`: why it does not come back, "" if
    it may.
    """

    def __init__(self, role: Role, index: int, device: str) -> None:
        self.role = role
        self.index = index
        self.device = device
        self.child: ChildProcess | None = None
        self.broken = ""
        self._settled = asyncio.Event()  # it serves, or is broken
        self._loaded: set[int] = set()
        self._pending: dict[int, asyncio.Future[Any]] = {}  # by number of a new model

    def started(self, child: ChildProcess, numbers: Collection[int]) -> None:
        """Takes over a process that has opened the models of these numbers, in this order."""
        child.send(numbers=list(numbers))
        self._loaded = set(numbers)
        self.child = child
        self._settled.set()

    def ended(self) -> None:
        self.child = None
        self._settle()
        for pending in self._pending.values():
            if not pending.done():
                detail = f"{self.role.name} ended while loading the model; retry"
                pending.set_exception(NotReady(detail, RETRY_SECONDS))

    def breaks(self, reason: str) -> None:
        """Nobody shall wait for it; "": it works again."""
        self.broken = reason
        self._settle()

    def _settle(self) -> None:
        if self.child is not None or self.broken:
            self._settled.set()
        else:
            self._settled.clear()

    def on_message(self, message: Message) -> None:
        """The response to a command."""
        pending = self._pending.get(message["done"])
        if pending is None or pending.done():
            return
        if "refusal" in message:
            pending.set_exception(error_of(message["refusal"]))
        else:
            pending.set_result(message["result"])

    async def resolve(self, number: int, settings: ModelSettings) -> list[str]:
        """The devices of a new model.

        Raises:
            LoadFailed: one of them is not available.
            NotReady: the process ended, or is broken.
        """
        devices: list[str] = await self._command("resolve", number, settings)
        return devices

    async def load(self, number: int, settings: ModelSettings) -> dict[str, Any]:
        """Loads a new model on this device; returns its facts.

        Raises:
            LoadFailed: it cannot be served.
            NotReady: the process ended, or is broken.
        """
        facts: dict[str, Any] = await self._command("load", number, settings)
        self._loaded.add(number)
        return facts

    async def _command(self, name: str, number: int, settings: ModelSettings) -> Any:
        await self._settled.wait()
        if self.child is None:
            raise NotReady(f"{self.broken}; retry", RETRY_SECONDS)
        self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            self.child.send(**{name: number}, settings=settings.model_dump(mode="json"))
            return await self._pending[number]
        finally:
            del self._pending[number]

    def serve(self, numbers: Collection[int], loading: Iterable[int]) -> None:
        """Makes the process serve the models of these numbers, and end all others that do not load.

        If it lacks one, because its predecessor loaded it, it is replaced: the next one opens it.
        """
        if self.child is None:
            return
        if not self._loaded.issuperset(numbers):
            self.child.kill()
            return
        keep = {*loading}
        self.child.send(serve=list(numbers), keep=list(keep))
        self._loaded &= keep.union(numbers)
