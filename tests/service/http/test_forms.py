"""Forms: which of their parts are images, and the names of those."""

from __future__ import annotations

import pytest

from service.errors import BadParameter, TooLarge, UndecodableImage
from service.http import forms
from service.http.forms import Part, Parts, field_and_file_name, uploads_of, urlencoded
from tests.conftest import encoded


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        (b'form-data; name="image"', "image", None),
        (b'form-data; name="image"; filename=""', "image", ""),
        (b"form-data; name=image; filename=a.png", "image", "a.png"),
        (b'form-data;name="a;b";filename="c;d=e.png"', "a;b", "c;d=e.png"),
        (b'form-data; name="a"; filename="b\\"c\\\\d.png"', "a", 'b"c\\d.png'),
        (b'form-data; name="a"; filename="C:\\photos\\b.png"', "a", "C:\\photos\\b.png"),
        (b'form-data; NAME="a"; FileName="b"', "a", "b"),
        (b"form-data; name=a; filename=b; filename*=utf-8''%e2%82%ac", "a", "\u20ac"),
        (b"form-data; name=a; filename*=ISO-8859-1'en'%e4", "a", "\xe4"),
        (b"form-data; name=a; filename=b; filename*=utf-7''%e4", "a", "b"),
        (b"form-data; name=a; filename*=utf-8''%ff", "a", "\ufffd"),
        (b'form-data; name="a; filename=b"', "a; filename=b", None),
        ('form-data; name="\u7532"'.encode(), "\u7532", None),
        (b'form-data; name="\xff"', "\xff", None),
        (b"form-data", "", None),
    ],
)
def test_the_names_of_a_part(disposition: bytes, name: str, filename: str | None) -> None:
    assert field_and_file_name(disposition) == (name, filename)


def test_an_urlencoded_value_is_whole_wherever_the_pieces_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for piece in range(4, 12):
        monkeypatch.setattr(forms, "PARSED_BYTES", piece)
        (part,) = urlencoded(b"a%20b+c=" + b"x%2Fy" * 20 + b"+%")
        assert (part.name, b"".join(part.chunks)) == ("a b c", b"x/y" * 20 + b"+%")


@pytest.mark.parametrize("name", ["metadata", "data"])
@pytest.mark.parametrize("media_type", [b"application/json", b"application/ld+json", b""])
def test_json_without_a_filename_is_a_field_beside_the_file(name: str, media_type: bytes) -> None:
    image, json = Part("x", "a.png", chunks=[encoded()]), b'{"taken": "today", "by": [1]}'
    field = Part(name, media_type=media_type, chunks=[json])
    for parts in ([image, field], [field, image]):
        (upload,) = uploads_of(parts, 1, {})
        assert upload.filename == "a.png"
    with pytest.raises(BadParameter, match="the form has no file; its fields: "):
        uploads_of([field], 1, {})
    with pytest.raises(BadParameter, match="several files"):
        uploads_of([image, Part(name, "a.json", media_type, chunks=[json])], 1, {})
    with pytest.raises(BadParameter, match="top_k"):
        uploads_of([image, Part("top_k", media_type=media_type, chunks=[b"3"])], 1, {"top_k": ""})
    field.chunks = [b"{" + b" " * forms.MAX_IGNORED]
    with pytest.raises(UndecodableImage, match="bytes, which are not an image"):
        uploads_of([image, field], 1, {})
    field.chunks = [encoded()]  # Its bytes decide.
    assert len(uploads_of([field], 1, {})) == 1


def test_fields_and_files_are_limited() -> None:
    image = Part("x", "a.png", chunks=[encoded()])
    with pytest.raises(BadParameter, match="several files"):
        uploads_of([image, image], 1, {})
    with pytest.raises(TooLarge, match="more than 2 images"):
        uploads_of([image] * 3, 2, {})
    with pytest.raises(UndecodableImage, match="more than 16 fields"):
        urlencoded(b"a=1&" * 16 + b"a=1")
    assert len(urlencoded(b"a=1&" * 15 + b"a=1")) == 16
    large = Part("x", chunks=[b"\0" * forms.MAX_IGNORED])
    assert len(uploads_of([image, large], 1, {})) == 1
    large.chunks.append(b"\0")
    with pytest.raises(UndecodableImage, match="bytes, which are not an image"):
        uploads_of([image, large], 1, {})


@pytest.mark.parametrize(
    ("boundary", "headers", "said"),
    [
        (b"b", b"X: " + b"a" * 10_000 + b"\r\n", "the headers of a part are too long, or too many"),
        (b"b", b"X: a\r\n" * 10_000, "the headers of a part are too long, or too many"),
        (b"b" * 300, b"", "the boundary that its content type names is too long"),
    ],
)
def test_what_is_too_long_in_a_form_is_said(boundary: bytes, headers: bytes, said: str) -> None:
    with pytest.raises(UndecodableImage, match=f"the form is malformed: {said}"):
        Parts(boundary, 1, 1000).write(b"--" + boundary + b"\r\n" + headers)
