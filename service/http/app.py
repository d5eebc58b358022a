"""The composition root: settings in, a whole application out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from service.config.settings import Settings
from service.http import problems
from service.http.access import Access, Keys
from service.http.body import Intake
from service.http.express import Express
from service.http.middleware import Observe
from service.http.routers import embed, explain, models
from service.http.routers.classify import router
from service.http.v2 import routes as v2
from service.inference.pipeline import Fleet, Pipeline
from service.metrics import Metrics

# What a page of another origin may send, and may read of an answer.
CORS_ASKED = [
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Inference-Header-Content-Length",
    "X-API-Key",
    "X-Request-ID",
    "X-Request-Timeout-Ms",
]
CORS_TOLD = ["Inference-Header-Content-Length", "Retry-After", "Server-Timing", "X-Request-ID"]


def create_app(
    settings: Settings,
    metrics: Metrics | None = None,
    fleet: Fleet | None = None,
    kind: type[Pipeline] = Pipeline,
) -> FastAPI:
    """The application; its engines start with its lifespan, and load in the background.

    `fleet` has the models where they do not run in this process, `kind` what computes with them.

    Raises:
        ConfigError: a model cannot be served.
    """
    metrics = metrics or Metrics()
    if fleet is None:
        # A front end, whose engines are elsewhere, must not import torch.
        from service.repository import local  # noqa: PLC0415

        fleet = local.Fleet(settings, metrics)
    pipeline = kind(settings, metrics, fleet)
    tracing = None
    if settings.traced:
        # An extra, and nothing that is not asked for.
        from service.http.tracing import Traced, Tracing  # noqa: PLC0415

        tracing = Tracing(settings)
        pipeline.follow = tracing.follow

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pipeline.start()
        yield
        pipeline.draining = pipeline.refusing = True
        app.state.ended = await anyio.to_thread.run_sync(
            pipeline.close, settings.shutdown_timeout_s
        )
        if tracing is not None:
            await anyio.to_thread.run_sync(tracing.close, settings.shutdown_timeout_s)

    app = FastAPI(
        title="resnet-serve",
        version=version("resnet-serve"),
        summary="Classifies images with residual networks",
        lifespan=lifespan,
        # Its own pages of these have a browser load scripts from a public network.
        docs_url=None,
        redoc_url=None,
        # It would look for OpenTelemetry's providers in every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings, app.state.metrics, app.state.pipeline = settings, metrics, pipeline
    app.state.keys = Keys(settings)
    app.state.intake = Intake(
        settings.max_upload_bytes // settings.workers, settings.upload_timeout_s
    )
    problems.install(app)
    # First: they tell at once whether a path is theirs.
    app.router.routes.extend(v2.ROUTES)
    for each in (router, embed.router, explain.router, models.router):
        app.include_router(each)
    app.add_middleware(Express)
    app.add_middleware(Access, keys=app.state.keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=CORS_ASKED,
            expose_headers=CORS_TOLD,
        )
    # A page of another origin may then read the timings that browsers keep of its requests.
    timed = ", ".join(settings.cors_origins).encode()
    always = [(b"timing-allow-origin", timed)] if timed else []
    app.add_middleware(Observe, metrics=metrics, pipeline=pipeline, headers=always)
    if tracing is not None:
        app.add_middleware(Traced, tracing=tracing)
    return app
