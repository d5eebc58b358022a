"""`POST /v1/embed`: an image's features, the input of the network's head."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic_core import to_json

from service.http import schemas
from service.http.admission import admit
from service.http.api_document import PREDICTIONS
from service.http.openapi import BINARY, ONE_IMAGE, REFUSALS, Name, image_operation
from service.http.problems import server_timing
from service.http.query import QueryRoute
from service.http.routers.classify import compute
from service.inference.tasks import Embed

Format = Literal["json", "npy", "f32"]
MEDIA_TYPES = {"npy": "application/x-npy", "f32": "application/octet-stream"}

router = APIRouter(route_class=QueryRoute)


@router.put("/v1/embed", include_in_schema=False)
@router.post(
    "/v1/embed",
    operation_id="embed",
    tags=[PREDICTIONS],
    response_model=schemas.Embedding,
    responses={200: {"content": dict.fromkeys(MEDIA_TYPES.values(), BINARY)}, **REFUSALS},
    openapi_extra=image_operation(ONE_IMAGE),
)
async def embed(
    request: Request,
    model: Name = None,
    normalize: Annotated[
        bool,
        Query(description="divide by the Euclidean length, so that a dot product is a cosine"),
    ] = False,
    format: Annotated[
        Format,
        Query(description="f32: raw little-endian float32; npy: the same with NumPy's header"),
    ] = "json",
) -> Response:
    """The features of one image, float32 [C]: raw bytes, a form with one file, or
    base64 in JSON."""
    admission = admit(request.scope, model, None)
    computed = await compute(request, admission, Embed())
    assert computed.row.detail is not None
    features = normalized(computed.row.detail) if normalize else computed.row.detail
    timing = schemas.timing_of(computed)
    if format != "json":
        return Response(_packed(features, format), 200, server_timing(timing), MEDIA_TYPES[format])
    body = {
        "model": admission.model.name,
        "dimensions": len(features),
        "normalized": normalize,
        "embedding": features.tolist(),
        "timing_ms": timing,
        "batch_size": computed.batch_size,
    }
    return Response(to_json(body), 200, server_timing(timing), "application/json")


def normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scaled to length 1; zeros stay zeros."""
    length = np.linalg.norm(features.astype(np.float64))
    return (features / length).astype(np.float32) if length else features


def _packed(features: NDArray[np.float32], format: Format) -> bytes:
    little = features.astype("<f4")
    if format == "f32":
        return little.tobytes()
    buffer = io.BytesIO()
    np.save(buffer, little)
    return buffer.getvalue()
