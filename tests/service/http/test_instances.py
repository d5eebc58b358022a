from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.preprocess import CIFAR
from service.errors import InvalidInput, TooLarge
from service.http import instances
from service.http.instances import Instances, parse, parse_examples, parse_lines
from service.oip import codec
from tests.conftest import encoded

IMAGE = encoded()
TEXT = base64.b64encode(IMAGE).decode()
PIXELS = np.random.default_rng(0).integers(0, 256, CIFAR.shape).astype(np.uint8)
MOST = 4


def normalised(pixels: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray((pixels / 255 - CIFAR.mean) / CIFAR.std)


def read(document: Any, **options: Any) -> Instances:
    return parse(json.dumps(document).encode(), CIFAR, MOST, **options)


def refused(document: Any, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(document, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"instances": [{"b64": TEXT}]}, "instances"),
        ({"instances": [TEXT]}, "instances"),
        ({"instances": [{"data": TEXT}]}, "instances"),
        ({"instances": [{"image_bytes": {"b64": TEXT}, "key": "0"}]}, "instances"),
        ({"instances": [{"input_17": {"b64": TEXT}}]}, "instances"),
        ({"instances": [{"content": f"data:image/png;base64,{TEXT}"}]}, "instances"),
        ({"inputs": [{"b64": TEXT}]}, "inputs"),
        ({"inputs": {"b64": TEXT}}, "inputs"),
        ({"inputs": TEXT}, "inputs"),
        ({"inputs": {"image": [{"b64": TEXT}]}}, "inputs"),
        ({"inputs": {"image": TEXT}}, "inputs"),
        ({"data": TEXT}, ""),
        ({"body": TEXT, "parameters": None}, ""),
        ({"instances": [TEXT], "signature_name": "serving_default"}, "instances"),
    ],
)
def test_files_are_read_however_they_are_wrapped(document: Any, field: str) -> None:
    assert read(document) == Instances([IMAGE], field, {})


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [normalised(PIXELS).tolist()]},
        {"instances": [normalised(PIXELS).transpose(2, 0, 1).tolist()]},
        {"instances": [{"input": normalised(PIXELS).tolist()}]},
        {"instances": [{"pixels": PIXELS.tolist()}]},
        {"inputs": [normalised(PIXELS).tolist()]},
        {"inputs": {"input": [normalised(PIXELS).tolist()]}},
        {"inputs": {"pixels": [PIXELS.tolist()]}},
    ],
)
def test_tensors_are_those_of_v2(document: Any) -> None:
    (pixels,) = read(document).images
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_allclose(pixels, PIXELS, atol=1e-3)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([TEXT], "the body must be a JSON object"),
        ({}, "its fields are: none"),
        ({"instances": []}, "instances: there is no image"),
        ({"instances": TEXT}, "instances: must be a list"),
        ({"instances": [TEXT, None]}, r"instances\[1\]: an image must be base64 text"),
        ({"instances": [TEXT, "?"]}, r"instances\[1\]: the base64 text has '\?' at character 0"),
        ({"instances": [[1, 2]]}, r"instances\[0\]: input: the shape must be \[3, 32, 32\] or"),
        ({"instances": [[]]}, r"shape must be .*, not \[0\]"),
        ({"instances": [[[1, 2], [3]]]}, r"lists differ in length: \[1, 2\]"),
        ({"instances": [[1, [2]]]}, "lists and values are mixed"),
        ({"instances": [{"pixels": [1], "input": [1]}]}, "either input or pixels"),
        ({"instances": [{"pixels": [[[256] * 3] * 32] * 32}]}, "from 0 to 255"),
        ({"instances": [[[["1"] * 3] * 32] * 32]}, "plain numbers"),
        ({"instances": [[[[1e300] * 3] * 32] * 32]}, "must be finite"),
        ({"instances": [{"a": {"b": {"c": {"d": TEXT}}}}]}, "its fields are: 'd'"),
        ({"instances": [{"image": {"pixels": [1]}}]}, "its fields are: 'pixels'"),
        ({"instances": [TEXT], "inputs": [TEXT]}, "either instances or inputs"),
        ({"instances": [TEXT], "signature_name": "other"}, "the only one is serving_default"),
        ({"instances": [TEXT], "parameters": 3}, "parameters: must be an object"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(document: Any, said: str) -> None:
    assert re.search(said, refused(document))


def test_one_image_alone_may_be_refused() -> None:
    assert refused({"data": TEXT}, single=False) == f"send {instances.DOCUMENT}"


@pytest.mark.parametrize(
    ("body", "said"),
    [(IMAGE, "it is PNG"), (b"", "EOF"), (b'{"instances": [NaN]}', "expected value")],
)
def test_what_is_no_json_is_named(body: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=f"the body is not JSON: {said}"):
        parse(body, CIFAR, MOST)


def test_so_many_images_and_no_more() -> None:
    assert len(read({"instances": [TEXT] * MOST}).images) == MOST
    for field in ("instances", "inputs"):
        with pytest.raises(TooLarge, match=f"{field}: more than 4 images"):
            read({field: [TEXT] * (MOST + 1)})
    lines = b'{"b64": "AAAA"}\n' * (MOST + 1)
    with pytest.raises(TooLarge, match="more than 4 images"):
        parse_lines(lines, CIFAR, MOST)


@pytest.mark.parametrize(
    ("unit", "limit", "counted"),
    [
        (b"1,", codec.MAX_JSON_VALUES, "values"),
        (b"[", codec.MAX_JSON_LISTS, "lists and objects"),
        (b'""', codec.JSON_BESIDE, "quotes"),
    ],
)
def test_what_is_dear_to_parse_is_refused_unparsed(unit: bytes, limit: int, counted: str) -> None:
    instances.check_costs(unit * limit)
    with pytest.raises(TooLarge, match=counted):
        instances.check_costs(unit * (limit + 1))


def test_lines_are_an_image_each() -> None:
    body = f'"{TEXT}"\n\n{{"b64": "{TEXT}"}}\n'.encode()
    assert parse_lines(body, CIFAR, MOST) == Instances([IMAGE, IMAGE], "lines", {})
    with pytest.raises(InvalidInput, match="line 2: "):
        parse_lines(f'"{TEXT}"\n"?"'.encode(), CIFAR, MOST)
    with pytest.raises(InvalidInput, match="lines: there is no image"):
        parse_lines(b"\n", CIFAR, MOST)


def examples(*values: Any) -> Instances:
    return parse_examples(json.dumps({"examples": values}).encode(), CIFAR, MOST)


def test_an_example_has_one_feature_that_is_a_file() -> None:
    for name in ("image/encoded", "x"):
        assert examples({name: {"b64": TEXT}, "height": [32]}).images == [IMAGE]
    assert examples({"image/encoded": [{"b64": TEXT}]}).images == [IMAGE]
    for wrong in ({}, {"a": {"b64": TEXT}, "b": {"b64": TEXT}}, {"a": TEXT}):
        with pytest.raises(InvalidInput, match=r"examples\[0\]: \d of its features are files"):
            examples(wrong)
    with pytest.raises(InvalidInput, match="must be an object"):
        examples(3)
    with pytest.raises(InvalidInput, match=r"send .*examples"):
        parse_examples(b"{}", CIFAR, MOST)


@pytest.mark.parametrize("value", [0, 4, 1.0, "1", True])
def test_a_parameter_is_a_whole_number_in_its_range(value: Any) -> None:
    allowed = range(1, 4)
    assert instances.whole_parameter({"k": 3}, "k", allowed) == 3
    assert instances.whole_parameter({}, "k", allowed) is None
    with pytest.raises(InvalidInput, match="k must be a whole number from 1 to 3"):
        instances.whole_parameter({"k": value}, "k", allowed)


def test_a_parameter_without_effect_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'topk' is unknown; known: top_k"):
        instances.check_parameters({"topk": 1}, ["top_k"])
