from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from benchmarks.common.protobuf import field
from models.preprocess import CIFAR
from service.errors import InvalidInput, ServiceError, TooLarge
from service.grpc.descriptors import Descriptors
from service.grpc.infer_messages import MOST_BYTES, InferMessages
from service.inference.jobs import Priority
from service.inference.ranking import Row
from service.oip.codec import MAX_JSON_VALUES, ParsedRequest

MESSAGES = InferMessages(Descriptors())
PIXELS = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).reshape(2, 32, 32, 3) % 256
SHAPE = [2, 32, 32, 3]


def message(name: str, datatype: str, shape: list[int], *raw: bytes, **typed: Any) -> Any:
    made = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=raw)
    given = made.inputs.add(name=name, datatype=datatype, shape=shape)
    if typed:
        given.contents.CopyFrom(service_pb2.InferTensorContents(**typed))
    return made


def read(made: Any) -> ParsedRequest:
    return MESSAGES.read(MESSAGES.outline(made.SerializeToString()), CIFAR, 8)


def test_raw_tensors_are_not_copied() -> None:
    body = message("pixels", "UINT8", SHAPE, PIXELS.astype(np.uint8).tobytes()).SerializeToString()
    parsed = MESSAGES.read(MESSAGES.outline(body), CIFAR, 8)
    whole = np.frombuffer(body, np.uint8)
    for image, wanted in zip(parsed.images, PIXELS, strict=True):
        assert isinstance(image, np.ndarray)
        assert np.shares_memory(image, whole)
        np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize("field", ["uint_contents", "int_contents"])
def test_integers_are_pixels(field: str) -> None:
    parsed = read(message("pixels", "UINT8", SHAPE, **{field: PIXELS.ravel().tolist()}))
    np.testing.assert_array_equal(np.stack(parsed.images), PIXELS)
    assert parsed.images[0].dtype == np.uint8  # type: ignore[union-attr]


def test_floats_come_packed_or_not() -> None:
    values = np.linspace(-1, 1, 3072, dtype=np.float32)
    packed = message("input", "FP32", [1, 3, 32, 32], fp32_contents=values.tolist())
    (image,) = read(packed).images
    loose = b"".join(b"\x35" + struct.pack("<f", value) for value in values[:300])
    head = field(1, b"input") + field(2, b"FP32") + field(3, b"\x01\x03\x20\x20")
    tensor = head + field(5, loose + field(6, values[300:].tobytes()))
    body = field(1, b"m") + field(5, tensor)
    (other,) = MESSAGES.read(MESSAGES.outline(body), CIFAR, 8).images
    np.testing.assert_array_equal(image, other)


def test_halves_come_raw() -> None:
    values = np.linspace(-1, 1, 3072).astype("<f2")
    (half,) = read(message("input", "FP16", [1, 3, 32, 32], values.tobytes())).images
    wide = message("input", "FP32", [1, 3, 32, 32], values.astype("<f4").tobytes())
    (full,) = read(wide).images
    np.testing.assert_array_equal(half, full)


def test_files_come_in_either_form() -> None:
    files = [b"one", b"", b"three"]
    packed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    assert read(message("image", "BYTES", [3], packed)).images == files
    assert read(message("image", "BYTES", [3, 1], bytes_contents=files)).images == files


def test_parameters_are_those_of_json() -> None:
    made = message("image", "BYTES", [1], bytes_contents=[b"x"])
    made.id = "seven"
    made.parameters["timeout"].int64_param = 5_000_000
    made.parameters["priority"].uint64_param = 1
    made.parameters["unknown"].double_param = 0.5
    output = made.outputs.add(name="probabilities")
    output.parameters["classification"].int64_param = 3
    parsed = read(made)
    assert (parsed.timeout, parsed.priority) == (5.0, Priority.FIRST)
    assert parsed.message.id == "seven"
    assert parsed.outputs[0].parameters.classification == 3


REFUSED: list[tuple[Any, type[ServiceError], str]] = [
    (message("image", "BYTES", [1]), InvalidInput, "bytes_contents, or as the one entry of raw"),
    (message("input", "FP16", [3, 32, 32]), InvalidInput, "tensor as the one entry of raw"),
    (
        message("input", "FP16", [3, 32, 32], fp32_contents=[0.5] * 3072),
        InvalidInput,
        "contents has no field for FP16",
    ),
    (message("input", "BF16", [3, 32, 32], bytes(6144)), InvalidInput, "or FP16, not 'BF16'"),
    (message("image", "BYTES", [1], b"x", bytes_contents=[b"x"]), InvalidInput, "either"),
    (message("image", "BYTES", [1], b"x", b"y"), InvalidInput, "the one entry"),
    (message("image", "BYTES", [1], b"x"), InvalidInput, "image: .* ends within element 0"),
    (message("image", "BYTES", [2], bytes_contents=[b"x"]), InvalidInput, "2 elements"),
    (message("image", "BYTES", [9], bytes_contents=[b"x"] * 9), InvalidInput, "at most 8"),
    (message("image", "UINT8", [1], b"x"), InvalidInput, "the datatype must be BYTES"),
    (message("picture", "UINT8", [1], b"x"), InvalidInput, "unknown input 'picture'"),
    (message("pixels", "UINT8", [1, 2], b"x"), InvalidInput, "the shape must be"),
    (message("pixels", "UINT8", [-1], b"x"), InvalidInput, r"inputs\[0\]\.shape"),
    (message("pixels", "UINT8", [1] * 99, b"x"), InvalidInput, r"inputs\[0\]\.shape"),
    (
        message("pixels", "UINT8", SHAPE, fp32_contents=[1.0]),
        InvalidInput,
        "contents of UINT8 must be uint_contents",
    ),
    (message("pixels", "UINT8", SHAPE, uint_contents=[256] * 6144), InvalidInput, "0 to 255"),
    (message("pixels", "UINT8", SHAPE, int_contents=[-1] * 6144), InvalidInput, "0 to 255"),
    (
        message("pixels", "UINT8", SHAPE, uint_contents=[0] * (MAX_JSON_VALUES + 1)),
        TooLarge,
        "raw_input_contents",
    ),
    (message("input", "FP32", [1, 3, 32, 32], bytes(4)), InvalidInput, "has 12288 bytes, not 4"),
    (message("x" * (MOST_BYTES + 1), "FP32", [1]), TooLarge, "the limit is"),
]


@pytest.mark.parametrize(("made", "kind", "words"), REFUSED)
def test_what_does_not_fit_is_refused(made: Any, kind: type[ServiceError], words: str) -> None:
    with pytest.raises(kind, match=words):
        read(made)


def test_parameters_of_a_wrong_type_are_refused() -> None:
    for name in ("timeout", "priority"):
        made = message("image", "BYTES", [1], bytes_contents=[b"x"])
        made.parameters[name].string_param = "1"
        with pytest.raises(InvalidInput, match=f"parameters.{name}"):
            read(made)
    made = message("image", "BYTES", [1], bytes_contents=[b"x"])
    made.inputs[0].parameters["shared_memory_region"].string_param = "a"
    with pytest.raises(InvalidInput, match="shared memory is not supported"):
        read(made)
    made = message("image", "BYTES", [1], bytes_contents=[b"x"])
    made.parameters["sequence_id"].int64_param = 3
    with pytest.raises(InvalidInput, match="sequence_id"):
        read(made)


def test_thousands_of_inputs_and_outputs_are_refused() -> None:
    made = message("image", "BYTES", [1], bytes_contents=[b"x"])
    for _ in range(20):
        made.outputs.add(name="probabilities")
    with pytest.raises(InvalidInput, match="outputs"):
        read(made)
    for _ in range(1000):
        made.outputs.add(name="probabilities")
    with pytest.raises(TooLarge, match="more than 512 fields"):
        read(made)


def test_a_response_has_its_tensors_raw() -> None:
    made = message("image", "BYTES", [1], bytes_contents=[b"x"])
    made.id = "seven"
    made.outputs.add(name="embedding")
    made.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    row = Row(np.array([1, 0]), np.array([0.75, 0.25], np.float32), np.ones(3, np.float32))
    text = MESSAGES.encode("m", ["cat", "dog"], read(made), [row])
    response = service_pb2.ModelInferResponse.FromString(text)
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "seven")
    told = [(each.name, each.datatype, list(each.shape)) for each in response.outputs]
    assert told == [("embedding", "FP32", [1, 3]), ("probabilities", "BYTES", [1, 1])]
    label = b"0.750000:1:dog"
    assert [*response.raw_output_contents] == [
        np.ones(3, "<f4").tobytes(),
        struct.pack("<I", len(label)) + label,
    ]
