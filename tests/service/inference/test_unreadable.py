"""What is no decodable image is refused by its name, with what to do."""

from __future__ import annotations

import base64
import gzip
import io

import pytest
from PIL import Image

from models import image_files
from models.preprocess import CIFAR
from service.errors import UndecodableImage
from service.inference.decoding import decode_image
from tests.conftest import encoded
from tests.support.hostile.formats import jpeg, picture, png, saved


def refusal(data: bytes) -> str:
    with pytest.raises(UndecodableImage, match=r"\A[^\n]+\Z") as caught:
        decode_image(data, CIFAR, 10**6)
    return str(caught.value)


CASES = {
    b"<!doctype html><title>404</title>": "this is an HTML page; perhaps it is an error page",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>": "this is SVG, which this service does not",
    b"%PDF-1.7\n" + bytes(100): "this is a PDF document, which this service does not decode",
    base64.b64encode(jpeg()): "this is base64 text; send the bytes that it stands for, or JSON",
    b"data:image/png;base64," + bytes(40): "this is a data URL; send the bytes",
    gzip.compress(jpeg()): "this is gzip-compressed data; send it with Content-Encoding: gzip",
    b'{"image": "aGVsbG8gd29ybGQ="}': "this is JSON; send it as the body, as application/",
    b"https://example.org/photo.jpg": "this is a URL; send the image itself",
    b"--x\r\nContent-Disposition: form-data; name=a\r\n": "this is a form; send it as the body, as",
    b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(99): "this is a video; send one frame of it",
    b"\x1a\x45\xdf\xa3" + bytes(99): "this is a video; send one frame of it",
    b"\xff\x0a" + bytes(99): "this is JPEG XL, which this service does not decode",
    saved(picture(), "JPEG2000"): "this is JPEG 2000, which this service does not decode",
    saved(picture((32, 32)), "ICO"): "this is ICO, which this service does not decode",
    saved(picture(), "TGA"): "this is TGA, which this service does not decode",
    saved(picture(), "PPM"): "this is a portable pixmap (PNM), which this service does not decode",
    b"8BPS\0\1" + bytes(99): "this is a Photoshop file, which",
    b"\x93NUMPY\1\0" + bytes(99): "this is a NumPy array, which",
    bytes(128) + b"DICM" + bytes(99): "this is DICOM, which",
    b"\x76\x2f\x31\x01" + bytes(99): "this is OpenEXR, which",
    b"#?RADIANCE\n" + bytes(99): "this is Radiance HDR, which",
    jpeg().decode("utf-8", "replace").encode(): "this is a file that was read as text; open it in",
    jpeg().decode("latin-1").encode(): "this is a file that was read as text; open it in",
    png().replace(b"\r\n", b"\n", 1): "this is PNG whose line breaks were changed; copy it in",
    b"\r\n" + jpeg(): "not a readable image: 2 other bytes precede it; send its bytes only",
    b"\n" + jpeg(): "not a readable image: 1 other byte precedes it; send its bytes only",
    b"\xef\xbb\xbf" + png(): "not a readable image: 3 other bytes precede it",
    b"hello world, this is not an image": "not a readable image; send a whole JPEG",
    b"\xff\xd8\xff": "the image has only 3 bytes; send a whole JPEG",
    b"x": "the image has only 1 byte; send a whole JPEG",
}


@pytest.mark.parametrize(("data", "words"), CASES.items(), ids=[*CASES.values()])
def test_bytes_are_named(data: bytes, words: str) -> None:
    assert refusal(data).startswith(words)


def test_a_refusal_says_one_thing_to_do() -> None:
    for data, words in CASES.items():
        assert refusal(data).count("; ") == 1, words


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_few_bytes_of_an_image_are_counted(format: str) -> None:
    for end in range(2, 11):
        assert refusal(encoded(format)[:end]).startswith(f"the image has only {end} bytes; ")


def test_heic_is_named_where_it_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = tuple(name for name in image_files.formats() if name != "HEIF")
    monkeypatch.setattr(image_files, "formats", lambda: formats)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    assert refusal(data) == (
        "this is HEIC, which this service does not decode without the extra `images`; "
        "send a whole JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"
    )


def test_what_cannot_be_shown_is_not_called_damaged() -> None:
    buffer = io.BytesIO()
    Image.new("F", (32, 32), 200).save(buffer, "TIFF")
    assert refusal(buffer.getvalue()).startswith("the image has floating-point values from 200 to")
