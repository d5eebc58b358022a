"""The ingress of a Ray cluster: our HTTP application, whose models are other deployments."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ray.serve.handle import DeploymentHandle

from service.config.loading import validated
from service.config.objectives import objectives_of
from service.config.settings import Settings
from service.http.app import create_app
from service.logs import log_to_stderr
from service.ray.metrics import INGRESS, RayMetrics
from service.ray.repository import RayRepository

if TYPE_CHECKING:
    from fastapi import FastAPI


class Ingress:
    """Starts to serve once all models do; until then Ray routes to the previous version."""

    async def __init__(  # type: ignore[misc] # Ray awaits it.
        self, fields: dict[str, Any], *handles: DeploymentHandle
    ) -> None:
        # Limits for all front ends together apply to each ingress.
        self._settings = validated(Settings, **fields | {"workers": 1})
        log_to_stderr(self._settings.log_level, self._settings.log_format)
        self._metrics = RayMetrics(INGRESS, objectives_of(self._settings))
        self._repository = RayRepository(self._settings, list(handles), self._metrics)
        await self._repository.wait_until_ready()
        self._pushing = asyncio.create_task(self._metrics.keep_pushing())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._settings, self._metrics, self._repository)
