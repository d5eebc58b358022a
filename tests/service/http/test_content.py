"""What a content type says, and what bytes say against it."""

from __future__ import annotations

import pytest

from service.errors import UnsupportedMediaType
from service.http.content import (
    BYTES,
    FORM,
    IMAGE,
    JSON,
    OTHER,
    TEXT,
    URLENCODED,
    ContentKind,
    declared_kind,
    media_type,
)
from service.http.content import body_kind as body_kind_of
from tests.conftest import encoded
from tests.service.http.test_body import sending


def body_kind(declared: ContentKind, data: bytes) -> ContentKind:
    return body_kind_of(sending(content_type="x/y"), declared, data)


@pytest.mark.parametrize(
    ("content_type", "declared"),
    [
        ("image/jpeg", IMAGE),
        ("IMAGE/x-none; a=b", IMAGE),
        ("", BYTES),
        (" Binary/Octet-Stream ; q", BYTES),
        ("application/x-www-form-urlencoded; charset=utf-8", URLENCODED),
        ("text/plain;charset=UTF-8", TEXT),
        ("application/json; charset=utf-8", JSON),
        ("application/problem+json", JSON),
        ("multipart/form-data; boundary=b", FORM),
        ("multipart/mixed", OTHER),
        ("imagejpeg", OTHER),
    ],
)
def test_a_type_says_what_to_expect(content_type: str, declared: ContentKind) -> None:
    assert declared_kind(sending(content_type=content_type)) == (declared, False)


def test_headers_tell_of_compression_in_any_order() -> None:
    assert declared_kind(sending()) == (BYTES, False)
    assert declared_kind(sending(content_encoding="gzip", content_type="image/png")) == (
        IMAGE,
        True,
    )
    assert declared_kind(sending(content_type="image/png", content_encoding="gzip")) == (
        IMAGE,
        True,
    )


@pytest.mark.parametrize("declared", [IMAGE, BYTES, URLENCODED, TEXT, JSON, OTHER])
def test_an_image_is_one_whatever_is_said(declared: ContentKind) -> None:
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert body_kind(declared, encoded(name)) is IMAGE
    assert body_kind(declared, b"") is IMAGE


@pytest.mark.parametrize("text", [b"{}", b' \r\n\t{"a"', b"\xef\xbb\xbf{"])
def test_an_object_is_json_where_the_type_says_nothing_else(text: bytes) -> None:
    found = {
        declared: body_kind(declared, text) for declared in (IMAGE, BYTES, URLENCODED, TEXT, JSON)
    }
    assert found == {IMAGE: IMAGE, BYTES: JSON, URLENCODED: JSON, TEXT: JSON, JSON: JSON}
    with pytest.raises(UnsupportedMediaType):
        body_kind(OTHER, text)


def test_json_that_looks_like_a_file_is_json() -> None:
    text = b'{"image": "' + b"A" * (128 - 11) + b'DICM"}'
    assert {body_kind(declared, text) for declared in (BYTES, URLENCODED, TEXT, JSON)} == {JSON}


def test_the_first_of_several_types_counts() -> None:
    request = sending()
    names = (b"image/png", b"multipart/form-data; boundary=b")
    request.scope["headers"] = [(b"content-type", name) for name in names]
    assert (declared_kind(request), media_type(request)) == ((IMAGE, False), "image/png")


def test_bytes_of_no_kind_are_for_the_decoder_or_415() -> None:
    assert body_kind(BYTES, b"\xef\xbb") is IMAGE
    assert body_kind(URLENCODED, b"\x80=") is IMAGE
    assert body_kind(URLENCODED, b"image=abc") is URLENCODED
    assert body_kind(JSON, b"nonsense") is JSON
    for declared in (TEXT, OTHER):
        with pytest.raises(UnsupportedMediaType, match="'x/y', and the body is no image; send"):
            body_kind(declared, b"nonsense")
