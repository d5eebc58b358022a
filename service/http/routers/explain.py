"""`POST /v1/explain`: the regions of an image that a network bases a class on.

A class activation map (Zhou 2016, arXiv:1512.04150, section 2) is exact for a network that averages
its last maps and ends in a linear layer, as ResNets do: a class's logit is the mean of its map and
a bias.
"""

from __future__ import annotations

import io
import math
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from PIL import Image
from pydantic_core import to_json

from models import preprocess
from models.preprocess import Channels
from service.errors import BadParameter
from service.http import schemas
from service.http.admission import admit
from service.http.api_document import PREDICTIONS
from service.http.openapi import BINARY, ONE_IMAGE, REFUSALS, Name, image_operation
from service.http.problems import server_timing
from service.http.query import QueryRoute
from service.http.routers.classify import compute
from service.inference.interfaces import Computed, Model
from service.inference.tasks import Explain

# From weak to strong evidence for the class.
COLOURS = np.array([(20, 0, 60), (150, 20, 110), (240, 90, 40), (255, 210, 60)], float)
MAX_OPACITY = 0.75  # opacity where the evidence for the class is strongest
MIN_SIDE = 224  # pixels of the PNG's longer side: smaller inputs are enlarged

router = APIRouter(route_class=QueryRoute)


@router.put("/v1/explain", include_in_schema=False)
@router.post(
    "/v1/explain",
    operation_id="explain",
    tags=[PREDICTIONS],
    response_model=schemas.Explanation,
    responses={200: {"content": {"image/png": BINARY}}, **REFUSALS},
    openapi_extra=image_operation(ONE_IMAGE),
)
async def explain(
    request: Request,
    model: Name = None,
    class_id: Annotated[
        int | None, Query(description="the class to explain; default: the most likely one", ge=0)
    ] = None,
    format: Annotated[
        Literal["json", "png"], Query(description="png: the map drawn over the network's input")
    ] = "json",
) -> Response:
    """Each position's contribution to a class's logit (before the temperature), for one image. The
    model needs a head of one linear layer."""
    admission = admit(request.scope, model, None)
    _check(admission.model, class_id)
    computed = await compute(request, admission, Explain(class_id))
    body = _explanation(class_id, computed)
    headers = server_timing(body["timing_ms"])
    if format == "json":
        return Response(to_json(body), 200, headers, "application/json")
    grid = np.array(body["grid"], np.float32)
    seen = computed.decoded.pixels, computed.model.input.channels
    picture = await admission.services.lane.run(_draw, *seen, grid)
    return Response(picture, 200, headers, "image/png")


def _check(model: Model, class_id: int | None) -> None:
    if not model.labels:
        raise BadParameter(f"{model.name} cannot explain: it has no classes; use POST /v1/embed")
    if math.prod(model.map_sides) < 2:
        size = f"{model.input.width} x {model.input.height}"
        raise BadParameter(
            f"{model.name} cannot explain: its last feature maps have a single position, "
            f"because it downsamples inputs of {size} pixels too far"
        )
    if not model.explains:
        raise BadParameter(
            f"{model.name} cannot explain: its head is not a single linear layer, which a class "
            "activation map needs"
        )
    if class_id is not None and class_id >= len(model.labels):
        raise BadParameter(f"class_id must be from 0 to {len(model.labels) - 1}, not {class_id}")


def _explanation(class_id: int | None, computed: Computed) -> dict[str, Any]:
    """The JSON of a `schemas.Explanation`."""
    model, row, detail = computed.model, computed.row, computed.row.detail
    assert detail is not None
    grid, bias = detail[:-1].reshape(model.map_sides), float(detail[-1])
    if class_id is None:
        class_id = int(row.classes[0])
    probability = float(row.probabilities[row.classes == class_id][0])
    region = preprocess.region(*computed.decoded.size, model.input)
    return {
        "model": model.name,
        "class_id": class_id,
        "label": model.labels[class_id],
        "probability": round(probability, 6),
        "logit": float(grid.mean(dtype=np.float64)) + bias,
        "bias": bias,
        "grid": grid.tolist(),
        "region": dict(zip(schemas.Region.model_fields, region, strict=True)),
        "predictions": schemas.predictions_of(computed, min(5, len(model.labels))),
        "timing_ms": schemas.timing_of(computed),
        "batch_size": computed.batch_size,
    }


def _picture(pixels: NDArray[Any], channels: Channels) -> Image.Image:
    """The network's input uint8 [H, W, C] in mode RGB."""
    if channels == "grey":
        pixels = pixels[:, :, 0]
    elif channels == "bgr":
        pixels = pixels[:, :, ::-1]
    return preprocess.upright_rgb(Image.fromarray(pixels))


def _draw(pixels: NDArray[Any], channels: Channels, grid: NDArray[np.float32]) -> bytes:
    """A PNG of the evidence for the class, as colour over the pixels uint8 [H, W, C]."""
    height, width = pixels.shape[:2]
    times = max(1, round(MIN_SIDE / max(height, width)))
    size = times * width, times * height
    image = _picture(pixels, channels).resize(size, Image.Resampling.NEAREST)
    smooth = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
    strength = np.maximum(np.asarray(smooth), 0) / max(float(grid.max()), 1e-6)
    strength = np.minimum(strength, 1)
    steps = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(strength, steps, channel) for channel in COLOURS.T], axis=-1)
    opacity = MAX_OPACITY * strength[..., None]
    blended = np.asarray(image, float) * (1 - opacity) + colour * opacity
    buffer = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
