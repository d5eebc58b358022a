"""The objects that endpoints share, created by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Scope

from service.config.settings import Settings
from service.http.access import Keys
from service.http.body import UploadBudget
from service.http.exposition import Exposition
from service.inference.lane import Lane
from service.inference.pipeline import Pipeline
from service.metrics import Metrics

T = TypeVar("T")
# Predictions that are formatted on the event loop, at a microsecond each.
DIRECT_VALUES = 1000


@dataclass(slots=True)
class Services:
    """`lane`: threads for what would block the event loop; `patience`: seconds that the
    application's end waits for what is still computed; `ended`: whether the engines had stopped by
    then."""

    settings: Settings
    metrics: Metrics
    exposition: Exposition
    pipeline: Pipeline
    keys: Keys
    budget: UploadBudget
    lane: Lane
    patience: float
    ended: bool = False

    async def format(self, values: int, work: Callable[[], T]) -> T:
        """A response's content, from `work`; in a thread if it has so many `values` that it would
        block the event loop."""
        return work() if values <= DIRECT_VALUES else await self.lane.run(work)


def services_of(scope: Scope) -> Services:
    services: Services = scope["app"].state.services
    return services
