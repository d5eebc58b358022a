"""ModelInferRequest as the service's request, and its response as ModelInferResponse.

Tensors and files stay in the message's bytes; all else is limited to what is parsed in no time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from models.preprocess import InputSpec
from service.errors import InvalidInput, TooLarge
from service.grpc.descriptors import Descriptors
from service.grpc.wire_format import BYTES, WireField, malformed, parts
from service.inference.ranking import Row
from service.oip import codec, messages
from service.oip.codec import MAX_JSON_VALUES, ParsedRequest, Values
from service.oip.messages import MAX_DIMENSIONS, MAX_TENSORS, InferenceRequest

# Fields of one message, beside the elements of BYTES, and bytes beside those of tensors.
MOST_FIELDS = 512
MOST_BYTES = 2**16
# Numbers of fields: of ModelInferRequest, of InferInputTensor, and of InferTensorContents.
INPUTS, RAW = 5, 7
CONTENTS = 5
INTEGERS = (2, 4)  # int_contents and uint_contents
FP32, FILES = 6, 8  # fp32_contents and bytes_contents
FIELDS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}


@dataclass(frozen=True, slots=True)
class Outline:
    """A request's `head`, a ModelInferRequest without inputs; its inputs, and raw tensors."""

    head: Any
    inputs: list[memoryview]
    raw: list[memoryview]


class InferMessages:
    def __init__(self, protocol: Descriptors) -> None:
        self._protocol = protocol

    def parse(self, name: str, data: bytes) -> Any:
        """Raises `InvalidInput`: the bytes are no such message."""
        return parsed(self._protocol[name], data)

    def outline(self, body: bytes) -> Outline:
        """A request before its model is known.

        Raises:
            InvalidInput, TooLarge: it is malformed, or exceeds the limits.
        """
        found = [*parts(memoryview(body), MOST_FIELDS)]
        rest = [part for part in found if part.number not in (INPUTS, RAW)]
        head = self._rest("ModelInferRequest", rest)
        return Outline(head, values_of(found, INPUTS), values_of(found, RAW))

    def _rest(self, name: str, rest: Iterable[WireField]) -> Any:
        wholes = [part.whole for part in rest]
        size = sum(map(len, wholes))
        if size > MOST_BYTES:
            raise TooLarge(
                f"names, shapes and parameters take {size} bytes; the limit is {MOST_BYTES}"
            )
        return self.parse(name, b"".join(wholes))

    def read(self, outline: Outline, spec: InputSpec, max_images: int) -> ParsedRequest:
        """The request for a model.

        Raises:
            InvalidInput: a tensor does not fit the model, or its own description.
            TooLarge: the message exceeds the limits.
        """
        inputs, contents = [], []
        for data in outline.inputs[: MAX_TENSORS + 1]:
            found = [*parts(data, MOST_FIELDS)]
            tensor = self._rest("ModelInferRequest.InferInputTensor", without(found, CONTENTS))
            inputs.append(
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": [*tensor.shape[: MAX_DIMENSIONS + 1]],
                    "parameters": chosen(tensor.parameters, ["shared_memory_region"]),
                }
            )
            contents.append(values_of(found, CONTENTS))
        head = outline.head
        message = messages.validated(
            InferenceRequest,
            {
                "id": head.id or None,
                "inputs": inputs,
                "outputs": [
                    {
                        "name": output.name,
                        "parameters": chosen(
                            output.parameters, ["classification", "shared_memory_region"]
                        ),
                    }
                    for output in head.outputs[: MAX_TENSORS + 1]
                ],
                "parameters": chosen(head.parameters, ["timeout", "priority", "sequence_id"]),
            },
        )
        tensor = codec.the_input(message)
        shape = codec.shape_of(tensor, spec, max_images)
        typed = [
            part
            for data in contents[0]
            for part in parts(data, MOST_FIELDS + max_images)
            if part.value or part.number == FILES
        ]
        if len(outline.raw) + bool(typed) != 1:
            field = FIELDS.get(tensor.datatype)
            raise InvalidInput(
                f"{tensor.name}: send the tensor "
                + (f"either in contents, as {field}, or " if field else "")
                + "as the one entry of raw_input_contents"
            )
        values = self._typed(tensor.name, tensor.datatype, typed) if typed else outline.raw[0]
        return codec.with_images(message, tensor, shape, values, spec)

    def _typed(self, name: str, datatype: str, contents: Sequence[WireField]) -> Values:
        """Typed contents; raises `InvalidInput`: they are of another type."""
        if datatype not in FIELDS:
            raise InvalidInput(
                f"{name}: contents has no field for {datatype}; send the tensor in "
                "raw_input_contents"
            )
        numbers = {"BYTES": (FILES,), "UINT8": INTEGERS, "FP32": (FP32,)}[datatype]
        if any(part.number not in numbers for part in contents):
            raise InvalidInput(
                f"{name}: contents of {datatype} must be {FIELDS[datatype]}, and nothing else"
            )
        if datatype == "BYTES":
            return tuple(bytes(part.value) for part in contents)
        if datatype == "FP32":  # Packed or not, four bytes each.
            one = len(contents) == 1
            return contents[0].value if one else memoryview(b"".join(p.value for p in contents))
        # The last byte of a number has no eighth bit.
        count = sum(
            int(np.count_nonzero(np.frombuffer(part.value, np.uint8) < 0x80)) for part in contents
        )
        if count > MAX_JSON_VALUES:
            raise TooLarge(
                f"{name}: contents has {count} values; the limit is {MAX_JSON_VALUES}: send large "
                "tensors as raw_input_contents"
            )
        parsed = self.parse("InferTensorContents", b"".join(part.whole for part in contents))
        return [*parsed.uint_contents, *parsed.int_contents]

    def encode(
        self, model: str, labels: Sequence[str], request: ParsedRequest, rows: Sequence[Row]
    ) -> bytes:
        """A response, with its tensors as raw_output_contents, as Triton sends them."""
        return self.response(model, labels, request, rows).SerializeToString()  # type: ignore[no-any-return]

    def response(
        self, model: str, labels: Sequence[str], request: ParsedRequest, rows: Sequence[Row]
    ) -> Any:
        message = self._protocol["ModelInferResponse"](
            model_name=model, model_version=codec.VERSION, id=request.message.id or ""
        )
        for output in request.outputs:
            entry, data = codec.output_of(output, rows, labels)
            message.outputs.add(**entry)
            message.raw_output_contents.append(codec.binary_of(data))
        return message


def parsed(kind: Any, data: bytes) -> Any:
    """A message of a class; raises `InvalidInput`: the bytes are no such message."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise malformed() from None


def values_of(found: Iterable[WireField], number: int) -> list[memoryview]:
    """The values of a field of bytes; raises `InvalidInput`: it is of another type."""
    wanted = [part for part in found if part.number == number]
    if any(part.kind != BYTES for part in wanted):
        raise malformed()
    return [part.value for part in wanted]


def without(found: Iterable[WireField], number: int) -> list[WireField]:
    return [part for part in found if part.number != number]


def chosen(parameters: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The values of those of `names` that are set; all others are ignored."""
    present = [name for name in names if name in parameters]
    return {name: value for name in present if (value := value_of(parameters[name])) is not None}


def value_of(parameter: Any) -> Any:
    """The value of a parameter, whichever type it has; None: none."""
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)
