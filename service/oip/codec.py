"""Inference requests and responses: JSON, followed by binary data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from models.preprocess import InputSpec
from service.errors import QUOTED, InvalidInput, TooLarge
from service.inference.jobs import Priority
from service.inference.pipeline import LEAST, MOST
from service.inference.ranking import Ranking, Row, rank
from service.inference.tasks import CLASSIFY, Embed, Pixels, Task
from service.json_pieces import json_list, json_object
from service.oip import messages, tensors
from service.oip.messages import InferenceRequest, Input, Output

VERSION = "1"
IMAGE, PIXELS, INPUT = "image", "pixels", "input"
DATATYPES = {IMAGE: "BYTES", PIXELS: "UINT8", INPUT: "FP32"}
# Others that an input may have; metadata has one datatype for each.
ALTERNATIVES = {INPUT: "FP16"}
PROBABILITIES, EMBEDDING = "probabilities", "embedding"
# Triton's levels; 0 and levels below the lowest mean the default.
PRIORITIES = {1: Priority.FIRST, 2: Priority.NORMAL, 3: Priority.LAST}
# Parsing takes many times the text's memory, and stops all other threads, as it holds the GIL: for
# 10 ms at these limits. Larger tensors belong into the binary data. An image of 224 x 224 pixels
# takes at most 3 MB of JSON, 150,528 values and 50,400 lists.
MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_VALUES = 2**18
MAX_JSON_LISTS = 5 * 2**14
JSON_BESIDE = 2**13  # strings of a request, and values and lists beside those of its tensor
# Files hardly compress; a body that expands by more than this can only be a large tensor.
MAX_EXPANSION = 16
SHARED_MEMORY = "shared memory is not supported; send the tensor itself"

Image = bytes | Pixels
# A tensor's values: binary data, JSON's numbers and strings, or files as they are.
Values = memoryview | list[Any] | tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request's images, and its JSON. `timeout`: seconds; None: the default. `default`: the
    output for a request that names none."""

    message: InferenceRequest
    images: list[Image]
    timeout: float | None
    default: str = PROBABILITIES

    @property
    def outputs(self) -> list[Output]:
        """The requested outputs."""
        return self.message.outputs or [Output(name=self.default)]

    @property
    def task(self) -> Task:
        return Embed() if any(output.name == EMBEDDING for output in self.outputs) else CLASSIFY

    @property
    def priority(self) -> Priority:
        return PRIORITIES.get(self.message.parameters.priority, Priority.NORMAL)


def shapes(spec: InputSpec) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of one image for each input; the first is the canonical one."""
    height, width, channels = spec.shape
    rows: tuple[int, ...] = spec.shape
    planes: tuple[int, ...] = (channels, height, width)
    # With as many pixels a side as channels the layout would be ambiguous.
    layouts = [planes, rows] if rows != planes else [planes]
    return {IMAGE: [(1,), ()], PIXELS: [rows], INPUT: layouts}


def read(body: bytes, json_length: str | None, spec: InputSpec, max_images: int) -> ParsedRequest:
    """Parses `body`; `json_length` is the header Inference-Header-Content-Length.

    A length of 0 means that the body is a single image file.

    Raises:
        InvalidInput: a tensor does not fit the model, or its own description.
        TooLarge: the JSON exceeds the limits above.
    """
    length = len(body) if json_length is None else json_length_of(json_length, body)
    if length == 0 and body:
        parameters = messages.Parameters(binary_data_output=True)
        return ParsedRequest(InferenceRequest(inputs=[], parameters=parameters), [body], None)
    text = body[:length]
    check_json(text, spec, max_images)
    message = messages.parse(InferenceRequest, text)
    tensor = the_input(message)
    shape = shape_of(tensor, spec, max_images)
    binary = binary_data(tensor, memoryview(body)[length:])
    values = (tensor.data or []) if binary is None else binary
    return with_images(message, tensor, shape, values, spec)


def shape_of(tensor: Input, spec: InputSpec, max_images: int) -> tuple[int, ...]:
    """A tensor's shape with the batch dimension.

    Raises:
        InvalidInput: the model does not take it, or it has too many images.
    """
    image_shapes = shapes(spec)[tensor.name]
    shape = tuple(tensor.shape)
    if shape in image_shapes:
        shape = (1, *shape)  # One image, without the batch dimension.
    if shape[1:] not in image_shapes:
        expected = " or ".join(str([-1, *dimensions]) for dimensions in image_shapes)
        raise InvalidInput(f"{tensor.name}: the shape must be {expected}, not {tensor.shape}")
    if shape[0] > max_images:
        raise InvalidInput(
            f"{tensor.name}: {shape[0]} images; a request may have at most {max_images}"
        )
    return shape


def with_images(
    message: InferenceRequest, tensor: Input, shape: Sequence[int], values: Values, spec: InputSpec
) -> ParsedRequest:
    """The request with its only tensor's `values`, which have the given shape.

    Raises:
        InvalidInput: the values do not fit.
    """
    try:
        images = images_of(tensor, shape, values, spec)
    except InvalidInput as error:
        raise InvalidInput(f"{tensor.name}: {error}") from None
    timeout = message.parameters.timeout
    return ParsedRequest(message, images, timeout / 1e6 if timeout else None)


def json_length_of(text: str, body: bytes) -> int:
    if not text.isdecimal() or len(text) > 10 or int(text) > len(body):
        raise InvalidInput(
            f"Inference-Header-Content-Length must be the size of the JSON in bytes, 0 to "
            f"{len(body)}, not {text[:QUOTED]!r}"
        )
    return int(text)


def max_inflated(json_length: str | None, spec: InputSpec, max_images: int, compressed: int) -> int:
    """The most bytes that a body of `compressed` bytes may decompress to.

    Without Inference-Header-Content-Length all of it is JSON.
    """
    if json_length is None:
        return MAX_JSON_BYTES
    tensor = max_images * math.prod(spec.shape) * tensors.DTYPES["FP32"].itemsize
    return MAX_JSON_BYTES + max(tensor, MAX_EXPANSION * compressed)


def check_json(text: bytes, spec: InputSpec, max_images: int) -> None:
    """Raises `TooLarge` if parsing `text` would be too expensive, or it has more than the largest
    tensor of the model."""
    height, width, channels = spec.shape
    rows = max_images * (height + 1)
    values = rows * width * channels + JSON_BESIDE
    lists = rows * (max(width, channels) + 1) + JSON_BESIDE
    for count, limit, unit in (
        (len(text), MAX_JSON_BYTES, "bytes"),
        (text.count(b","), min(values, MAX_JSON_VALUES), "values"),
        (text.count(b"[") + text.count(b"{"), min(lists, MAX_JSON_LISTS), "lists and objects"),
        (text.count(b'"') // 2, JSON_BESIDE, "strings"),
    ):
        if count > limit:
            raise TooLarge(
                f"the JSON has {count} {unit}; the limit is {limit}: send large tensors as binary "
                "data, see binary_data_size"
            )


def the_input(message: InferenceRequest) -> Input:
    """The only input of a request; its name determines its datatype."""
    if message.parameters.sequence_id:
        raise InvalidInput("sequence_id: models are stateless; leave it out")
    if len(message.inputs) != 1:
        names = ", ".join(f"{name} ({datatype})" for name, datatype in DATATYPES.items())
        raise InvalidInput(f"inputs: send exactly one of {names}, not {len(message.inputs)}")
    tensor = message.inputs[0]
    datatype = DATATYPES.get(tensor.name)
    if datatype is None:
        raise InvalidInput(f"inputs: unknown input {tensor.name!r}; use {', '.join(DATATYPES)}")
    alternative = ALTERNATIVES.get(tensor.name, datatype)
    if tensor.datatype not in (datatype, alternative):
        wanted = datatype if alternative == datatype else f"{datatype} or {alternative}"
        raise InvalidInput(f"{tensor.name}: the datatype must be {wanted}, not {tensor.datatype!r}")
    regions = [output.parameters.shared_memory_region for output in message.outputs]
    if any(region is not None for region in (tensor.parameters.shared_memory_region, *regions)):
        raise InvalidInput(f"shared_memory_region: {SHARED_MEMORY}")
    return tensor


def binary_data(tensor: Input, tail: memoryview) -> memoryview | None:
    """`tail`, the bytes after the JSON, if the tensor is all of it; None: it is in the JSON."""
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise InvalidInput(
            f"{tensor.name}: send the tensor either as data or as binary data with binary_data_size"
        )
    if len(tail) != (size or 0):
        raise InvalidInput(
            f"{tensor.name}: binary_data_size is {size or 0}, but {len(tail)} bytes follow the "
            "JSON, which ends at Inference-Header-Content-Length"
        )
    return None if size is None else tail


def images_of(tensor: Input, shape: Sequence[int], values: Values, spec: InputSpec) -> list[Image]:
    """The images [N], files or pixels [H, W, C]."""
    if tensor.name == IMAGE:
        if isinstance(values, tuple):
            return [*tensors.flat([*values], shape[0])]
        if isinstance(values, list):
            return [*tensors.elements_of_text(values, shape[0])]
        return [*tensors.elements(values, shape[0])]
    if isinstance(values, memoryview):
        array = tensors.array(tensor.datatype, shape, values)
    else:
        array = tensors.array_of_numbers(tensor.datatype, shape, [*values])
    if tensor.name == PIXELS:
        return list(array)
    planar = tuple(shape[1:]) == shapes(spec)[INPUT][0]
    images = array.transpose(0, 2, 3, 1) if planar else array
    return [pixels_of(image, spec) for image in images]


def pixels_of(normalised: NDArray[np.floating[Any]], spec: InputSpec) -> NDArray[np.float32]:
    """Undoes the model's normalisation: float32 pixels [H, W, C] from 0 to 255.

    Raises:
        InvalidInput: a value is not finite, or far from any pixel's.
    """
    scaled = normalised.astype(np.float64) * spec.std + spec.mean
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.ascontiguousarray(scaled * 255, np.float32)
        plausible = pixels.min() >= LEAST and pixels.max() <= MOST  # False if one is NaN.
    if not plausible:
        raise InvalidInput(
            f"the values must be finite, and (x / 255 - mean) / std of pixels x from {LEAST:g} to "
            f"{MOST:g}; GET /v1/models has mean and std"
        )
    return pixels


def encode_response(
    model: str, labels: Sequence[str], request: ParsedRequest, rows: Sequence[Row]
) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON; None: all of it."""
    entries: list[bytes] = []
    tail: list[bytes] = []
    for output in request.outputs:
        entry, data = output_of(output, rows, labels)
        binary = output.parameters.binary_data
        if request.message.parameters.binary_data_output if binary is None else binary:
            raw = binary_of(data)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
            entries.append(to_json(entry))
        else:
            entries.append(json_object(entry, "data", data_json(data)))
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if request.message.id is not None:
        head["id"] = request.message.id
    text = json_object(head, "outputs", b"[" + b",".join(entries) + b"]")
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)


def output_of(
    output: Output, rows: Sequence[Row], labels: Sequence[str]
) -> tuple[dict[str, Any], list[str] | NDArray[np.float32]]:
    """A requested output's description, and its values."""
    if output.parameters.classification is None:
        return tensor_of(output.name, rows)
    return classes_of(output, rows, labels)


def binary_of(data: list[str] | NDArray[np.float32]) -> bytes:
    """An output's values as binary data."""
    return tensors.pack(data) if isinstance(data, list) else data.astype("<f4").tobytes()


def data_json(data: list[str] | NDArray[np.float32]) -> bytes:
    if isinstance(data, list):
        return json_list(len(data), data.__getitem__)
    numbers = data.ravel()
    return json_list(len(numbers), lambda part: numbers[part].tolist())


def tensor_of(name: str, rows: Sequence[Row]) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """An output's description, and its tensor: probabilities [N, K] or an embedding [N, C]."""
    tensor = ranking_of(rows).by_class() if name == PROBABILITIES else embedding_of(rows)
    return {"name": name, "datatype": "FP32", "shape": list(tensor.shape)}, tensor


def classes_of(
    output: Output, rows: Sequence[Row], labels: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """An output's description, and its largest values as VALUE:INDEX:LABEL, for an embedding
    VALUE:INDEX."""
    labelled = output.name == PROBABILITIES
    ranking = ranking_of(rows) if labelled else rank(embedding_of(rows))
    count = min(output.parameters.classification or 0, ranking.classes.shape[1])
    texts = [
        f"{value:f}:{index}:{labels[index]}" if labelled else f"{value:f}:{index}"
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
