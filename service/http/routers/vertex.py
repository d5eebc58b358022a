"""Vertex AI's contract for custom containers, with results as of its image classification.

Source: cloud.google.com/vertex-ai, "Custom container requirements for inference". The platform
chooses the paths.
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.routing import Route

from service.config.settings import Settings
from service.errors import InvalidInput
from service.http import instances, platforms, predicting
from service.http.instances import Instances
from service.http.predicting import JSON, Predicted, json_field
from service.http.query import PlainRoute
from service.http.routers.health import health_of
from service.http.services import services_of
from service.inference.interfaces import Computed, Model
from service.inference.ranking import top_k

PARSE = {JSON: instances.parse}
MOST, THRESHOLD = "maxPredictions", "confidenceThreshold"
CLASSES = 5
READY = "/health/ready"


async def predict(request: Request) -> Response:
    """`{"instances": [{"b64": TEXT}, ...]}` gives `{"predictions": [{"ids": [...], "displayNames":
    [...], "confidences": [...]}, ...]}`; so do the bytes of an image, as rawPredict sends them."""
    predicted, options = await predicting.predict(request, None, PARSE, options_of, raw=True)
    most, threshold = options
    return await predicted.respond(
        request,
        3 * most * len(predicted.computed),
        lambda: results(predicted, most, threshold),
    )


def options_of(model: Model, asked: Instances) -> tuple[int, float]:
    """How many classes, and their least probability; raises `InvalidInput`."""
    parameters = asked.parameters
    instances.check_parameters(parameters, [MOST, THRESHOLD])
    most = instances.whole_parameter(parameters, MOST, range(1, 10_001), CLASSES)
    threshold = parameters.get(THRESHOLD, 0.0)
    if (
        isinstance(threshold, bool)
        or not isinstance(threshold, int | float)
        or not (0 <= threshold <= 1)
    ):
        raise InvalidInput(f"parameters: {THRESHOLD} must be a number from 0 to 1")
    return min(most or CLASSES, len(model.labels)), threshold


def results(predicted: Predicted, most: int, threshold: float) -> bytes:
    rows = [to_json(classes(computed, most, threshold)) for computed in predicted.computed]
    return json_field("predictions", rows)


def classes(computed: Computed, most: int, threshold: float) -> dict[str, Any]:
    likely = [
        each
        for each in top_k(computed.row, computed.model.labels, most)
        if each.probability >= threshold
    ]
    return {
        "ids": [str(each.class_id) for each in likely],
        "displayNames": [each.label for each in likely],
        "confidences": [each.probability for each in likely],
    }


async def health(request: Request) -> Response:
    """200 if every model can serve now; else 503 with reasons."""
    return health_of("ready", "not ready", services_of(request.scope).pipeline.unready())


def routes(settings: Settings) -> list[Route]:
    """They come before the service's own, of which they replace the method that they answer."""
    health_route, predict_route = platforms.vertex_routes(settings)
    made: list[Route] = []
    # /health/ready says the same already.
    if health_route not in (None, READY):
        made.append(Route(str(health_route), health, methods=["GET"]))
    if predict_route is not None:
        made.append(PlainRoute(predict_route, predict, ["POST"], in_json=[MOST, THRESHOLD]))
    return made
