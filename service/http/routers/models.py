"""Listing, loading and removing models at runtime."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic_core import from_json, to_json

from models.evaluation.confusion import without_tables
from service.config import specs
from service.config.loading import validated
from service.config.settings import ModelSettings
from service.errors import RETRY_SECONDS, BadParameter, ConfigError, NotReady, UnsupportedMediaType
from service.http import schemas
from service.http.admission import open_body
from service.http.api_document import MODELS
from service.http.content import media_type
from service.http.openapi import PROBLEM, REFUSALS
from service.http.query import QueryRoute
from service.http.services import Services, services_of
from service.inference.interfaces import Model
from service.inference.labels import MOST_SHOWN, shown_labels
from service.inference.pipeline import Pipeline
from service.json_pieces import json_list, json_object
from service.oip.codec import VERSION

MAX_BODY_BYTES = 2**16
DENIED: dict[int | str, dict[str, Any]] = {
    401: REFUSALS[401],
    403: PROBLEM | {"description": "the key is not an admin key, or no admin key is configured"},
}
Labels = Annotated[
    bool | None,
    Query(
        description="whether to list the labels, and the metrics of each; default: if there are at "
        f"most {MOST_SHOWN:,}"
    ),
]


def settings_schema() -> dict[str, Any]:
    """The schema of a model's settings, without the name, which the path has."""
    schema = ModelSettings.model_json_schema()
    del schema["properties"]["name"]
    return schema | {"title": "Model"}


router = APIRouter(route_class=QueryRoute)


@router.get(
    "/v1/models",
    operation_id="listModels",
    tags=[MODELS],
    responses={401: REFUSALS[401]},
)
async def list_models(request: Request) -> schemas.Models:
    """The models served, the default model first."""
    served = services_of(request.scope).pipeline.models.values()
    cards = [_without_tables(model.describe()) for model in served]
    return schemas.Models.model_validate({"models": cards})


@router.get(
    "/v1/models/{name}",
    operation_id="showModel",
    tags=[MODELS],
    response_model=schemas.ModelDetails,
    responses={code: REFUSALS[code] for code in (401, 404, 422)},
)
async def show_model(request: Request, name: str, labels: Labels = None) -> Response:
    """One model, with its labels and its card."""
    model = services_of(request.scope).pipeline.find(name)
    return await details_response(request, model, labels)


async def details_response(
    request: Request, model: Model, labels: bool | None, status: int = HTTPStatus.OK
) -> Response:
    """The `schemas.ModelDetails` of a model, with its labels as far as they are `shown_labels`."""
    fields = model.describe() | status_of(services_of(request.scope).pipeline, model)
    shown = shown_labels(model.labels, labels)
    if shown is None:
        fields = _without_tables(fields)
    card = schemas.ModelDetails.model_validate(fields).model_dump(mode="json")
    if shown is None:
        return Response(to_json(card), status, media_type="application/json")
    content = await services_of(request.scope).format(
        len(shown),
        lambda: json_object(card, "labels", json_list(len(shown), lambda part: list(shown[part]))),
    )
    return Response(content, status, media_type="application/json")


@router.put(
    "/v1/models/{name}",
    operation_id="putModel",
    tags=[MODELS],
    response_model=schemas.ModelDetails,
    responses={
        **DENIED,
        200: {"description": "the model replaced the previous one of that name"},
        201: {"model": schemas.ModelDetails, "description": "the model was added"},
        408: REFUSALS[408],
        409: PROBLEM | {"description": "the limit on the number of models is reached"},
        413: PROBLEM | {"description": "body over 64 KiB"},
        415: PROBLEM | {"description": "the content type is not JSON"},
        422: PROBLEM | {"description": "a field is invalid, or the model does not load"},
        429: PROBLEM | {"description": "too many bytes are being received; with Retry-After"},
        503: REFUSALS[503],
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": settings_schema(),
                    "example": {"spec": "builtin:resnet20-cifar10"},
                }
            },
        }
    },
)
async def put_model(request: Request, name: str) -> Response:
    """Loads a model and serves it under this name once it is ready, replacing the current one
    without failing a request. If it does not load, nothing changes."""
    services = services_of(request.scope)
    pipeline = active_pipeline(services)
    fields = await read_json(request)
    # A message about thousands of invalid fields takes a while.
    settings = await services.lane.run(settings_of_model, services, name, fields)
    created = await pipeline.repository.put(settings)
    status = HTTPStatus.CREATED if created else HTTPStatus.OK
    return await details_response(request, pipeline.find(name), None, status)


@router.delete(
    "/v1/models/{name}",
    operation_id="deleteModel",
    tags=[MODELS],
    status_code=HTTPStatus.NO_CONTENT,
    responses={
        **DENIED,
        404: REFUSALS[404],
        422: REFUSALS[422],
        409: PROBLEM | {"description": "the default model cannot be deleted"},
        503: REFUSALS[503],
    },
)
async def delete_model(request: Request, name: str) -> Response:
    """Stops serving a model; requests already admitted still complete."""
    await active_pipeline(services_of(request.scope)).repository.delete(name)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _without_tables(card: dict[str, Any]) -> dict[str, Any]:
    """With as much as fits into a list of models, or into what was not asked to be long."""
    metrics = {name: without_tables(figures) for name, figures in card["metrics"].items()}
    return card | {"metrics": metrics}


def status_of(pipeline: Pipeline, model: Model) -> dict[str, Any]:
    """Whether a model can serve, as clients of KServe V1 and of TensorFlow Serving read it."""
    reason = pipeline.unready().get(model.name)
    state, code = "AVAILABLE", "OK"
    if pipeline.draining:
        state = "UNLOADING"
    elif reason is not None:
        failed = model.describe()["state"] in ("failed", "lost")
        state, code = ("END", "UNKNOWN") if failed else ("LOADING", "OK")
    status = {"error_code": code, "error_message": reason or ""}
    version = {"version": VERSION, "state": state, "status": status}
    return {"ready": reason is None, "model_version_status": [version]}


def active_pipeline(services: Services) -> Pipeline:
    """Raises `NotReady`: the service is shutting down."""
    pipeline = services.pipeline
    if pipeline.draining:
        raise NotReady("the service is shutting down; retry on another replica", RETRY_SECONDS)
    return pipeline


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        UnsupportedMediaType, BadParameter: it is not one.
        TooLarge, UploadsFull, RequestTooSlow, ClientLeft: see `service.http.body.Body`.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMediaType(
            "unsupported content type; send the model's settings as application/json"
        )
    with open_body(request, MAX_BODY_BYTES, math.inf) as body:
        text = await body.read_all()
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise BadParameter(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadParameter('the body must be an object such as {"spec": "builtin:NAME"}')
    return fields


def settings_of_model(services: Services, name: str, fields: dict[str, Any]) -> ModelSettings:
    """Raises `BadParameter`: a field is unknown or invalid, or a file not allowed."""
    if "name" in fields:
        raise BadParameter("name: it is in the path; leave it out of the body")
    served = [model.settings for model in services.pipeline.models.values()]
    try:
        settings = validated(ModelSettings, name=name, **fields)
        if settings.spec not in [each.spec for each in (*services.settings.models, *served)]:
            specs.check_folder(settings.spec, services.settings.model_folder)
    except ConfigError as error:
        raise BadParameter(str(error)) from None
    return settings
