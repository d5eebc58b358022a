"""Tensors from JSON and bytes, and back: arrays are little-endian and row-major; an element of type
BYTES follows its length in four bytes."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.inference.base64_text import decode_base64

DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
}
# Accepted Python types of JSON numbers, and a wider type to check their range in.
NUMBERS: dict[str, tuple[set[type], np.dtype[Any]]] = {
    "UINT8": ({int}, np.dtype("i8")),
    "FP32": ({int, float}, np.dtype("f8")),
}
LENGTH = struct.Struct("<I")


def array(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> NDArray[Any]:
    """The tensor in `raw`, sharing its memory.

    Raises:
        InvalidInput: `raw` has the wrong size.
    """
    size = math.prod(shape) * DTYPES[datatype].itemsize
    if len(raw) != size:
        raise InvalidInput(f"{datatype} of shape {list(shape)} has {size} bytes, not {len(raw)}")
    return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)


def array_of_numbers(datatype: str, shape: Sequence[int], data: list[Any]) -> NDArray[Any]:
    """The tensor in JSON numbers, nested or flat.

    Raises:
        InvalidInput: the count is wrong, or the type cannot hold a number, or has none in JSON.
    """
    if datatype not in NUMBERS:
        raise InvalidInput(
            f"data: {datatype} has no form in JSON; send it as binary data, see binary_data_size"
        )
    numbers = flat(data, math.prod(shape))
    kinds, wide = NUMBERS[datatype]
    if not set(map(type, numbers)) <= kinds:
        raise InvalidInput(f"data: {datatype} needs plain numbers")
    try:
        array = np.array(numbers, wide)
    except OverflowError:
        raise InvalidInput(f"data: a number is out of {datatype}'s range") from None
    if datatype == "UINT8" and (array.min() < 0 or array.max() > 255):
        raise InvalidInput("data: UINT8 needs numbers from 0 to 255")
    with np.errstate(over="ignore"):  # `codec.pixels_of` refuses infinities.
        return array.astype(DTYPES[datatype]).reshape(shape)


def flat(data: list[Any], count: int) -> list[Any]:
    """The `count` elements of nested lists."""
    while data and isinstance(data[0], list):
        if not all(isinstance(element, list) for element in data):
            raise InvalidInput("data: lists and values are mixed")
        data = list(chain.from_iterable(data))
    if len(data) != count:
        raise InvalidInput(f"data: the shape has {count} elements, but data has {len(data)}")
    return data


def elements(raw: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` elements of type BYTES in `raw`.

    Raises:
        InvalidInput: `raw` holds more or fewer.
    """
    values: list[bytes] = []
    end = 0
    for index in range(count):
        start = end + LENGTH.size
        end = start + LENGTH.unpack_from(raw, end)[0] if start <= len(raw) else start
        if end > len(raw):
            raise InvalidInput(
                f"the binary data ends within element {index} of {count}; each is its length "
                "in four bytes, little-endian, followed by its bytes"
            )
        values.append(bytes(raw[start:end]))
    if end < len(raw):
        raise InvalidInput(f"{len(raw) - end} bytes follow the {count} elements of the shape")
    return values


def elements_of_text(data: list[Any], count: int) -> list[bytes]:
    """The `count` elements of type BYTES in JSON strings: base64, as JSON cannot hold bytes.

    Raises:
        InvalidInput: it says which element is none, and why.
    """
    return [_element_of_text(text, index) for index, text in enumerate(flat(data, count))]


def _element_of_text(text: Any, index: int) -> bytes:
    if not isinstance(text, str):
        raise InvalidInput(
            f"data: element {index} must be a string with base64, as all BYTES in JSON; send raw "
            "images as binary data, see binary_data_size"
        )
    try:
        return decode_base64(text)
    except InvalidInput as error:
        raise InvalidInput(f"data: element {index}: {error}") from None


def pack(values: Iterable[str]) -> bytes:
    """Elements of type BYTES as binary data."""
    elements = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)
