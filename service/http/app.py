"""The composition root: builds the application from its settings."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp

from service.config.objectives import objectives_of
from service.config.settings import Settings
from service.http import openapi, problems
from service.http.access import ApiKeyMiddleware, Keys
from service.http.body import UploadBudget
from service.http.exposition import Exposition
from service.http.middleware import API, ObservabilityMiddleware
from service.http.plain_route import PlainRoutesMiddleware
from service.http.routers import (
    classify,
    embed,
    explain,
    health,
    kserve_v1,
    models,
    pages,
    sagemaker,
    torchserve,
    v2,
    v2_reference,
    vertex,
)
from service.http.routing import RoutingMiddleware
from service.http.services import Services
from service.inference.interfaces import Repository
from service.inference.lane import Lane
from service.inference.pipeline import Pipeline
from service.metrics import Metrics

Layer = Callable[[ASGIApp], ASGIApp]
log = logging.getLogger(__name__)
# What a page of another origin may send, and may read from a response.
CORS = partial(
    CORSMiddleware,
    allow_methods=["GET", "POST", "PUT"],
    allow_headers=[
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "Inference-Header-Content-Length",
        "X-API-Key",
        "X-Request-ID",
        "X-Request-Timeout-Ms",
    ],
    expose_headers=[
        "Inference-Header-Content-Length",
        "Retry-After",
        "Server-Timing",
        "X-Request-ID",
    ],
)

# Python computes in one thread at a time; a second one keeps the first from holding up all others.
FORMAT_THREADS = 2
ENDPOINTS = (classify, embed, explain, models, health, pages)
# The routers of routes that FastAPI describes only.
DESCRIBED = (classify.plain, v2_reference.plain, kserve_v1.plain, torchserve.plain, sagemaker.plain)


def unclaimed(routes: Iterable[Route], others: Iterable[BaseRoute]) -> list[Route]:
    """Those of `routes` whose paths no other route has. A log line says which paths of the service
    a platform's choice takes over."""
    others, free = list(others), []
    for route in routes:
        (method,) = (route.methods or set()) - {"HEAD"}
        scope = {"type": "http", "path": route.path, "method": method, "root_path": ""}
        matches = [other.matches(scope)[0] for other in others]
        if Match.FULL in matches:
            log.warning(
                "%s %s answers Vertex AI, as the AIP_ variables say, and no longer as usual",
                method,
                route.path,
            )
        if all(match is Match.NONE for match in matches):
            free.append(route)
    return free


def plain_routes(settings: Settings) -> list[Route]:
    """The routes that FastAPI only describes, if at all, but for Vertex AI's."""
    return [
        *classify.ROUTES,
        *v2.ROUTES,
        *kserve_v1.routes(settings),
        *torchserve.routes(settings),
        *torchserve.ping_routes(settings),
        *sagemaker.routes(settings),
    ]


class Application(FastAPI):
    """FastAPI inside of `layers`, the innermost first, so that plain routes do without its own."""

    def __init__(self, **options: Any) -> None:
        self.layers: list[Layer] = []
        super().__init__(**options)

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        for layer in self.layers:
            app = layer(app)
        return app


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    repository: Repository | None = None,
) -> FastAPI:
    """The application; its engines start with its lifespan and load in the background.

    `repository` holds the models if their engines run in other processes.

    Raises:
        ConfigError: a model cannot be served.
    """
    metrics = metrics or Metrics(objectives_of(settings))
    if repository is None:
        # A front end, whose engines run elsewhere, must not import torch.
        from service.repository import local  # noqa: PLC0415

        repository = local.LocalRepository(settings, metrics)
    pipeline = Pipeline(metrics, repository, settings.metrics_classes)
    tracing = None
    if settings.traced:
        # An optional dependency.
        from service.http.tracing import Tracing, TracingMiddleware  # noqa: PLC0415

        tracing = Tracing(settings)
        pipeline.follow = tracing.follow

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        repository.start()
        yield
        pipeline.draining = pipeline.refusing = True
        services.lane.close()
        services.ended = await anyio.to_thread.run_sync(repository.close, services.patience)
        if tracing is not None:
            await anyio.to_thread.run_sync(tracing.close, services.patience)

    app = Application(
        title="resnet-serve",
        version=version("resnet-serve"),
        summary="Classifies images with residual networks",
        lifespan=lifespan,
        # `pages` serves it: FastAPI would make it on the event loop.
        openapi_url=None,
        # FastAPI's own pages load scripts from a public CDN.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # See RoutingMiddleware.
        # It would look up OpenTelemetry's providers in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    services = app.state.services = Services(
        settings=settings,
        metrics=metrics,
        exposition=Exposition(metrics),
        pipeline=pipeline,
        keys=Keys(settings),
        budget=UploadBudget(
            settings.max_upload_bytes // settings.workers,
            settings.upload_timeout_s,
            settings.min_upload_bytes_per_s,
        ),
        lane=Lane(FORMAT_THREADS, "format"),
        patience=settings.shutdown_timeout_s,
    )
    problems.install(app)
    openapi.describe(app, DESCRIBED)
    for endpoints in ENDPOINTS:
        app.include_router(endpoints.router)
    app.layers = _layers(app, services)
    if tracing is not None:
        app.layers.append(partial(TracingMiddleware, tracing=tracing))
    return app


def _layers(app: FastAPI, services: Services) -> list[Layer]:
    """What each request passes through before `app`, the innermost first."""
    settings = services.settings
    of_vertex = vertex.routes(settings)
    own = plain_routes(settings)
    own += unclaimed(of_vertex, [*own, *app.routes])
    # Lets a page of another origin read the timings that browsers keep of its requests.
    origins = ", ".join(settings.cors_origins).encode()
    observed = partial(
        ObservabilityMiddleware,
        metrics=services.metrics,
        pipeline=services.pipeline,
        headers=[(b"timing-allow-origin", origins)] if origins else [],
        private=(*API, *(route.path for route in of_vertex)),
        access_log=settings.access_log,
    )
    return [
        partial(PlainRoutesMiddleware, routes=own, first=of_vertex),
        partial(ApiKeyMiddleware, keys=services.keys),
        RoutingMiddleware,
        *([partial(CORS, allow_origins=settings.cors_origins)] if origins else []),
        observed,
    ]
