"""Requests and answers of the protocol, and all that can be wrong with a request."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from models.preprocess import CIFAR, InputSpec
from service.errors import InvalidInput, TooLarge
from service.inference.jobs import Priority
from service.inference.ranking import rank
from service.inference.tasks import CLASSIFY, Embed
from service.oip import codec
from service.oip.codec import (
    JSON_BESIDE,
    MAX_JSON_BYTES,
    MAX_JSON_LISTS,
    MAX_JSON_VALUES,
    ParsedRequest,
)
from tests.support import kinds

SPEC = InputSpec(size=2, resize=2, mean=CIFAR.mean, std=CIFAR.std)
LARGE = InputSpec(size=224, resize=256, mean=CIFAR.mean, std=CIFAR.std)
SQUARE_RGB = InputSpec(size=28, resize=28, mean=CIFAR.mean, std=CIFAR.std)
PIXELS = list(range(12))
LABELS = ["cat", "dog", "a: b"]


def read(request: Any, behind: bytes = b"", length: str | None = None) -> ParsedRequest:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    return codec.read(text + behind, length or str(len(text)), SPEC, max_images=4)


def tensor(name: str, datatype: str, shape: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def one(name: str, datatype: str, shape: list[Any], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(name, datatype, shape, **more)]}


def binary(size: int) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size}}


def test_images_come_as_binary_data_or_as_base64() -> None:
    packed = b"\1\0\0\0a\2\0\0\0bc"
    for shape in ([2], [2, 1]):
        assert read(one("image", "BYTES", shape, **binary(11)), packed).images == [b"a", b"bc"]
        texts = [base64.b64encode(each).decode() for each in (b"a", b"bc")]
        assert read(one("image", "BYTES", shape, data=texts)).images == [b"a", b"bc"]


@pytest.mark.parametrize("shape", [[2, 2, 3], [1, 2, 2, 3]])
def test_pixels_come_as_they_are(shape: list[int]) -> None:
    for parsed in (
        read(one("pixels", "UINT8", shape, data=PIXELS)),
        read(one("pixels", "UINT8", shape, **binary(12)), bytes(PIXELS)),
    ):
        (image,) = parsed.images
        assert isinstance(image, np.ndarray)
        assert image.dtype == np.uint8
        assert image.shape == (2, 2, 3)
        assert image.ravel().tolist() == PIXELS


@pytest.mark.parametrize("planes", [True, False])
def test_normalised_values_become_the_pixels_they_were_made_of(planes: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3)).astype(np.uint8)
    values = ((pixels / 255 - SPEC.mean) / SPEC.std).astype(np.float32)
    if planes:
        values = values.transpose(0, 3, 1, 2)
    given = one("input", "FP32", list(values.shape), **binary(values.nbytes))
    for wanted, found in zip(pixels, read(given, values.tobytes()).images, strict=True):
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_halves_are_the_same_as_the_floats_that_they_are() -> None:
    halves = np.linspace(-2, 2, 24).reshape(2, 3, 2, 2).astype("<f2")
    floats = halves.astype("<f4")
    found = read(one("input", "FP16", [2, 3, 2, 2], **binary(48)), halves.tobytes()).images
    wanted = read(one("input", "FP32", [2, 3, 2, 2], **binary(96)), floats.tobytes()).images
    assert [image.dtype for image in found if isinstance(image, np.ndarray)] == [np.float32] * 2
    np.testing.assert_array_equal(np.stack(found), np.stack(wanted))


def test_planes_of_three_by_three_are_planes() -> None:
    spec = InputSpec(size=3, resize=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    values = (np.arange(27, dtype=np.float32) / 27).reshape(3, 3, 3)
    text = json.dumps(one("input", "FP32", [1, 3, 3, 3], data=values.ravel().tolist())).encode()
    (image,) = codec.read(text, None, spec, 1).images
    assert isinstance(image, np.ndarray)
    np.testing.assert_allclose(image, values.transpose(1, 2, 0) * 255, atol=1e-4)


@pytest.mark.parametrize("spec", [kinds.GREY, kinds.SQUASHED, kinds.LETTERBOXED, kinds.RGBA])
@pytest.mark.parametrize("planes", [True, False])
def test_tensors_of_any_shape_become_the_pixels_they_were_made_of(
    spec: InputSpec, planes: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, *spec.shape)).astype(np.uint8)
    values = ((pixels / 255 - spec.mean) / spec.std).astype(np.float32)
    if planes:
        values = values.transpose(0, 3, 1, 2)
    for data in (values.tolist(), values.ravel().tolist()):  # The largest that may come as JSON.
        text = json.dumps(one("input", "FP32", list(values.shape), data=data)).encode()
        found = codec.read(text, None, spec, 4).images
        np.testing.assert_allclose(np.stack(found), pixels, atol=1e-4)
    text = json.dumps(one("pixels", "UINT8", list(pixels.shape), data=pixels.tolist())).encode()
    assert np.array_equal(np.stack(codec.read(text, None, spec, 4).images), pixels)


def test_the_limits_of_json_are_those_of_the_models_own_shape() -> None:
    values = [0] * (4 * 29 * 28 + JSON_BESIDE)
    text = json.dumps(one("input", "FP32", [4, 1, 28, 28], data=[*values, 0, 0])).encode()
    with pytest.raises(TooLarge, match="values"):
        codec.check_json(text, kinds.GREY, 4)
    codec.check_json(text, SQUARE_RGB, 4)
    compressed = codec.max_inflated("0", kinds.GREY, 4, 1) - MAX_JSON_BYTES
    assert compressed == 4 * 28 * 28 * 4


def test_a_body_without_json_is_an_image_and_is_answered_in_binary() -> None:
    parsed = codec.read(b"a file", "0", SPEC, 1)
    assert parsed.images == [b"a file"]
    assert parsed.message.parameters.binary_data_output


def test_a_timeout_is_in_microseconds_and_what_is_unknown_is_ignored() -> None:
    request = one("image", "BYTES", [1], data=["YQ=="], extra=1, parameters={"x": {}})
    parsed = read(request | {"parameters": {"timeout": 2_500_000, "priority": 1, "mine": [1]}})
    assert (parsed.timeout, parsed.message.parameters.priority) == (2.5, 1)
    assert read(request | {"parameters": {"timeout": 0}}).timeout is None


GOOD = tensor("image", "BYTES", [1], data=["YQ=="])
NESTED = b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}"
MALFORMED: list[tuple[Any, bytes, str]] = [
    (b"", b"", "JSON"),
    (b"{", b"", "JSON"),
    (b"[]", b"", "object"),
    (b"\xff\xfe", b"", "JSON"),
    (b'{"id": "\xff", "inputs": []}', b"", "JSON"),
    (NESTED, b"", "recursion"),
    ({}, b"", "inputs: is missing"),
    ({"inputs": {}}, b"", "inputs: "),
    ({"inputs": []}, b"", "exactly one of image \\(BYTES\\), pixels"),
    ({"inputs": [GOOD, GOOD]}, b"", "exactly one"),
    ({"inputs": [GOOD] * 17}, b"", "at most 16"),
    ({"inputs": [GOOD], "id": 7}, b"", "id: "),
    ({"inputs": [GOOD], "outputs": [{}]}, b"", "outputs\\[0\\].name: is missing"),
    (
        {"inputs": [GOOD], "outputs": [{"name": "x", "parameters": {"classification": 0}}]},
        b"",
        "classification",
    ),
    ({"inputs": [GOOD], "parameters": {"timeout": -1}}, b"", "timeout"),
    ({"inputs": [GOOD], "parameters": {"timeout": 10**10}}, b"", "timeout"),
    ({"inputs": [GOOD], "parameters": {"timeout": "1"}}, b"", "timeout"),
    ({"inputs": [GOOD], "parameters": {"priority": -1}}, b"", "priority"),
    ({"inputs": [GOOD], "parameters": {"priority": 10**30}}, b"", "priority"),
    ({"inputs": [GOOD], "parameters": {"sequence_id": 5}}, b"", "sequence_id"),
    (one("picture", "BYTES", [1], data=["YQ=="]), b"", "unknown input 'picture'"),
    (one("image", "STRING", [1], data=["YQ=="]), b"", "datatype must be BYTES"),
    (one("pixels", "FP32", [2, 2, 3], data=PIXELS), b"", "datatype must be UINT8"),
    (one("pixels", "UINT8", [], data=[]), b"", "shape"),
    (one("pixels", "UINT8", [1] * 9, data=[1]), b"", "shape"),
    (one("pixels", "UINT8", [-1, 2, 2, 3], data=PIXELS), b"", "shape.0"),
    (one("pixels", "UINT8", [0, 2, 2, 3], data=[]), b"", "shape.0"),
    (one("pixels", "UINT8", [10**30, 2, 2, 3], data=PIXELS), b"", "shape.0"),
    (one("pixels", "UINT8", [1.5, 2, 2, 3], data=PIXELS), b"", "shape.0"),
    (one("pixels", "UINT8", [True, 2, 2, 3], data=PIXELS), b"", "shape.0"),
    (
        one("pixels", "UINT8", [2**31 - 1, 2, 2, 3], **binary(1)),
        b"x",
        "may have at most 4",
    ),
    (one("image", "BYTES", [2**31 - 1], **binary(1)), b"x", "may have at most 4"),
    (one("pixels", "UINT8", [5, 2, 2, 3], data=[0] * 60), b"", "5 images"),
    (one("pixels", "UINT8", [1, 3, 2, 2], data=PIXELS), b"", r"\[-1, 2, 2, 3\], not"),
    (one("pixels", "UINT8", [1, 2**30, 2**30, 3], data=PIXELS), b"", "shape must be"),
    (one("input", "FP32", [2, 2], data=[0] * 4), b"", r"\[-1, 3, 2, 2\] or \[-1, 2, 2, 3\]"),
    (one("input", "FP16", [3, 2, 2], data=[0] * 12), b"", "FP16 has no form in JSON"),
    (one("input", "FP16", [3, 2, 2], **binary(48)), b"\0" * 48, "has 24 bytes, not 48"),
    (one("input", "FP16", [3, 2, 2], **binary(24)), b"\0\x7c" * 12, "finite"),
    (one("input", "BF16", [3, 2, 2], **binary(24)), b"\0" * 24, "FP32 or FP16, not 'BF16'"),
    (one("pixels", "FP16", [2, 2, 3], **binary(24)), b"\0" * 24, "datatype must be UINT8"),
    (one("image", "BYTES", [1, 1, 1], data=["YQ=="]), b"", "shape must be"),
    (one("image", "BYTES", [1]), b"", "either as data or as binary data"),
    (one("image", "BYTES", [1], data=["YQ=="], **binary(5)), b"\1\0\0\0a", "either"),
    (one("image", "BYTES", [1], data=["YQ=="]), b"more", "4 bytes follow"),
    (one("image", "BYTES", [1], **binary(-5)), b"\1\0\0\0a", "binary_data_size"),
    (one("image", "BYTES", [1], **binary(4)), b"\1\0\0\0a", "binary_data_size is 4, but 5"),
    (one("image", "BYTES", [1], **binary(10**12)), b"\1\0\0\0a", "binary_data_size is 10000"),
    (one("image", "BYTES", [2], **binary(5)), b"\1\0\0\0a", "ends within element 1 of 2"),
    (one("pixels", "UINT8", [2, 2, 3], **binary(11)), b"x" * 11, "12 bytes, not 11"),
    (one("image", "BYTES", [1], data=["not base64"]), b"", "image: data: .*base64"),
    (one("pixels", "UINT8", [2, 2, 3], data=[300] * 12), b"", "0 to 255"),
    (one("pixels", "UINT8", [2, 2, 3], data="x"), b"", "data"),
    (one("input", "FP32", [3, 2, 2], data=[float("nan")] * 12), b"", "finite|JSON"),
    (one("input", "FP32", [3, 2, 2], data=[1e39] * 12), b"", "finite"),
    (one("input", "FP32", [3, 2, 2], **binary(48)), b"\0\0\xc0\x7f" * 12, "finite"),
    (one("input", "FP32", [3, 2, 2], **binary(48)), b"\xff\xff\x7f\x7f" * 12, "finite"),
    (
        one("image", "BYTES", [1], parameters={"shared_memory_region": "x"}),
        b"",
        "shared memory",
    ),
]


@pytest.mark.parametrize(("request_", "behind", "words"), MALFORMED)
def test_what_is_malformed_is_refused_in_one_line(request_: Any, behind: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        read(request_, behind)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "5", "9" * 40, "²", ""])
def test_a_length_of_the_json_that_cannot_be_is_refused(length: str) -> None:
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length"):
        codec.read(b"{}", length, SPEC, 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b" " * (MAX_JSON_BYTES + 1), "bytes"),
        (b"1," * (MAX_JSON_VALUES + 1), "values"),
        (b"[" * (MAX_JSON_LISTS + 1), "lists"),
        (b'""' * (JSON_BESIDE + 1), "strings"),
    ],
)
def test_json_has_limits_of_its_own(text: bytes, what: str) -> None:
    with pytest.raises(TooLarge, match=f"{what}.*see binary_data_size"):
        codec.read(text, None, LARGE, 64)


@pytest.mark.parametrize("max_images", [1, 4])
def test_json_has_no_more_values_than_the_largest_tensor(max_images: int) -> None:
    """Parsing stops all other threads, for as long as there are values."""
    for shape in ([max_images, 3, 32, 32], [max_images, 32, 32, 3]):
        data = np.zeros(shape).tolist()
        text = json.dumps(one("input", "FP32", shape, data=data)).encode()
        assert len(codec.read(text, None, CIFAR, max_images).images) == max_images
    for more in (b"0," * (max_images * 3200 + 8192), b"[]" * (max_images * 1100 + 8192)):
        with pytest.raises(TooLarge, match=r"the JSON has .*see binary_data_size"):
            codec.read(more, None, CIFAR, max_images)


@pytest.mark.parametrize(
    ("json_length", "spec", "compressed", "most"),
    [
        (None, SPEC, 10**6, MAX_JSON_BYTES),
        ("100", CIFAR, 0, MAX_JSON_BYTES + 4 * 32 * 32 * 3 * 4),
        ("0", LARGE, 10**5, MAX_JSON_BYTES + 4 * 224 * 224 * 3 * 4),
        ("100", CIFAR, 10**6, MAX_JSON_BYTES + 16 * 10**6),  # files
    ],
)
def test_a_body_expands_no_further_than_what_it_can_hold(
    json_length: str | None, spec: InputSpec, compressed: int, most: int
) -> None:
    assert codec.max_inflated(json_length, spec, 4, compressed) == most


def answered(parsed: ParsedRequest) -> tuple[dict[str, Any], bytes]:
    ranked = rank(np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]], np.float32)).rows()
    details = np.array([[1, 2, 0.5, -4], [0, 0, 0, 8]], np.float32)
    rows = [row._replace(detail=detail) for row, detail in zip(ranked, details, strict=True)]
    content, length = codec.encode_response("m", LABELS, parsed, rows)
    return json.loads(content[:length]), b"" if length is None else content[length:]


def test_probabilities_come_in_the_order_of_the_classes() -> None:
    parsed = read({"inputs": [GOOD], "id": "seven"})
    told, behind = answered(parsed)
    assert behind == b""
    assert told == {
        "model_name": "m",
        "model_version": "1",
        "id": "seven",
        "outputs": [
            {
                "name": "probabilities",
                "datatype": "FP32",
                "shape": [2, 3],
                "data": [0.25, 0.5, 0.25, 0.125, 0.125, 0.75],
            }
        ],
    }


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_output_says_itself_whether_it_is_binary(everywhere: bool) -> None:
    name = "probabilities"
    output: dict[str, Any] = {"name": name, "parameters": {"binary_data": not everywhere}}
    request = {"inputs": [GOOD], "parameters": {"binary_data_output": everywhere}}
    told, behind = answered(read(request | {"outputs": [output]}))
    assert ("data" in told["outputs"][0]) is everywhere
    told, behind = answered(read(request | {"outputs": [{"name": name}]}))
    assert ("data" in told["outputs"][0]) is not everywhere
    if everywhere:
        assert told["outputs"][0]["parameters"] == {"binary_data_size": 24}
        assert np.frombuffer(behind, "<f4").tolist() == [0.25, 0.5, 0.25, 0.125, 0.125, 0.75]


@pytest.mark.parametrize(("count", "shape"), [(2, [2, 2]), (99, [2, 3])])
def test_classes_are_told_by_falling_probability(count: int, shape: list[int]) -> None:
    output = {"name": "probabilities", "parameters": {"classification": count}}
    told, _ = answered(read({"inputs": [GOOD], "outputs": [output]}))
    (tensor,) = told["outputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", shape)
    assert tensor["data"][:2] == ["0.500000:1:dog", "0.250000:0:cat"]
    assert tensor["data"][shape[1]] == "0.750000:2:a: b"


def test_an_embedding_comes_where_it_is_asked_for() -> None:
    names: list[dict[str, Any]] = [{"name": "embedding"}, {"name": "probabilities"}]
    parsed = read({"inputs": [GOOD], "outputs": names})
    assert parsed.task == Embed()
    assert read({"inputs": [GOOD]}).task == CLASSIFY
    told, _ = answered(parsed)
    assert [each["name"] for each in told["outputs"]] == ["embedding", "probabilities"]
    assert told["outputs"][0]["shape"] == [2, 4]
    assert told["outputs"][0]["data"] == [1, 2, 0.5, -4, 0, 0, 0, 8]
    names[0]["parameters"] = {"classification": 1}
    told, _ = answered(read({"inputs": [GOOD], "outputs": names}))
    assert told["outputs"][0]["data"] == ["2.000000:1", "8.000000:3"]


@pytest.mark.parametrize(
    ("given", "priority"),
    [
        (0, Priority.NORMAL),
        (1, Priority.FIRST),
        (2, Priority.NORMAL),
        (3, Priority.LAST),
        (4, Priority.NORMAL),
    ],
)
def test_one_is_the_highest_priority(given: int, priority: int) -> None:
    assert read({"inputs": [GOOD], "parameters": {"priority": given}}).priority == priority
