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
from service.http.admission import Admission, admit, open_body
from service.http.openapi import IMAGES, ONE_IMAGE, REFUSALS, Name, TopK, image_operation
from service.http.problems import server_timing, validation_message
from service.http.record import record_of
from service.http.uploads import Upload, read_image, read_images, until_disconnect
from service.inference.interfaces import Computed
from service.inference.tasks import Task

CLASSIFY = "/v1/classify"

router = APIRouter()
# FastAPI describes it, ROUTES routes it: FastAPI's routing and validation would cost more than a
# small network's inference.
plain = APIRouter()


@plain.post(
    CLASSIFY,
    response_model=schemas.Classification,
    responses=REFUSALS,
    openapi_extra=image_operation(ONE_IMAGE),
)
async def classify(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The most likely classes of one image: raw bytes, or a form with the field `image`."""
    admission = admit(request.scope, model, top_k)
    pipeline = admission.services.pipeline
    with admission.model.users:
        image = await read_one(request, admission)
        received = record_of(request.scope).received
        work = pipeline.classify(admission.model, image, admission.k, admission.deadline, received)
        classified = await until_disconnect(request, work)
    body = schemas.classification_of(classified)
    headers = server_timing(body["timing_ms"])
    return Response(to_json(body), headers=headers, media_type="application/json")


class ClassifyQuery(BaseModel):
    """The query of `POST /v1/classify`; other parameters are ignored."""

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
        raise BadParameter(validation_message(error.errors())) from None


async def read_one(request: Request, admission: Admission) -> bytes:
    """The one image of an admitted request."""
    limit = admission.services.settings.max_body_bytes
    with open_body(request, limit, admission.deadline) as body:
        return await read_image(body)


async def compute(request: Request, admission: Admission, task: Task) -> Computed:
    """Computes the task for the one image of an admitted request."""
    pipeline = admission.services.pipeline
    with admission.model.users:
        image = await read_one(request, admission)
        received = record_of(request.scope).received
        work = pipeline.compute(admission.model, image, admission.deadline, task, received=received)
        return await until_disconnect(request, work)


@router.post(
    "/v1/classify/batch",
    response_model=schemas.BatchClassification,
    responses=REFUSALS,
    openapi_extra=image_operation(IMAGES),
)
async def classify_batch(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The most likely classes of several images in one form; a bad image fails alone."""
    admission = admit(request.scope, model, top_k)
    serving, pipeline = admission.model, admission.services.pipeline
    settings = admission.services.settings
    # A large request shares the queue with others instead of filling it.
    slots = asyncio.Semaphore(serving.batch_share)
    computed: list[Computed] = []

    async def classify_one(upload: Upload) -> schemas.BatchItem:
        try:
            async with slots:
                classified = await pipeline.classify(
                    serving, upload.data, admission.k, admission.deadline
                )
        except RequestError as error:
            pipeline.metrics.refused(serving.name, error.reason)
            return schemas.BatchItem(filename=upload.filename, error=str(error))
        computed.append(classified.computed)
        predictions = schemas.predictions_of(classified.predictions)
        return schemas.BatchItem.model_validate(
            {"filename": upload.filename, "predictions": predictions}
        )

    async def classify_all(uploads: list[Upload]) -> list[schemas.BatchItem]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(classify_one(upload)) for upload in uploads]
        except BaseExceptionGroup as failures:
            # A fault of the service, unlike a bad image, fails the whole request.
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    # Held to the end: images without a slot are not in the queue yet.
    with (
        serving.users,
        open_body(request, settings.max_batch_body_bytes, admission.deadline) as form,
    ):
        uploads = await read_images(form, settings.max_batch_images)
        results = await until_disconnect(request, classify_all(uploads))
    body = schemas.BatchClassification(model=serving.name, results=results)
    # FastAPI would validate it again.
    content = body.model_dump_json(exclude_none=True)
    total = time.perf_counter() - record_of(request.scope).started
    headers = server_timing(schemas.slowest_of(computed, total))
    return Response(content, headers=headers, media_type="application/json")
