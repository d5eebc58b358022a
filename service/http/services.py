"""The objects that endpoints share, created by the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from service.config.settings import Settings
from service.http.access import Keys
from service.http.body import UploadBudget
from service.http.exposition import Exposition
from service.inference.pipeline import Pipeline
from service.metrics import Metrics


@dataclass(slots=True)
class Services:
    """`patience`: seconds that the application's end waits for what is still computed; `ended`:
    whether the engines had stopped by then."""

    settings: Settings
    metrics: Metrics
    exposition: Exposition
    pipeline: Pipeline
    keys: Keys
    budget: UploadBudget
    patience: float
    ended: bool = False


def services_of(scope: Scope) -> Services:
    services: Services = scope["app"].state.services
    return services
