"""Tensors from JSON and from bytes, and back: arrays are little-endian and row-major, an element of
type BYTES follows its length in four bytes."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
# What JSON's numbers may be read as before they become a tensor's.
NUMBERS: dict[str, tuple[set[type], np.dtype[Any]]] = {
    "UINT8": ({int}, np.dtype("i8")),
    "FP32": ({int, float}, np.dtype("f8")),
}
LENGTH = struct.Struct("<I")


def array(datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> NDArray[Any]:
    """The tensor in `raw`, whose memory it shares.

    Raises:
        InvalidInput: `raw` has another size.
    """
    wanted = math.prod(shape) * DTYPES[datatype].itemsize
    if len(raw) != wanted:
        raise InvalidInput(f"{datatype} of shape {list(shape)} has {wanted} bytes, not {len(raw)}")
    return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)


def array_of_numbers(datatype: str, shape: Sequence[int], data: list[Any]) -> NDArray[Any]:
    """The tensor in JSON's numbers, nested or flat.

    Raises:
        InvalidInput: there are more or fewer, or some that the type cannot hold.
    """
    numbers = flat(data, math.prod(shape))
    kinds, wide = NUMBERS[datatype]
    if not set(map(type, numbers)) <= kinds:
        raise InvalidInput(f"data: {datatype} needs plain numbers")
    try:
        found = np.array(numbers, wide)
    except OverflowError:
        raise InvalidInput(f"data: a number is out of {datatype}'s range") from None
    if datatype == "UINT8" and (found.min() < 0 or found.max() > 255):
        raise InvalidInput("data: UINT8 needs numbers from 0 to 255")
    with np.errstate(over="ignore"):  # Whoever takes the tensor looks for what is not finite.
        return found.astype(DTYPES[datatype]).reshape(shape)


def flat(data: list[Any], count: int) -> list[Any]:
    """The `count` elements of lists in lists."""
    while data and isinstance(data[0], list):
        if not all(isinstance(each, list) for each in data):
            raise InvalidInput("data: lists and values are mixed")
        data = list(chain.from_iterable(data))
    if len(data) != count:
        raise InvalidInput(f"data: the shape has {count} elements, and here are {len(data)}")
    return data


def elements(raw: bytes | memoryview, count: int) -> list[bytes]:
    """The `count` elements of type BYTES in `raw`.

    Raises:
        InvalidInput: `raw` holds more or fewer.
    """
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        start = at + LENGTH.size
        at = start + LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else start
        if at > len(raw):
            raise InvalidInput(
                f"the binary data ends within element {len(found)} of {count}; each is its length "
                "in four bytes, little-endian, and then its bytes"
            )
        found.append(bytes(raw[start:at]))
    if at < len(raw):
        raise InvalidInput(f"{len(raw) - at} bytes follow the {count} elements of the shape")
    return found


def elements_of_text(data: list[Any], count: int) -> list[bytes]:
    """The `count` elements of type BYTES in JSON's strings, which are base64: no string holds the
    bytes of an image as they are."""
    try:
        return [base64.b64decode(text, validate=True) for text in flat(data, count)]
    except (ValueError, TypeError):
        raise InvalidInput(
            "data: JSON holds BYTES as strings in base64; images as they are go into the binary "
            "data, see binary_data_size"
        ) from None


def packed(values: Iterable[str]) -> bytes:
    """Elements of type BYTES as binary data."""
    encoded = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(each)) + each for each in encoded)
