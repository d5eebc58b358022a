from __future__ import annotations

import random

import pytest
from tritonclient.grpc import service_pb2

from service.errors import InvalidInput, TooLarge
from service.grpc.wire_format import parts, varint

MESSAGE = service_pb2.ModelInferRequest(
    model_name="m", id="é" * 200, raw_input_contents=[b"", b"x" * 300]
)
MESSAGE.parameters["timeout"].int64_param = -1
MESSAGE.inputs.add(name="a", shape=[1, 2**40, 3])
TEXT = MESSAGE.SerializeToString()


def test_the_fields_are_all_of_the_message() -> None:
    found = [*parts(memoryview(TEXT), 100)]
    assert b"".join(part.whole for part in found) == TEXT
    assert [bytes(part.value) for part in found if part.number == 7] == [b"", b"x" * 300]
    assert [bytes(part.value) for part in found if part.number == 3] == ["é".encode() * 200]


def test_numbers_have_up_to_64_bits() -> None:
    assert varint(memoryview(b"\x05"), 0) == (5, 1)
    assert varint(memoryview(b"x\xac\x02y"), 1) == (300, 3)
    assert varint(memoryview(b"\xff" * 9 + b"\x01"), 0) == (2**64 - 1, 10)
    for text in (b"", b"\x80", b"\x80" * 10, b"\xff" * 11):
        with pytest.raises(InvalidInput):
            varint(memoryview(text), 0)


@pytest.mark.parametrize(
    "text",
    [
        b"\x0a\x02a",  # longer than the message
        b"\x0a",
        b"\x08",
        b"\x0d123",
        b"\x09\x00",
        b"\x0b",  # a group
        b"\x0c",
        b"\x0f",
        b"\x02\x00",  # number 0
        b"\x0a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_what_is_malformed_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="cannot be parsed"):
        [*parts(memoryview(text), 100)]


def test_fields_are_counted() -> None:
    assert len([*parts(memoryview(b"\x08\x01" * 9), 9)]) == 9
    with pytest.raises(TooLarge, match="more than 8 fields"):
        [*parts(memoryview(b"\x08\x01" * 9), 8)]


def test_damage_is_noticed_or_gives_fields_of_the_whole() -> None:
    noise = random.Random(1)
    for _ in range(2000):
        text = bytearray(TEXT)
        for _ in range(noise.randrange(1, 5)):
            text[noise.randrange(len(text))] = noise.randrange(256)
        try:
            found = [*parts(memoryview(bytes(text)), 1000)]
        except InvalidInput:
            continue
        assert b"".join(part.whole for part in found) == bytes(text)
