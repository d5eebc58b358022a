"""What an inference request asks, and what its answer says: JSON, and binary data behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from models.preprocess import InputSpec
from service.errors import InvalidInput, TooLarge
from service.http.v2 import messages, tensors
from service.http.v2.messages import InferenceRequest, Input, Output
from service.inference.batcher import Priority
from service.inference.pipeline import LEAST, MOST
from service.inference.ranking import Ranking, Row, rank
from service.inference.tasks import CLASSIFY, Embed, Pixels, Task

VERSION = "1"
IMAGE, PIXELS, INPUT = "image", "pixels", "input"
DATATYPES = {IMAGE: "BYTES", PIXELS: "UINT8", INPUT: "FP32"}
PROBABILITIES, EMBEDDING = "probabilities", "embedding"
# Triton's levels; 0 and all that are lower than the lowest are the usual one.
PRIORITIES = {1: Priority.FIRST, 2: Priority.NORMAL, 3: Priority.LAST}
# Parsing takes time, and memory many times the text's; larger tensors go into the binary data. An
# image of 224 x 224 pixels has 3 MB of JSON at the most, 150,528 values and 50,400 lists.
MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_VALUES = 2**20
MAX_JSON_LISTS = 2**17
SHARED_MEMORY = "shared memory is not supported; send the tensor itself"

Image = bytes | Pixels


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its images, and the JSON with all else. `timeout`: seconds; None: the default."""

    request: InferenceRequest
    images: list[Image]
    timeout: float | None

    @property
    def outputs(self) -> list[Output]:
        """Those to tell; where none is named, the probabilities."""
        return self.request.outputs or [Output(name=PROBABILITIES)]

    @property
    def task(self) -> Task:
        return Embed() if any(each.name == EMBEDDING for each in self.outputs) else CLASSIFY

    @property
    def priority(self) -> Priority:
        return PRIORITIES.get(self.request.parameters.priority, Priority.NORMAL)


def shapes(spec: InputSpec) -> dict[str, list[tuple[int, ...]]]:
    """What one image of each input is shaped like; the first of several is the usual one."""
    side = spec.size
    planes, rows = (3, side, side), (side, side, 3)
    # Three pixels a side could mean both.
    return {IMAGE: [(1,), ()], PIXELS: [rows], INPUT: [planes, rows] if side != 3 else [planes]}


def read(body: bytes, json_length: str | None, spec: InputSpec, max_images: int) -> Asked:
    """What `body` asks for; `json_length` is its header Inference-Header-Content-Length.

    A length of 0 says that the body is one image's file and nothing else.

    Raises:
        InvalidInput: a tensor is not as the model takes it, or not as it says itself.
        TooLarge: the JSON has more bytes, values or lists than the limits above.
    """
    length = len(body) if json_length is None else json_length_of(json_length, body)
    if length == 0 and body:
        parameters = messages.Parameters(binary_data_output=True)
        return Asked(InferenceRequest(inputs=[], parameters=parameters), [body], None)
    text = body[:length]
    check_json(text)
    request = messages.parse(InferenceRequest, text)
    given = the_input(request)
    wanted = shapes(spec)[given.name]
    shape = tuple(given.shape)
    if shape in wanted:
        shape = (1, *shape)  # One image, without a dimension for several.
    if shape[1:] not in wanted:
        expected = " or ".join(str([-1, *each]) for each in wanted)
        raise InvalidInput(f"{given.name}: the shape must be {expected}, not {given.shape}")
    if shape[0] > max_images:
        raise InvalidInput(f"{given.name}: {shape[0]} images; one request may have {max_images}")
    data = binary_data(given, memoryview(body)[length:])
    try:
        images = images_of(given, shape, data, spec)
    except InvalidInput as error:
        raise InvalidInput(f"{given.name}: {error}") from None
    timeout = request.parameters.timeout
    return Asked(request, images, timeout / 1e6 if timeout else None)


def json_length_of(text: str, body: bytes) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length must be the bytes of JSON, 0 to the body's "
            f"{len(body)}, not {text[: messages.QUOTED]!r}"
        )
    return int(text)


def check_json(text: bytes) -> None:
    """Raises `TooLarge` where parsing `text` would take too much."""
    for found, limit, what in (
        (len(text), MAX_JSON_BYTES, "bytes"),
        (text.count(b","), MAX_JSON_VALUES, "values"),
        (text.count(b"[") + text.count(b"{"), MAX_JSON_LISTS, "lists and objects"),
    ):
        if found > limit:
            raise TooLarge(
                f"the JSON has {found} {what}; the limit is {limit}: send large tensors as binary "
                "data, see binary_data_size"
            )


def the_input(request: InferenceRequest) -> Input:
    """The one input of the request, whose name and datatype go together."""
    if request.parameters.sequence_id:
        raise InvalidInput("sequence_id: models are stateless; leave it out")
    if len(request.inputs) != 1:
        names = ", ".join(f"{name} ({datatype})" for name, datatype in DATATYPES.items())
        raise InvalidInput(f"inputs: send exactly one of {names}, not {len(request.inputs)}")
    given = request.inputs[0]
    datatype = DATATYPES.get(given.name)
    if datatype is None:
        raise InvalidInput(f"inputs: no input is called {given.name!r}; see {', '.join(DATATYPES)}")
    if given.datatype != datatype:
        raise InvalidInput(f"{given.name}: the datatype must be {datatype}, not {given.datatype!r}")
    regions = [each.parameters.shared_memory_region for each in request.outputs]
    if any(region is not None for region in (given.parameters.shared_memory_region, *regions)):
        raise InvalidInput(f"shared_memory_region: {SHARED_MEMORY}")
    return given


def binary_data(given: Input, behind: memoryview) -> memoryview | None:
    """The input's part of what is behind the JSON, which must be all; None: it is in the JSON."""
    size = given.parameters.binary_data_size
    if (size is None) == (given.data is None):
        raise InvalidInput(
            f"{given.name}: send the tensor either as data or as binary data, with binary_data_size"
        )
    if len(behind) != (size or 0):
        raise InvalidInput(
            f"{given.name}: binary_data_size is {size or 0}, and {len(behind)} bytes follow the "
            "JSON; Inference-Header-Content-Length says where it ends"
        )
    return None if size is None else behind


def images_of(
    given: Input, shape: Sequence[int], raw: memoryview | None, spec: InputSpec
) -> list[Image]:
    """The images [N], files or pixels [H, W, 3]."""
    if given.name == IMAGE:
        if raw is None:
            return [*tensors.elements_of_text(given.data or [], shape[0])]
        return [*tensors.elements(raw, shape[0])]
    if raw is None:
        found = tensors.array_of_numbers(given.datatype, shape, given.data or [])
    else:
        found = tensors.array(given.datatype, shape, raw)
    if given.name == PIXELS:
        return list(found)
    planes = tuple(shape[1:]) == shapes(spec)[INPUT][0]
    rows = found.transpose(0, 2, 3, 1) if planes else found
    return [pixels_of(image, spec) for image in rows]


def pixels_of(normalised: NDArray[np.float32], spec: InputSpec) -> NDArray[np.float32]:
    """Float32 pixels [H, W, 3] from 0 to 255, of what was normalised as the weights want it.

    Raises:
        InvalidInput: a value is not finite, or far from what a pixel becomes.
    """
    scaled = normalised.astype(np.float64) * spec.std + spec.mean
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.ascontiguousarray(scaled * 255, np.float32)
        plausible = pixels.min() >= LEAST and pixels.max() <= MOST  # False where one is NaN.
    if not plausible:
        raise InvalidInput(
            f"the values must be finite, and (x / 255 - mean) / std of pixels x from {LEAST:g} to "
            f"{MOST:g}; GET /v1/models has mean and std"
        )
    return pixels


def answer(
    model: str, labels: Sequence[str], asked: Asked, rows: Sequence[Row]
) -> tuple[bytes, int | None]:
    """The body of an answer from each image's row, and how much of it is JSON; None: all."""
    told: list[dict[str, Any]] = []
    behind: list[bytes] = []
    for output in asked.outputs:
        entry, data = (
            tensor_of(output.name, rows)
            if output.parameters.classification is None
            else classes_of(output, rows, labels)
        )
        binary = output.parameters.binary_data
        if asked.request.parameters.binary_data_output if binary is None else binary:
            raw = tensors.packed(data) if isinstance(data, list) else data.astype("<f4").tobytes()
            entry["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        else:
            entry["data"] = data if isinstance(data, list) else data.ravel().tolist()
        told.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if asked.request.id is not None:
        head["id"] = asked.request.id
    text = to_json(head | {"outputs": told})
    return (b"".join([text, *behind]), len(text)) if behind else (text, None)


def tensor_of(name: str, rows: Sequence[Row]) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """What is said of an output, and the output: probabilities [N, K] or an embedding [N, C]."""
    found = ranking_of(rows).by_class() if name == PROBABILITIES else embedding_of(rows)
    return {"name": name, "datatype": "FP32", "shape": list(found.shape)}, found


def classes_of(
    output: Output, rows: Sequence[Row], labels: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """What is said of an output, and its largest values: VALUE:INDEX:LABEL, at most all there are;
    an embedding's have no labels."""
    likely = output.name == PROBABILITIES
    ranking = ranking_of(rows) if likely else rank(embedding_of(rows))
    count = min(output.parameters.classification or 0, ranking.classes.shape[1])
    texts = [
        f"{value:f}:{index}:{labels[index]}" if likely else f"{value:f}:{index}"
        for row in ranking.rows()
        for index, value in zip(
            row.classes[:count].tolist(), row.probabilities[:count].tolist(), strict=True
        )
    ]
    return {"name": output.name, "datatype": "BYTES", "shape": [len(rows), count]}, texts


def ranking_of(rows: Sequence[Row]) -> Ranking:
    return Ranking(
        np.stack([row.classes for row in rows]), np.stack([row.probabilities for row in rows])
    )


def embedding_of(rows: Sequence[Row]) -> NDArray[np.float32]:
    return np.stack([row.detail for row in rows if row.detail is not None])
