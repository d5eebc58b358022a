"""Several images in one JSON document, as the clients of other platforms send them.

By rows, as `{"instances": [IMAGE, ...]}`, or by columns, as `{"inputs": [IMAGE, ...]}` or
`{"inputs": {NAME: [IMAGE, ...]}}`. An image is base64 text, an object with it such as
`{"b64": TEXT}`, or a tensor in nested lists: alone or as `input`, normalised as the weights
require; as `pixels`, from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from models.preprocess import InputSpec
from service.errors import QUOTED, InvalidInput, TooLarge
from service.http import json_body
from service.http.json_body import PIECE, JsonLimits
from service.http.json_images import FORM, LABELS, NAMES, image_of
from service.inference.file_kinds import kind_of
from service.oip import codec, messages
from service.oip.codec import DATATYPES, INPUT, PIXELS, Image

ROWS, COLUMNS, EXAMPLES, IMAGES = "instances", "inputs", "examples", "images"
SIGNATURE = "serving_default"
LINES = "lines"
# Other fields of a request. Some clients number their requests.
BESIDE = ("parameters", "signature_name", "id")
# A tensor of 224 x 224 pixels has 150,528 values.
OF_TENSORS = JsonLimits(
    *((codec.MAX_JSON_BYTES, 2**9), (codec.JSON_BESIDE, 16)),
    *((codec.MAX_JSON_LISTS, 8), (codec.MAX_JSON_VALUES, 8)),
    hint="send images as base64 text, or large tensors to /v2 as binary data",
)
# Of all platforms, in lower case and without underscores.
PARAMETERS = frozenset(("topk", "maxpredictions", "confidencethreshold"))
# The objects around an image.
MAX_NESTING = 3
OF_EXAMPLES = '{"examples": [{"image/encoded": {"b64": "<base64>"}}, ...]}'
DOCUMENT = f'{{"instances": [{FORM}, ...]}}'


class Instances(NamedTuple):
    """The images of a request, the field that held them, empty if the body was a single image, and
    the request's parameters."""

    images: list[Image]
    field: str
    parameters: dict[str, Any]


def parse(body: bytes, spec: InputSpec, max_images: int, *, single: bool = True) -> Instances:
    """The images of a JSON document, for a model whose input is `spec`; `single`: it may also be an
    image by itself.

    Raises:
        InvalidInput: it is not JSON, or not in one of the forms above; the message names the image.
        TooLarge: it has more images, or more numbers, than a request may have.
    """
    document = parse_object(body, max_images)
    fields = [name for name in (ROWS, COLUMNS) if name in document]
    parameters = parameters_of(document)
    if len(fields) > 1:
        raise InvalidInput("send either instances or inputs, not both")
    if not fields and (not single or IMAGES in document):
        raise InvalidInput(f"the JSON has no instances; send {DOCUMENT}")
    if not fields:
        image = {name: value for name, value in document.items() if name not in BESIDE}
        return Instances([_named("the body", instance_of, image, spec)], "", parameters)
    (field,) = fields
    check_fields(document, (field, *BESIDE))
    values = rows_of(document) if field == ROWS else columns_of(document[COLUMNS])
    check_count(values, field, max_images)
    images = [
        _named(place_of(field, at), instance_of, value, spec) for at, value in enumerate(values)
    ]
    return Instances(images, field, parameters)


def parse_lines(body: bytes, spec: InputSpec, max_images: int) -> Instances:
    """The images of JSON Lines, one in each; raises as `parse` does."""
    commas = sum(body.count(b",", at, at + PIECE) for at in range(0, len(body), PIECE))
    OF_TENSORS.check("values", commas, max_images)
    images: list[Image] = []
    for line in lines_of(body):
        if len(images) == max_images:
            raise TooLarge(f"{LINES}: more than {max_images} images in one request")
        images.append(_named(place_of(LINES, len(images)), line_of, line, spec))
    check_count(images, LINES, max_images)
    return Instances(images, LINES, {})


def lines_of(body: bytes) -> Iterator[bytes]:
    """The lines that are not empty."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        # In pieces, as copying holds the GIL, and joining does not.
        line = b"".join([body[at : min(at + PIECE, end)] for at in range(start, end, PIECE)])
        if line.strip():
            yield line
        start = end + 1


def line_of(line: bytes, spec: InputSpec) -> Image:
    return instance_of(loads(line, 1), spec)


def place_of(field: str, at: int) -> str:
    """What refusals call the image number `at` of a request."""
    return f"line {at + 1}" if field == LINES else f"{field}[{at}]"


def parse_examples(body: bytes, spec: InputSpec, max_images: int) -> Instances:
    """The images of TensorFlow Serving's `examples`, each an object of features, of which one is a
    file; raises as `parse` does."""
    document = parse_object(body, max_images)
    values = document.get(EXAMPLES)
    if not isinstance(values, list):
        raise InvalidInput(f"the JSON has no examples; send {OF_EXAMPLES}")
    check_fields(document, (EXAMPLES, *BESIDE))
    check_count(values, EXAMPLES, max_images)
    images: list[Image] = [
        _named(place_of(EXAMPLES, at), file_of, value) for at, value in enumerate(values)
    ]
    return Instances(images, EXAMPLES, parameters_of(document))


def parse_object(body: bytes, max_images: int) -> dict[str, Any]:
    """Raises `InvalidInput`: it is no JSON object, or asks for an unknown signature."""
    document = loads(body, max_images)
    if not isinstance(document, dict):
        raise InvalidInput(f"the body must be a JSON object such as {DOCUMENT}")
    signature = document.get("signature_name", SIGNATURE)
    if signature not in (SIGNATURE, ""):
        raise InvalidInput(
            f"signature_name: {str(signature)[:QUOTED]!r} is unknown; the only one is {SIGNATURE}"
        )
    return document


def loads(text: bytes, max_images: int) -> Any:
    """A JSON value whose long strings are `LongText`.

    Raises:
        InvalidInput: it is no JSON.
        TooLarge: parsing it would take too long.
    """
    start = text[:QUOTED].removeprefix(b"\xef\xbb\xbf").lstrip()
    kind = None if start.startswith((b"{", b"[")) else kind_of(text)
    if kind is not None or not text:
        what = "is empty" if kind is None else f"is {kind.name}"
        raise InvalidInput(f"the body must be JSON, and {what}; send an object such as {DOCUMENT}")
    return json_body.parse(text, max_images, OF_TENSORS)


def check_fields(document: dict[str, Any], known: Collection[str]) -> None:
    """Raises `InvalidInput`: the document has a field that would have no effect."""
    check_no_parameter(document)
    unknown = [name for name in document if name not in known]
    if unknown:
        raise InvalidInput(
            f"unknown field {unknown[0][:QUOTED]!r}; a request may have {', '.join(known)}"
        )


def check_no_parameter(value: dict[str, Any]) -> None:
    """Raises `InvalidInput`: a parameter is not where parameters are, and would have no effect."""
    for name in value:
        if name.lower().replace("_", "").replace("-", "") in PARAMETERS:
            raise InvalidInput(
                f"{name!r} is a parameter; send it as "
                f'{{"instances": [...], "parameters": {{"{name}": ...}}}}'
            )


def check_count(values: list[Any], field: str, max_images: int) -> None:
    if not values:
        raise InvalidInput(f"{field}: there is no image; send at least one")
    if len(values) > max_images:
        raise TooLarge(f"{field}: more than {max_images} images in one request")


def parameters_of(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput('parameters: must be an object such as {"top_k": 5}')
    return parameters


def rows_of(document: dict[str, Any]) -> list[Any]:
    values = document[ROWS]
    if not isinstance(values, list):
        raise InvalidInput(f"instances: must be a list, as in {DOCUMENT}")
    return values


def columns_of(value: Any) -> list[Any]:
    """The images of `inputs`: of its only column, if it names it; columns of labels are ignored."""
    if isinstance(value, list):
        if any(isinstance(each, dict) and "datatype" in each for each in value):
            raise InvalidInput(
                "inputs: these are tensors of V2; send them to /v2/models/NAME/infer"
            )
        return value
    columns = [*value.items()] if isinstance(value, dict) else []
    columns = [each for each in columns if each[0] not in LABELS]
    if len(columns) == 1:
        ((name, column),) = columns
        if isinstance(column, list):
            return [{name: row} for row in column] if name in (INPUT, PIXELS) else column
    return [value]


def instance_of(value: Any, spec: InputSpec) -> Image:
    """One image: a file, or pixels [H, W, C]; raises `InvalidInput`."""
    for _ in range(MAX_NESTING):
        if isinstance(value, list):
            return tensor_of(INPUT, value, spec)
        if not isinstance(value, dict):
            break
        check_no_parameter(value)
        tensors = [name for name in (INPUT, PIXELS) if isinstance(value.get(name), list)]
        if len(tensors) > 1:
            raise InvalidInput("send either input or pixels, not both")
        if tensors:
            return tensor_of(tensors[0], value[tensors[0]], spec)
        # The signatures of TensorFlow's models name their inputs as they like.
        if len(value) != 1 or any(name in value for name in NAMES):
            break
        (value,) = value.values()
    return image_of(value)


def file_of(example: Any) -> bytes:
    """The file of an example: its only feature that is one, whatever its name."""
    if not isinstance(example, dict):
        raise InvalidInput('must be an object such as {"image/encoded": {"b64": "<base64>"}}')
    features = [
        value[0] if isinstance(value, list) and len(value) == 1 else value
        for value in example.values()
    ]
    files = [value for value in features if isinstance(value, dict) and "b64" in value]
    if len(files) != 1:
        raise InvalidInput(
            f"{len(files)} of its features are files; exactly one must be, as in "
            '{"image/encoded": {"b64": "<base64>"}}'
        )
    return image_of(files[0])


def tensor_of(name: str, data: list[Any], spec: InputSpec) -> Image:
    """The pixels [H, W, C] of a tensor in nested lists; `name` says what they are."""
    shape, shapes = shape_of(data), codec.shapes(spec)[name]
    if shape not in shapes:
        expected = " or ".join(str([*dimensions]) for dimensions in shapes)
        raise InvalidInput(f"{name}: the shape must be {expected}, not {[*shape]}")
    batch = (1, *shape)
    tensor = messages.Input(name=name, datatype=DATATYPES[name], shape=[*batch], data=data)
    return codec.images_of(tensor, batch, data, spec)[0]


def shape_of(data: list[Any]) -> tuple[int, ...]:
    """The shape of nested lists.

    Raises:
        InvalidInput: lists of one level have different lengths, or are mixed with values.
    """
    shape: list[int] = []
    level: list[Any] = [data]
    while True:
        lengths = set(map(len, level))
        if len(lengths) != 1:
            raise InvalidInput(f"a tensor's lists differ in length: {sorted(lengths)[:5]}")
        shape.extend(lengths)
        level = list(chain.from_iterable(level))
        lists = sum(isinstance(each, list) for each in level)
        if not lists:
            return tuple(shape)
        if lists != len(level):
            raise InvalidInput("a tensor's lists and values are mixed")


def whole_parameter(
    parameters: dict[str, Any], name: str, allowed: range, default: int | None = None
) -> int | None:
    """A parameter that is a whole number; raises `InvalidInput` if it is another, or out of
    range."""
    value = parameters.get(name, default)
    if value is None or (type(value) is int and value in allowed):
        return value
    raise InvalidInput(
        f"parameters: {name} must be a whole number from {allowed.start} to {allowed.stop - 1}, "
        f"not {str(value)[:QUOTED]!r}"
    )


def check_parameters(parameters: dict[str, Any], known: Iterable[str]) -> None:
    """Raises `InvalidInput`: a parameter is unknown, and would have no effect."""
    unknown = [name for name in parameters if name not in (*known,)]
    if unknown:
        raise InvalidInput(
            f"parameters: {unknown[0][:QUOTED]!r} is unknown; known: {', '.join(known)}"
        )


def _named(place: str, read: Any, *arguments: Any) -> Any:
    """What `read` returns; its refusals name the place in the request."""
    try:
        return read(*arguments)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from None
