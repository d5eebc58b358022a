"""Compressed bodies: read as they arrive, and bounded."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib

import pytest

from service.errors import InvalidInput, TooLarge, UnsupportedEncoding, UploadsFull
from service.http import encoding
from service.http.body import Body, UploadBudget
from tests.service.http.test_body import LANE, sending

TEXT = bytes(range(256)) * 40


def read(
    *chunks: bytes, encoded: str, max_bytes: int = 100_000, budget: UploadBudget | None = None
) -> bytes:
    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + 60
        request = sending(*chunks, content_encoding=encoded)
        with Body(request, budget or UploadBudget(10**9, 60), LANE, max_bytes, deadline) as body:
            return await encoding.read(body)

    return asyncio.run(within())


@pytest.mark.parametrize(
    ("encoded", "compressed"),
    [
        ("gzip", gzip.compress(TEXT)),
        (" GZIP ", gzip.compress(TEXT)),
        ("x-gzip", gzip.compress(TEXT)),
        ("identity, gzip", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("identity", TEXT),
        ("", TEXT),
    ],
)
def test_a_body_is_what_it_was_before(encoded: str, compressed: bytes) -> None:
    assert read(compressed, encoded=encoded) == TEXT
    single = [bytes([each]) for each in compressed]
    assert read(*single, b"", encoded=encoded) == TEXT


@pytest.mark.parametrize(
    ("encoded", "sent", "words"),
    [
        ("gzip", TEXT, "not valid gzip"),
        ("deflate", gzip.compress(TEXT), "not valid deflate"),
        ("gzip", gzip.compress(TEXT)[:-1], "truncated"),
        ("gzip", b"", "truncated"),
        ("gzip", gzip.compress(TEXT) + b"x", "unexpected bytes after"),
    ],
)
def test_what_is_not_as_it_says_is_refused(encoded: str, sent: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read(sent, encoded=encoded)


@pytest.mark.parametrize("encoded", ["br", "zstd", "gzip, gzip", "deflate, br", "gzip;q=1"])
def test_other_encodings_are_refused_before_anything_is_read(encoded: str) -> None:
    with pytest.raises(UnsupportedEncoding, match=f"'{encoded}'; send the body with gzip or"):
        read(encoded=encoded)


def test_bytes_behind_the_end_are_refused_however_they_come() -> None:
    with pytest.raises(InvalidInput, match="unexpected bytes after"):
        read(gzip.compress(TEXT), b"x", b"", encoded="gzip")


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(40 * 2**20))
    limit = 2**20
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="decompresses to more than"):
            read(bomb, encoded="gzip", max_bytes=limit)
        assert tracemalloc.get_traced_memory()[1] < 2 * limit + 2 * encoding.STEP_BYTES
    finally:
        tracemalloc.stop()


def test_what_was_decompressed_counts_among_all_bodies() -> None:
    async def test() -> None:
        budget = UploadBudget(len(TEXT) // 2, 60)
        deadline = asyncio.get_running_loop().time() + 60
        compressed = gzip.compress(TEXT)
        request = sending(compressed, content_encoding="gzip")
        with (
            Body(sending(), budget, LANE, 10**6, deadline) as other,
            Body(request, budget, LANE, 10**6, deadline) as body,
        ):
            other.hold(len(TEXT) + 1)
            other.receiving = False
            with pytest.raises(UploadsFull):
                await encoding.read(body)
        assert budget.held == 0

    asyncio.run(test())


@pytest.mark.parametrize("most", [len(TEXT) - 1, len(TEXT)])
def test_a_body_may_expand_as_far_as_its_use_allows(most: int) -> None:
    compressed = gzip.compress(TEXT)
    sizes: list[int] = []

    def max_inflated(size: int) -> int:
        sizes.append(size)
        return most

    async def within() -> bytes:
        deadline = asyncio.get_running_loop().time() + 60
        request = sending(compressed, content_encoding="gzip")
        with Body(request, UploadBudget(10**9, 60), LANE, 10**6, deadline) as body:
            return await encoding.read(body, max_inflated)

    if most == len(TEXT):
        assert asyncio.run(within()) == TEXT
    else:
        with pytest.raises(TooLarge, match=f"more than {most} bytes; send it uncompressed"):
            asyncio.run(within())
    assert sizes == [len(compressed)]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("identity, gzip;q=0.5", None),
        ("br, zstd", None),
        ("gzip;q=x", None),
        ("gzip;q=1.1.1", None),
        (", ,;;q", None),
    ],
)
def test_the_answer_comes_as_the_caller_likes_it_most(
    header: str | None, chosen: str | None
) -> None:
    assert encoding.negotiate(header) == chosen


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_answers_can_be_read_by_others(name: str) -> None:
    content = encoding.compress(TEXT, name)
    assert (gzip.decompress if name == "gzip" else zlib.decompress)(content) == TEXT
