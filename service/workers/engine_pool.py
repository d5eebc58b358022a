"""The engine processes of all devices, as the supervisor knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from service.config.choices import MOST_DEVICES
from service.errors import RETRY_SECONDS, LoadFailed, NotReady
from service.workers.control import process_name
from service.workers.device_engine import DeviceEngine


class EnginePool:
    """An engine process for each device that a model has needed; it stays when none does any more.

    `start` starts the one of an index and device, and restarts it for ever.
    """

    def __init__(self, start: Callable[[int, str], DeviceEngine]) -> None:
        self._start = start
        self._engines: list[DeviceEngine] = []

    def __iter__(self) -> Iterator[DeviceEngine]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    def start_first(self) -> None:
        """Starts the first one, which says which devices there are."""
        self._engines = [self._start(0, "")]

    def assign(self, devices: Iterable[str]) -> None:
        """Gives the first one the first of these devices, and each of the others its own.

        Raises:
            LoadFailed, NotReady: see `of`.
        """
        first, *others = devices
        self._engines[0].device = first
        self._name()
        for device in others:
            self.of(device)

    def of(self, device: str) -> DeviceEngine:
        """The one of a device, which is started if there is none.

        Raises:
            LoadFailed: there are too many.
            NotReady: there is no memory, or there are too many files.
        """
        for engine in self._engines:
            if engine.device == device:
                return engine
        if len(self._engines) == MOST_DEVICES:
            raise LoadFailed(f"device: {device} would be one more than {MOST_DEVICES} devices")
        try:
            engine = self._start(len(self._engines), device)
        except OSError as error:
            why = f"no engine process can be started for {device}: {error.strerror}; retry"
            raise NotReady(why, RETRY_SECONDS) from None
        self._engines.append(engine)
        self._name()
        return engine

    def _name(self) -> None:
        for engine in self._engines:
            engine.role.name = process_name(engine.device, alone=len(self._engines) == 1)

    def any(self) -> DeviceEngine:
        """One that runs; if none does, the first."""
        return next((engine for engine in self._engines if engine.child), self._engines[0])

    def broken(self) -> dict[str, str]:
        """Why, by device that does not come back."""
        return {engine.device: engine.broken for engine in self._engines if engine.broken}
