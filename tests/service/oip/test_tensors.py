"""Tensors from JSON and bytes, and back."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from service.errors import InvalidInput
from service.oip import tensors


def test_numbers_may_be_nested_or_flat() -> None:
    flat = tensors.array_of_numbers("UINT8", (2, 2), [0, 1, 254, 255])
    nested = tensors.array_of_numbers("UINT8", (2, 2), [[0, 1], [254, 255]])
    assert flat.tolist() == nested.tolist() == [[0, 1], [254, 255]]
    assert flat.dtype == np.uint8
    floats = tensors.array_of_numbers("FP32", (3,), [1, 0.1, -2.5])
    assert floats.dtype == np.float32
    assert floats.tolist() == np.array([1, 0.1, -2.5], np.float32).tolist()


def test_bytes_are_little_endian_and_row_major() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert tensors.array("FP32", (2, 3), values.astype("<f4").tobytes()).tolist() == values.tolist()
    assert tensors.array("UINT8", (2,), b"\x01\xff").tolist() == [1, 255]


def test_elements_follow_their_lengths() -> None:
    packed = tensors.pack(["a", "", "äb"])
    assert packed == b"\1\0\0\0a\0\0\0\0\3\0\0\0" + "äb".encode()
    assert tensors.elements(packed, 3) == [b"a", b"", "äb".encode()]


def test_elements_of_json_are_base64() -> None:
    image = bytes(range(256))
    text = base64.b64encode(image).decode()
    assert tensors.elements_of_text([[text], [text]], 2) == [image, image]


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("UINT8", [1], "2 elements, but data has 1"),
        ("UINT8", [1, 2, 3], "2 elements, but data has 3"),
        ("UINT8", [[1], 2], "mixed"),
        ("UINT8", [1, [2]], "plain numbers"),
        ("UINT8", [1, 256], "0 to 255"),
        ("UINT8", [-1, 1], "0 to 255"),
        ("UINT8", [1, 2**70], "out of UINT8's range"),
        ("UINT8", [1, 1.0], "plain numbers"),
        ("UINT8", [True, False], "plain numbers"),
        ("UINT8", ["1", "2"], "plain numbers"),
        ("FP32", ["x" * 1000, "y"], "plain numbers"),
        ("FP32", [None, {}], "plain numbers"),
        ("FP32", [1, 10**400], "out of FP32's range"),
        ("FP32", [[], []], "data has 0"),
        ("FP32", [[[[[[]]]]]], "data has 0"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused(
    datatype: str, data: list[Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        tensors.array_of_numbers(datatype, (2,), data)


@pytest.mark.parametrize(
    ("raw", "count", "words"),
    [
        (b"", 1, "ends within element 0 of 1"),
        (b"\1\0\0", 1, "ends within element 0 of 1"),
        (b"\2\0\0\0a", 1, "ends within element 0 of 1"),
        (b"\xff\xff\xff\xffa", 1, "ends within element 0 of 1"),
        (b"\1\0\0\0a\1\0\0\0", 2, "ends within element 1 of 2"),
        (b"\1\0\0\0ab", 1, "1 bytes follow"),
    ],
)
def test_what_is_no_element_is_refused(raw: bytes, count: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        tensors.elements(raw, count)


@pytest.mark.parametrize("data", [["no base64!"], ["äöü="], [1], [None], [{"b64": "YQ=="}]])
def test_strings_that_are_no_base64_are_refused(data: list[Any]) -> None:
    with pytest.raises(InvalidInput, match="base64"):
        tensors.elements_of_text(data, 1)
