"""`POST /v1/classify`, for one image and for several."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, ValidationError
from starlette.types import Scope

from service.errors import BadParameter, RequestError
from service.http import schemas
from service.http.admission import Admission, admit, open_images
from service.http.api_document import PREDICTIONS
from service.http.openapi import IMAGES, ONE_IMAGE, REFUSALS, Name, TopK, image_operation
from service.http.problems import server_timing, validation_message
from service.http.query import PlainRoute, QueryRoute, parameters_of
from service.http.record import record_of
from service.http.upload import Upload
from service.http.uploads import arrived_image, read_image, read_images, until_disconnect
from service.inference.interfaces import Computed
from service.inference.queue_share import QueueShare, gather
from service.inference.tasks import Task

CLASSIFY = "/v1/classify"

router = APIRouter(route_class=QueryRoute)
# FastAPI describes it, ROUTES routes it: FastAPI's routing and validation would cost more than a
# small network's inference.
plain = APIRouter()


@plain.post(
    CLASSIFY,
    operation_id="classify",
    tags=[PREDICTIONS],
    response_model=schemas.Classification,
    responses=REFUSALS,
    openapi_extra=image_operation(ONE_IMAGE),
)
async def classify(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The most likely classes of one image: raw bytes, a form with one file, or base64 in JSON. The
    model needs classes."""
    admission = admit(request.scope, model, top_k, classifies=True)
    pipeline = admission.services.pipeline
    with admission.model.users:
        image = await read_one(request, admission)
        received = record_of(request.scope).received
        work = pipeline.compute(admission.model, image, admission.deadline, received=received)
        computed = await until_disconnect(request, work)
    name, k, timing_ms = admission.model.name, admission.k, schemas.timing_of(computed)
    content = await admission.services.format(
        k, lambda: schemas.classification_json(name, computed, k, timing_ms)
    )
    headers = server_timing(timing_ms)
    return Response(content, headers=headers, media_type="application/json")


class ClassifyQuery(BaseModel):
    """The query of `POST /v1/classify`."""

    model: str | None = None
    top_k: int | None = Field(None, ge=1)


async def classify_by_query(request: Request) -> Response:
    query = query_of(request.scope)
    return await classify(request, query.model, query.top_k)


NO_QUERY = ClassifyQuery()
NAMES = frozenset(ClassifyQuery.model_fields)
ROUTES = [PlainRoute(CLASSIFY, classify_by_query, ["POST", "PUT"], NAMES)]


def query_of(scope: Scope) -> ClassifyQuery:
    """Raises `BadParameter`: a parameter is unknown, repeated or out of range."""
    if not scope["query_string"]:
        return NO_QUERY
    parameters = parameters_of(scope, NAMES)
    try:
        return ClassifyQuery.model_validate(parameters)
    except ValidationError as error:
        raise BadParameter(validation_message(error.errors())) from None


async def read_one(request: Request, admission: Admission) -> bytes:
    """The one image of an admitted request."""
    limit = admission.services.settings.max_body_bytes
    if (image := await arrived_image(request, limit)) is not None:
        return image
    with open_images(request, limit, admission.deadline) as body:
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
    operation_id="classifyBatch",
    tags=[PREDICTIONS],
    response_model=schemas.BatchClassification,
    responses=REFUSALS,
    openapi_extra=image_operation(IMAGES),
)
async def classify_batch(request: Request, model: Name = None, top_k: TopK = None) -> Response:
    """The most likely classes of several images, the files of a form or base64 in JSON; a bad image
    fails alone. The model needs classes."""
    admission = admit(request.scope, model, top_k, classifies=True)
    serving, services, k = admission.model, admission.services, admission.k
    share = QueueShare(services.pipeline, serving, admission.deadline)

    async def compute_one(upload: Upload) -> Computed | str:
        try:
            if upload.error is not None:
                raise upload.error
            return await share.compute(upload.data)
        except RequestError as error:
            services.pipeline.metrics.refused(serving.name, error.reason)
            return str(error)

    # Held to the end: images without a slot are not in the queue yet.
    most = services.settings.max_batch_body_bytes
    with serving.users, open_images(request, most, admission.deadline) as form:
        uploads = await read_images(form, services.settings.max_batch_images)
        # A fault of the service, unlike a bad image, fails the whole request.
        work = gather(compute_one(upload) for upload in uploads)
        results = await until_disconnect(request, work)
    names = [upload.filename for upload in uploads]
    content = await services.format(
        k * len(uploads), lambda: schemas.batch_json(serving.name, names, results, k)
    )
    computed = [result for result in results if not isinstance(result, str)]
    total = time.perf_counter() - record_of(request.scope).started
    headers = server_timing(schemas.slowest_of(computed, total))
    return Response(content, headers=headers, media_type="application/json")
