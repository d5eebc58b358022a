"""KServe's V1 protocol and TensorFlow Serving's REST API, which it follows.

Sources: kserve.github.io, "V1 Inference Protocol"; tensorflow.org/tfx/serving/api_rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.routing import Route

from service.config.settings import Settings
from service.errors import QUOTED
from service.http import instances, platforms, predicting
from service.http.openapi import TIMEOUT_HEADER
from service.http.predicting import JSON, json_field, json_response, model_of_path
from service.http.problems import plain_refusal
from service.http.query import PlainRoute
from service.http.routers.models import status_of
from service.http.schemas import predictions_of
from service.http.services import services_of
from service.inference.interfaces import Computed
from service.json_pieces import json_list
from service.oip import metadata
from service.oip.codec import VERSION

# By field of the request: how TensorFlow Serving calls its results.
RESULTS = {instances.ROWS: "predictions", instances.COLUMNS: "outputs"}
PARSE = {JSON: partial(instances.parse, single=False)}
PARSE_EXAMPLES = {JSON: instances.parse_examples}
VERBS = "the verbs are :predict and :classify"
VERSIONS = (VERSION,)
METHOD = "tensorflow/serving/predict"
DTYPES = {"BYTES": "DT_STRING", "UINT8": "DT_UINT8", "FP32": "DT_FLOAT"}
IMAGE = {
    "oneOf": [
        {"type": "string", "description": "base64 text"},
        {"type": "object", "description": 'such as {"b64": "<base64>"}'},
        {"type": "array", "items": {}, "description": "a tensor, normalised"},
    ]
}
BODY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "instances": {"type": "array", "items": IMAGE, "minItems": 1},
        "signature_name": {"type": "string", "const": instances.SIGNATURE},
        "parameters": {
            "type": "object",
            "properties": {"top_k": {"type": "integer", "minimum": 1}},
            "additionalProperties": False,
        },
    },
    "required": ["instances"],
}
ERROR: dict[str, Any] = {
    "description": "refused",
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            }
        }
    },
}
REFUSED: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 404, 408, 413, 415, 422, 429, 503, 504), ERROR
)


def taking(schema: dict[str, Any]) -> dict[str, Any]:
    """The request body and headers of an operation that takes JSON."""
    body = {"required": True, "content": {JSON: {"schema": schema}}}
    return {"requestBody": body, "parameters": [TIMEOUT_HEADER]}


# FastAPI describes it, `routes` routes it.
plain = APIRouter(tags=["KServe V1 and TensorFlow Serving"])


@plain.post(platforms.V1_PREDICT, responses=REFUSED, openapi_extra=taking(BODY))
async def predict(request: Request, name: str) -> Response:
    """`{"instances": [IMAGE, ...]}` gives `{"predictions": [...]}`: each image's probabilities in
    the order of the classes, or with `{"parameters": {"top_k": K}}` its K most likely classes. Of a
    model without classes, its embedding. One bad image fails the request."""
    predicted, k = await predicting.predict(
        request, name, PARSE, predicting.top_k, raw=False, classifies=False
    )
    results = RESULTS[predicted.asked.field]
    return await predicted.respond(
        request,
        predicting.values_of(predicted, k),
        lambda: json_field(results, predicting.rows(predicted, k)),
    )


@plain.post(
    platforms.V1_CLASSIFY,
    responses=REFUSED,
    openapi_extra=taking(
        {
            "type": "object",
            "properties": {
                "examples": {"type": "array", "items": {"type": "object"}, "minItems": 1}
            },
            "required": ["examples"],
        }
    ),
)
async def classify(request: Request, name: str) -> Response:
    """`{"examples": [{"image/encoded": {"b64": TEXT}}, ...]}` gives `{"results": [...]}`: for each
    example, pairs of label and probability, the most likely first."""
    predicted, k = await predicting.predict(
        request, name, PARSE_EXAMPLES, predicting.top_k, raw=False
    )
    width = k or len(predicted.model.labels)
    return await predicted.respond(
        request,
        width * len(predicted.computed),
        lambda: json_field("results", [pairs(computed, width) for computed in predicted.computed]),
    )


def pairs(computed: Computed, k: int) -> bytes:
    """The JSON of the `k` most likely classes, as pairs of label and probability."""
    return json_list(
        k,
        lambda part: [
            [each["label"], each["probability"]]
            for each in predictions_of(computed, part.stop, part.start)
        ],
    )


async def unknown_verb(request: Request) -> Response:
    verb = request.path_params["verb"][:QUOTED]
    return plain_refusal(request.scope, f"there is no verb {verb!r}; {VERBS}")


async def switched_off(request: Request) -> Response:
    return plain_refusal(
        request.scope, "kserve_v1 is not among the service's platforms; use POST /v1/classify"
    )


async def version_status(request: Request) -> Response:
    model = model_of_path(request, VERSIONS)
    status = status_of(services_of(request.scope).pipeline, model)
    return json_response({"name": model.name, **status})


async def model_metadata(request: Request) -> Response:
    """TensorFlow Serving's. The inputs are alternatives: a request sends one."""
    model = model_of_path(request, VERSIONS)
    described = metadata.metadata(model)
    outputs = described["outputs"][:1]  # What :predict returns.
    signature = {
        "inputs": {each["name"]: tensor_info(each) for each in described["inputs"]},
        "outputs": {each["name"]: tensor_info(each) for each in outputs},
        "method_name": METHOD,
    }
    return json_response(
        {
            "model_spec": {"name": model.name, "signature_name": "", "version": VERSION},
            "metadata": {"signature_def": {"signature_def": {instances.SIGNATURE: signature}}},
        }
    )


def tensor_info(tensor: dict[str, Any]) -> dict[str, Any]:
    # A batch of files is a list of them: the protocol's second dimension of 1 is not in its JSON.
    shape = tensor["shape"][:1] if tensor["datatype"] == "BYTES" else tensor["shape"]
    return {
        "dtype": DTYPES[tensor["datatype"]],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in shape],
            "unknown_rank": False,
        },
        "name": f"{tensor['name']}:0",
    }


MODEL = "/v1/models/{name}"
VERSIONED = f"{MODEL}/versions/{{version}}"
ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def routes(settings: Settings) -> list[Route]:
    if "kserve_v1" not in settings.platforms:
        # Else the routes of models would take the verb for a part of a name.
        return [Route(f"{MODEL}:{{verb}}", switched_off, methods=ANY)]
    return [
        *(
            PlainRoute(f"{base}:{known}", _of(known), ["POST"])
            for base in (MODEL, VERSIONED)
            for known in ("predict", "classify")
        ),
        *(Route(f"{base}:{{verb}}", unknown_verb, methods=ANY) for base in (MODEL, VERSIONED)),
        *(PlainRoute(f"{base}/metadata", model_metadata, ["GET"]) for base in (MODEL, VERSIONED)),
        PlainRoute(VERSIONED, version_status, ["GET"]),
    ]


def _of(known: str) -> Any:
    endpoint = {"predict": predict, "classify": classify}[known]

    async def of_path(request: Request) -> Response:
        return await endpoint(request, model_of_path(request, VERSIONS).name)

    return of_path
