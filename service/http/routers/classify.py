"""The endpoints."""

from __future__ import annotations

import asyncio
import re
import time
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json
from starlette.types import Scope

from service.config.settings import Settings
from service.errors import BadParameter, CallerError
from service.http import schemas
from service.http.body import Body, Intake
from service.http.problems import timed
from service.http.uploads import Upload, read_image, read_images, until_disconnect
from service.inference.pipeline import Computed, Model, Pipeline
from service.metrics import CONTENT_TYPE, OPENMETRICS, OPENMETRICS_TYPE, Metrics

CLASSIFY = "/v1/classify"
MAX_TIMEOUT_MS = 3_600_000
TIMEOUT = b"x-request-timeout-ms"
WEB = {
    "index.html": "text/html",
    "page.css": "text/css",
    "style.css": "text/css",
    "docs.html": "text/html",
    "docs.js": "text/javascript",
    "docs.css": "text/css",
    "icon.svg": "image/svg+xml",
    "ship.png": "image/png",
}
# The modules of the page.
WEB |= {
    f"{name}.js": "text/javascript"
    for name in (
        "api",
        "app",
        "camera",
        "elements",
        "key",
        "live",
        "map",
        "models",
        "predictions",
        "sending",
        "snippets",
    )
}
# The pages need nothing from elsewhere, and must not be made to.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}

Name = Annotated[str | None, Query(description="a name of GET /v1/models; default: the first")]
TopK = Annotated[
    int | None,
    Query(description="predictions to give, 1 to the number of classes; default 5", ge=1),
]

PROBLEM = {"model": schemas.Problem, "content": {"application/problem+json": {}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: PROBLEM | {"description": "bytes that no decoder reads, a truncated image"},
    401: PROBLEM | {"description": "a key is needed (Authorization: Bearer, or X-API-Key)"},
    404: PROBLEM | {"description": "unknown model"},
    408: PROBLEM | {"description": "the headers or the body took too long to arrive"},
    413: PROBLEM | {"description": "body or pixel count over the limit"},
    415: PROBLEM | {"description": "a content type that is no image"},
    422: PROBLEM | {"description": "a parameter out of range"},
    429: PROBLEM | {"description": "the queue is full; Retry-After says when it has drained"},
    431: PROBLEM | {"description": "request line and headers over the limit"},
    503: PROBLEM | {"description": "loading, draining, or the engine is down; with Retry-After"},
    504: PROBLEM | {"description": "the deadline passed (X-Request-Timeout-Ms)"},
}
BINARY = {"schema": {"type": "string", "format": "binary"}}


def form_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": ["image"], "properties": {"image": field}}}


FILE = {"type": "string", "format": "binary"}
ONE_IMAGE = {
    "image/*": BINARY,
    "application/octet-stream": BINARY,
    "multipart/form-data": form_of(FILE),
}
IMAGES = {"multipart/form-data": form_of({"type": "array", "items": FILE})}
TIMEOUT_HEADER = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "milliseconds after which the caller no longer wants the answer",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_MS},
}

router = APIRouter()


@router.post(
    CLASSIFY,
    response_model=schemas.Classification,
    responses=REFUSALS,
    openapi_extra={
        "requestBody": {"required": True, "content": ONE_IMAGE},
        "parameters": [TIMEOUT_HEADER],
    },
)
async def classify(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The likeliest classes of one image: raw bytes, or a form with the field `image`."""
    return await answer(request, *admit(request.scope, model, top_k))


async def answer(
    request: Request, pipeline: Pipeline, served: Model, k: int, deadline: float
) -> Response:
    """What `classify` answers to an admitted request."""
    with served.lease:
        with receive(request, settings_of(request).max_body_bytes, deadline) as arriving:
            data = await read_image(arriving)
        classified = await until_disconnect(request, pipeline.classify(served, data, k, deadline))
    body = schemas.classification_of(classified)
    headers = timed(body["timing_ms"])
    return Response(to_json(body), headers=headers, media_type="application/json")


async def compute(request: Request, served: Model, task: int, deadline: float) -> Computed:
    """What the engine makes of the one image of an admitted request."""
    with served.lease:
        with receive(request, settings_of(request).max_body_bytes, deadline) as arriving:
            data = await read_image(arriving)
        work = pipeline_of(request).compute(served, data, deadline, task)
        return await until_disconnect(request, work)


@router.post(
    "/v1/classify/batch",
    response_model=schemas.BatchClassification,
    responses=REFUSALS,
    openapi_extra={
        "requestBody": {"required": True, "content": IMAGES},
        "parameters": [TIMEOUT_HEADER],
    },
)
async def classify_batch(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The likeliest classes of several images in one form; a bad image fails alone."""
    pipeline, served, k, deadline = admit(request.scope, model, top_k)
    limits = settings_of(request)
    # A large batch takes its turn with the others instead of the whole queue.
    places = asyncio.Semaphore(served.batch_share)
    computed: list[Computed] = []

    async def one(upload: Upload) -> schemas.BatchItem:
        try:
            async with places:
                found = await pipeline.classify(served, upload.data, k, deadline)
        except CallerError as error:
            pipeline.metrics.refused(served.name, error.reason)
            return schemas.BatchItem(filename=upload.filename, error=str(error))
        computed.append(found.computed)
        predictions = schemas.predictions_of(found.predictions)
        return schemas.BatchItem.model_validate(
            {"filename": upload.filename, "predictions": predictions}
        )

    async def every(uploads: list[Upload]) -> list[schemas.BatchItem]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(upload)) for upload in uploads]
        except BaseExceptionGroup as failures:
            # What is wrong with the service, not with an image, fails the whole request.
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    # To the end: images that wait for their turn are in no queue yet.
    with (
        served.lease,
        receive(request, limits.max_batch_body_bytes, deadline) as arriving,
    ):
        uploads = await read_images(arriving, limits.max_batch_images)
        results = await until_disconnect(request, every(uploads))
    body = schemas.BatchClassification(model=served.name, results=results)
    # FastAPI would validate it a second time.
    content = body.model_dump_json(exclude_none=True)
    total = time.perf_counter() - request.scope["state"]["started"]
    headers = timed(schemas.slowest_of(computed, total))
    return Response(content, headers=headers, media_type="application/json")


@router.get("/v1/models", responses={401: REFUSALS[401]})
async def list_models(request: Request) -> schemas.Models:
    """What is served, the default model first."""
    described = [model.describe() for model in pipeline_of(request).models.values()]
    return schemas.Models.model_validate({"models": described})


@router.get("/v1/models/{name}", responses={code: REFUSALS[code] for code in (401, 404, 422)})
async def show_model(request: Request, name: str) -> schemas.ModelDetails:
    """One model, with its card."""
    return schemas.ModelDetails.model_validate(pipeline_of(request).find(name).describe())


@router.get(
    "/health/live", response_model=schemas.Health, responses={503: {"model": schemas.Health}}
)
async def live(request: Request) -> JSONResponse:
    """200 as long as the process can serve or recover, else 503 and why: it must be replaced."""
    return health_of("live", "lost", pipeline_of(request).dead())


@router.get(
    "/health/ready", response_model=schemas.Health, responses={503: {"model": schemas.Health}}
)
async def ready(request: Request) -> JSONResponse:
    """200 if every model can answer now, else 503 and why."""
    return health_of("ready", "not ready", pipeline_of(request).unready())


@router.get(
    "/metrics",
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
    """Prometheus's text format, or OpenMetrics for who would rather have it."""
    found: Metrics = request.app.state.metrics
    openmetrics = prefers_openmetrics(request.headers.get("accept", ""))
    content_type = OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE
    return Response(
        found.render(openmetrics=openmetrics),
        headers={"Content-Type": content_type, "Vary": "Accept"},
    )


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return web_file("index.html")


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    return web_file("docs.html")


@router.get("/web/{file}", include_in_schema=False)
async def page_part(file: str) -> Response:
    if file not in WEB:
        return Response(status_code=404)
    return web_file(file)


def web_file(name: str) -> Response:
    content = resources.files("service.http.web").joinpath(name).read_bytes()
    return Response(content, media_type=WEB[name], headers=PAGE_HEADERS)


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header has OpenMetrics at least as high as plain text."""
    weights = {OPENMETRICS: 0.0, "text/plain": 0.0}
    for offer in accept.split(","):
        kind, *parameters = [part.strip() for part in offer.lower().split(";")]
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        if kind in weights and re.fullmatch(r"[01](\.[0-9]{0,3})?", quality):
            weights[kind] = max(weights[kind], float(quality))
    return 0 < weights[OPENMETRICS] >= weights["text/plain"]


def health_of(well: str, ill: str, reasons: dict[str, str]) -> JSONResponse:
    health = schemas.Health(status=ill if reasons else well, reasons=reasons)
    return JSONResponse(health.model_dump(), 503 if reasons else 200)


def pipeline_of(request: Request) -> Pipeline:
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def receive(request: Request, max_bytes: int, deadline: float) -> Body:
    """The request's body, not read yet; refused where the headers tell that it cannot be."""
    intake: Intake = request.app.state.intake
    return Body(request, intake, max_bytes, deadline)


def admit(scope: Scope, name: str | None, top_k: int | None) -> tuple[Pipeline, Model, int, float]:
    """Refuses what can be refused before the body is read; else the model, k and the deadline."""
    state = scope["app"].state
    pipeline: Pipeline = state.pipeline
    model = pipeline.find(name)
    scope["state"]["model"] = model.name
    timeout_ms = state.settings.request_timeout_ms
    for header, value in scope["headers"]:
        if header == TIMEOUT:
            timeout_ms = milliseconds(value)
    k = pipeline.check(model, top_k, timeout_ms / 1000)
    return pipeline, model, k, asyncio.get_running_loop().time() + timeout_ms / 1000


def milliseconds(value: bytes) -> float:
    """What X-Request-Timeout-Ms says."""
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 < found <= MAX_TIMEOUT_MS:
        raise BadParameter(
            f"X-Request-Timeout-Ms must be above 0 and up to {MAX_TIMEOUT_MS}, "
            f"not {value.decode('latin-1')!r}"
        )
    return found
