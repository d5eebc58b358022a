"""`POST /v1/classify`, for one image and for several."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json
from starlette.routing import Route
from starlette.types import Scope

from service.errors import BadParameter, RequestError
from service.http import schemas
from service.http.admission import Admission, admit, receive
from service.http.openapi import IMAGES, ONE_IMAGE, REFUSALS, Name, TopK, taking
from service.http.problems import invalid, timed
from service.http.record import record_of
from service.http.uploads import Upload, read_image, read_images, until_disconnect
from service.inference.interfaces import Computed
from service.inference.tasks import Task

CLASSIFY = "/v1/classify"

router = APIRouter()
# Described by FastAPI and routed by ROUTES: routing and validation would cost more than a small
# network needs for its image.
plain = APIRouter()


@plain.post(
    CLASSIFY,
    response_model=schemas.Classification,
    responses=REFUSALS,
    openapi_extra=taking(ONE_IMAGE),
)
async def classify(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The likeliest classes of one image: raw bytes, or a form with the field `image`."""
    admission = admit(request.scope, model, top_k)
    served, pipeline = admission.model, admission.services.pipeline
    with served.users:
        data = await read_one(request, admission)
        classified = await until_disconnect(
            request, pipeline.classify(served, data, admission.k, admission.deadline)
        )
    body = schemas.classification_of(classified)
    headers = timed(body["timing_ms"])
    return Response(to_json(body), headers=headers, media_type="application/json")


class ClassifyQuery(BaseModel):
    """The query of `POST /v1/classify`; what else it has is ignored."""

    model: str | None = None
    top_k: int | None = Field(None, ge=1)


async def classify_by_query(request: Request) -> Response:
    query = query_of(request.scope)
    return await classify(request, query.model, query.top_k)


NO_QUERY = ClassifyQuery()
ROUTES = [Route(CLASSIFY, classify_by_query, methods=["POST"])]


def query_of(scope: Scope) -> ClassifyQuery:
    """Raises `BadParameter`: a parameter is out of range."""
    if not scope["query_string"]:
        return NO_QUERY
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    try:
        return ClassifyQuery.model_validate(dict(pairs))
    except ValidationError as error:
        raise BadParameter(invalid("query", error.errors())) from None


async def read_one(request: Request, admission: Admission) -> bytes:
    """The one image of an admitted request."""
    limit = admission.services.settings.max_body_bytes
    with receive(request, limit, admission.deadline) as arriving:
        return await read_image(arriving)


async def compute(request: Request, admission: Admission, task: Task) -> Computed:
    """What the model makes of the one image of an admitted request."""
    pipeline = admission.services.pipeline
    with admission.model.users:
        data = await read_one(request, admission)
        work = pipeline.compute(admission.model, data, admission.deadline, task)
        return await until_disconnect(request, work)


@router.post(
    "/v1/classify/batch",
    response_model=schemas.BatchClassification,
    responses=REFUSALS,
    openapi_extra=taking(IMAGES),
)
async def classify_batch(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The likeliest classes of several images in one form; a bad image fails alone."""
    admission = admit(request.scope, model, top_k)
    served, pipeline = admission.model, admission.services.pipeline
    limits = admission.services.settings
    # A large batch takes its turn with the others instead of the whole queue.
    places = asyncio.Semaphore(served.batch_share)
    computed: list[Computed] = []

    async def one(upload: Upload) -> schemas.BatchItem:
        try:
            async with places:
                classified = await pipeline.classify(
                    served, upload.data, admission.k, admission.deadline
                )
        except RequestError as error:
            pipeline.metrics.refused(served.name, error.reason)
            return schemas.BatchItem(filename=upload.filename, error=str(error))
        computed.append(classified.computed)
        predictions = schemas.predictions_of(classified.predictions)
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
        served.users,
        receive(request, limits.max_batch_body_bytes, admission.deadline) as arriving,
    ):
        uploads = await read_images(arriving, limits.max_batch_images)
        results = await until_disconnect(request, every(uploads))
    body = schemas.BatchClassification(model=served.name, results=results)
    # FastAPI would validate it a second time.
    content = body.model_dump_json(exclude_none=True)
    total = time.perf_counter() - record_of(request.scope).started
    headers = timed(schemas.slowest_of(computed, total))
    return Response(content, headers=headers, media_type="application/json")
