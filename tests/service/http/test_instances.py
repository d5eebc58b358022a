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
from service.http.instances import Instances, loads, parse, parse_examples, parse_lines
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
        ({"inputs": {"image_bytes": [{"b64": TEXT}], "key": ["0"]}}, "inputs"),
        ({"data": TEXT, "target": 0, "signature_name": ""}, ""),
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
        ({"instances": [TEXT], "signature_name": "x" * 999}, "signature_name: 'x{200}' is unknown"),
        ({"instances": [TEXT], "signature_name": "other"}, "the only one is serving_default"),
        ({"instances": [TEXT], "parameters": 3}, "parameters: must be an object"),
        ({"instances": [TEXT], "image": TEXT}, "unknown field 'image'; a request may have inst"),
        ({"instances": [TEXT], "top_k": 1}, r"'top_k' is a parameter; send it as .*parameters"),
        ({"image": TEXT, "images": [TEXT]}, "the JSON has no instances"),
        ({"inputs": [{"name": "input", "datatype": "FP32"}]}, "to /v2/models/NAME/infer"),
        ({"data": TEXT, "topK": 1}, "the body: 'topK' is a parameter"),
        ({"instances": [{"b64": TEXT, "top_k": 1}]}, r"instances\[0\]: 'top_k' is a parameter"),
        ({"instances": [{"b64": TEXT, "maxPredictions": 1}]}, "is a parameter"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(document: Any, said: str) -> None:
    assert re.search(said, refused(document))


def test_one_image_alone_may_be_refused() -> None:
    assert (
        refused({"data": TEXT}, single=False)
        == f"the JSON has no instances; send {instances.DOCUMENT}"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (IMAGE, "must be JSON, and is PNG; send"),
        (b"", "must be JSON, and is empty; send"),
        (b"BM", "must be JSON, and is BMP; send"),
        (b"?", "malformed at byte 0"),
        (b'{"instances": [NaN]}', "NaN, which is not JSON"),
        (b'{"instances": ["?"], "instances": []}', "'instances' twice"),
    ],
)
def test_what_is_no_json_is_named(body: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
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
        (b"1,", codec.MAX_JSON_VALUES + 8, "values"),
        (b"[", codec.MAX_JSON_LISTS + 8, "lists and objects"),
        (b'""', codec.JSON_BESIDE + 16, "strings"),
        (b"0", codec.MAX_JSON_BYTES + 2**9, "bytes beside"),
    ],
)
def test_what_is_dear_to_parse_is_refused_unparsed(unit: bytes, limit: int, counted: str) -> None:
    with pytest.raises(InvalidInput):
        loads(unit * limit + b"?", 1) if unit != b"0" else loads(unit * limit, 1)
    with pytest.raises(TooLarge, match=f"{counted}.*; send images as base64"):
        loads(unit * (limit + 1), 1)


def test_all_lines_have_as_many_values_as_one_may_have() -> None:
    line = b"[" + b"0," * (codec.MAX_JSON_VALUES // 2) + b"0]\n"
    with pytest.raises(InvalidInput, match="line 1: input: the shape"):
        parse_lines(line * 2, CIFAR, MOST)
    with pytest.raises(TooLarge, match="values"):
        parse_lines(line * 3, CIFAR, MOST)


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


def test_a_long_text_in_the_place_of_a_number_is_quoted_in_part() -> None:
    parameters = read({"instances": [TEXT], "parameters": {"k": "x" * 999}}).parameters
    with pytest.raises(InvalidInput, match=r"from 1 to 3, not 'x{200}'$"):
        instances.whole_parameter(parameters, "k", range(1, 4))


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


def test_json_is_not_taken_for_a_file_by_bytes_in_its_text() -> None:
    text = b'{"instances": ["' + b"A" * (128 - 16) + b"DICM" + b'", 1]}'
    with pytest.raises(InvalidInput, match=r"instances\[1\]: an image must be base64"):
        parse(text, CIFAR, MOST)
