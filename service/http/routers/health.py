"""Health probes for orchestrators, and metrics for Prometheus."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.http import schemas
from service.http.api_document import OPERATION
from service.http.services import services_of
from service.metrics import CONTENT_TYPE, OPENMETRICS, OPENMETRICS_TYPE

UNHEALTHY = {"model": schemas.Health, "description": "no, for the reasons given"}

router = APIRouter()


@router.get(
    "/health/live",
    operation_id="isLive",
    tags=[OPERATION],
    response_model=schemas.Health,
    responses={503: UNHEALTHY},
)
async def live(request: Request) -> JSONResponse:
    """200 if the process can serve or recover; else 503 with reasons: it must be replaced."""
    return health_of("live", "lost", services_of(request.scope).pipeline.repository.dead())


@router.get(
    "/health/ready",
    operation_id="isReady",
    tags=[OPERATION],
    response_model=schemas.Health,
    responses={503: UNHEALTHY},
)
async def ready(request: Request) -> JSONResponse:
    """200 if every model can serve now; else 503 with reasons."""
    return health_of("ready", "not ready", services_of(request.scope).pipeline.unready())


@router.get(
    "/metrics",
    operation_id="metrics",
    tags=[OPERATION],
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                OPENMETRICS: {"schema": {"type": "string"}},
            }
        }
    },
)
async def metrics(request: Request) -> Response:
    """Prometheus's text format, or OpenMetrics if the client prefers it."""
    openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
    content_type = OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE
    return Response(
        await services_of(request.scope).exposition.text(openmetrics=openmetrics),
        headers={"Content-Type": content_type, "Vary": "Accept"},
    )


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header ranks OpenMetrics at least as high as plain text."""
    weights = {OPENMETRICS: 0.0, "text/plain": 0.0}
    for offer in accept.split(","):
        kind, *parameters = [part.strip() for part in offer.lower().split(";")]
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        if kind in weights and re.fullmatch(r"[01](\.[0-9]{0,3})?", quality):
            weights[kind] = max(weights[kind], float(quality))
    return 0 < weights[OPENMETRICS] >= weights["text/plain"]


def health_of(healthy: str, unhealthy: str, reasons: dict[str, str]) -> JSONResponse:
    health = schemas.Health(status=unhealthy if reasons else healthy, reasons=reasons)
    return JSONResponse(health.model_dump(), 503 if reasons else 200)
