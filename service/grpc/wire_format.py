"""The fields of a protobuf message, found without parsing or copying it.

Parsing takes a multiple of a message's memory and holds the GIL; tensors and files are most of a
message, and are used where they arrived. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from service.errors import InvalidInput, TooLarge

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}


class WireField(NamedTuple):
    """A field: `kind` is its wire type, `value` its bytes, and `whole` these with number and
    length."""

    number: int
    kind: int
    value: memoryview
    whole: memoryview


def parts(message: memoryview, most: int) -> Iterator[WireField]:
    """The fields of a message in their order.

    Raises:
        InvalidInput: it is malformed.
        TooLarge: it has more than `most` fields.
    """
    position, end, count = 0, len(message), 0
    while position < end:
        count += 1
        if count > most:
            raise TooLarge(
                f"the message has more than {most} fields; send tensors as raw_input_contents"
            )
        start = position
        tag, position = varint(message, position)
        kind = tag & 7
        begin = position
        if kind == BYTES:
            length, begin = varint(message, position)
            position = begin + length
        elif kind == VARINT:
            _, position = varint(message, position)
        elif kind in SIZES:
            position += SIZES[kind]
        else:
            raise malformed()
        if position > end or not tag >> 3:
            raise malformed()
        yield WireField(tag >> 3, kind, message[begin:position], message[start:position])


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of up to 64 bits, and the position after it."""
    value = shift = 0
    for index in range(position, min(position + 10, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise malformed()


def malformed() -> InvalidInput:
    return InvalidInput("the message is not what its method takes; it cannot be parsed")
