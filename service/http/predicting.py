"""A prediction as other platforms ask for it: one image as bytes, or several in JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from models.preprocess import InputSpec
from service.errors import InvalidInput, RequestError, UnknownModel
from service.http import encoding, instances, schemas
from service.http.admission import Admission, admit, open_body, open_images
from service.http.body import Body
from service.http.content import media_type
from service.http.instances import Instances
from service.http.problems import server_timing
from service.http.record import record_of
from service.http.services import Services, services_of
from service.http.upload import Upload
from service.http.uploads import images_or_json, off_the_loop, the_image, until_disconnect
from service.inference.file_kinds import kind_of
from service.inference.interfaces import Computed, Model
from service.inference.queue_share import QueueShare, gather
from service.inference.tasks import CLASSIFY, Embed
from service.json_pieces import json_list

Options = TypeVar("Options")
Parse = Callable[[bytes, InputSpec, int], Instances]
JSON = "application/json"
DIRECT_BYTES = 2**13  # of JSON that is parsed on the event loop; the worst take 300 ns a byte


@dataclass(frozen=True, slots=True)
class Predicted:
    """The results of a request, in the order of its images."""

    services: Services
    model: Model
    asked: Instances
    computed: list[Computed]

    async def respond(
        self, request: Request, values: int, work: Callable[[], bytes], kind: str = JSON
    ) -> Response:
        """The response whose content is the result of `work`, which writes so many values."""
        content = await self.services.format(values, work)
        total = time.perf_counter() - record_of(request.scope).started
        timing = schemas.slowest_of(self.computed, total)
        return Response(content, headers=server_timing(timing), media_type=kind)


async def predict(
    request: Request,
    name: str | None,
    parse: Mapping[str, Parse],
    options_of: Callable[[Model, Instances], Options],
    *,
    raw: bool,
    classifies: bool = True,
) -> tuple[Predicted, Options]:
    """Computes the images of a request for the model called `name`; None: the default model.

    `parse`: the parsers of media types; `raw`: the body may be an image of any type, or a form
    with one. A model without classes embeds, unless the platform `classifies`. `options_of` reads
    the parameters, and may refuse them, before anything is computed.

    Raises:
        UnknownModel, BadParameter, NotReady, QueueFull: see `service.http.admission.admit`.
        InvalidInput, TooLarge: see `service.http.instances.parse`.
        UndecodableImage, DeadlineExceeded, ...: see `service.inference.pipeline.Pipeline.compute`;
            one bad image fails the request, and the message names it.
    """
    admission = admit(request.scope, name, None, classifies=classifies)
    model, services, deadline = admission.model, admission.services, admission.deadline
    most, most_json = services.settings.max_body_bytes, services.settings.max_batch_body_bytes
    opened = (
        open_images(request, most, deadline, most_json)
        if raw
        else open_body(request, most_json, deadline)
    )
    # Held to the end: images without a slot are not in the queue yet.
    with model.users, opened as body:
        asked = await read(body, admission, parse, raw=raw)
        options = options_of(model, asked)
        received = record_of(request.scope).received if len(asked.images) == 1 else 0.0
        share = QueueShare(services.pipeline, model, deadline, received)
        computed = await until_disconnect(request, compute_all(share, model, asked))
    return Predicted(services, model, asked, computed), options


async def read(
    body: Body, admission: Admission, parse: Mapping[str, Parse], *, raw: bool
) -> Instances:
    """What a request asks for. As under /v1, its bytes decide what they are, unless its type has a
    parser of its own."""
    chosen = parse.get(media_type(body.request))
    if raw and chosen in (None, parse[JSON]):
        found = await images_or_json(body, 1)
    else:
        found = await encoding.read(body)
        kind = kind_of(found) if raw else None
        if kind is not None and kind.is_image:
            found = [Upload("", found)]
    if isinstance(found, list):
        return Instances([the_image(found, body.max_bytes)], "", {})
    spec, most = admission.model.input, admission.services.settings.max_batch_images
    work = partial(chosen or parse[JSON], found, spec, most)
    return await off_the_loop(body, len(found), work, DIRECT_BYTES)


async def compute_all(share: QueueShare, model: Model, asked: Instances) -> list[Computed]:
    """The result of each image; the first failure cancels the others."""
    task = CLASSIFY if model.labels else Embed()

    async def compute_one(at: int) -> Computed:
        try:
            return await share.compute(asked.images[at], task)
        except RequestError as error:
            if not asked.field:
                raise
            raise type(error)(f"{instances.place_of(asked.field, at)}: {error}") from None

    return await gather(compute_one(at) for at in range(len(asked.images)))


def model_of_path(request: Request, versions: tuple[str, ...]) -> Model:
    """The model that a path names; `versions` are those that its clients may call it by.

    Raises:
        UnknownModel: there is none, or it has no such version.
    """
    model = services_of(request.scope).pipeline.find(request.path_params["name"])
    if request.path_params.get("version", versions[0]) not in versions:
        raise UnknownModel(f"{model.name} has only version {versions[0]}")
    return model


def vectors(predicted: Predicted) -> list[bytes]:
    """The JSON of each image's probabilities in the order of the classes; of a model without
    classes, of its embedding."""
    texts = []
    for computed in predicted.computed:
        row = computed.row
        if computed.model.labels:
            vector = row.probabilities.copy()
            vector[row.classes] = row.probabilities
        else:
            assert row.detail is not None
            vector = row.detail
        texts.append(numbers(vector))
    return texts


def numbers(vector: NDArray[np.float32]) -> bytes:
    return json_list(len(vector), lambda part: vector[part].tolist())


def labelled(predicted: Predicted, k: int) -> list[bytes]:
    """The JSON of each image's `k` most likely classes, as /v1/classify has them."""
    return [schemas.predictions_json(computed, k) for computed in predicted.computed]


def rows(predicted: Predicted, k: int | None) -> list[bytes]:
    """The JSON of each image's result: its vector, or its `k` most likely classes."""
    return vectors(predicted) if k is None else labelled(predicted, k)


def top_k(model: Model, asked: Instances) -> int | None:
    """The parameter of that name; None: it is not given.

    Raises:
        InvalidInput: it is out of range, the model has no classes, or another parameter is given.
    """
    instances.check_parameters(asked.parameters, ["top_k"])
    allowed = range(1, max(1, len(model.labels)) + 1)
    k = instances.whole_parameter(asked.parameters, "top_k", allowed)
    if k is not None and not model.labels:
        raise InvalidInput(f"parameters: the model {model.name} has no classes; leave out top_k")
    return k


def values_of(predicted: Predicted, k: int | None) -> int:
    """The numbers of a response, by which it is decided where it is written."""
    width = k or len(predicted.model.labels) or predicted.model.channels
    return width * len(predicted.computed)


def json_field(name: str, rows: list[bytes]) -> bytes:
    return b'{"%b":[%b]}' % (name.encode(), b",".join(rows))


def json_response(content: Any, status: int = 200) -> Response:
    return Response(to_json(content), status, media_type=JSON)
