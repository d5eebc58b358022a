"""Builds a model's engines for one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from models.bundle import Bundle
from service.config.settings import ModelSettings, Settings
from service.engines.devices import advise_openvino, engines_for
from service.engines.engine import Warm
from service.engines.start import blueprint_of, start_engine, start_first


class EngineBuilder:
    """The first engine, better ones while it serves, and another after a failure.

    It holds the weights of `bundle` until the first engine and the better ones are built; for
    another, `read` reads them again. `request_seconds` and `turn`: see `blueprint_of`.

    Raises:
        ConfigError: the precision is int8, and the bundle was not calibrated.
    """

    def __init__(
        self,
        bundle: Bundle,
        read: Callable[[], Bundle],
        settings: ModelSettings,
        service: Settings,
        device: str,
        request_seconds: float,
        turn: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._kind, *self.better_kinds = engines_for(settings, device)
        if device == "cpu" and settings.engine == "auto" and self._kind != "openvino":
            advise_openvino()
        self._tolerance = settings.parity_tolerance
        self._read = read
        self._blueprint_of = partial(
            blueprint_of,
            model=settings,
            device=device,
            service=service,
            request_seconds=request_seconds,
            turn=turn,
        )
        # One for the first engine and one for the better ones, which take them away.
        self._blueprints = [self._blueprint_of(bundle)] * (2 if self.better_kinds else 1)

    def first(self, progress: Callable[[str], object]) -> Warm:
        """The engine that serves first; called once. `progress` is told what is being done."""
        blueprint = replace(self._blueprints.pop(), progress=progress)
        return start_first([self._kind], blueprint, self._tolerance)

    def better(self) -> Iterator[Callable[[], Warm]]:
        """What builds each of `better_kinds`, to replace the engine before it; called once."""
        blueprint = self._blueprints.pop()
        for kind in self.better_kinds:
            yield partial(start_engine, kind, blueprint, self._tolerance)

    def rebuild(self, kind: str | None) -> Warm:
        """An engine of the kind that failed; None: of the first, which never started.

        Raises:
            RuntimeError: it does not start, or the weights cannot be read again.
        """
        blueprint = self._blueprint_of(self._read())
        return start_first([kind or self._kind], blueprint, self._tolerance)
