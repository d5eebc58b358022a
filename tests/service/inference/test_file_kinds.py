"""What files are named, and which of them are images."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from service.inference.file_kinds import kind_of


@pytest.mark.parametrize(
    ("format", "name"),
    [("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"),
     ("WEBP", "WebP"), ("AVIF", "AVIF"), ("ICO", "ICO"), ("JPEG2000", "JPEG 2000"),
     ("PPM", "a portable pixmap (PNM)"), ("DDS", "DDS"), ("PDF", "a PDF document")],
)  # fmt: skip
def test_files_that_pillow_writes_are_named(format: str, name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format)
    kind = kind_of(file.getvalue())
    assert kind is not None
    assert kind.name == name
    assert kind.is_image == (format != "PDF")


@pytest.mark.parametrize(
    ("start", "name", "is_image"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", True),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafheic", "HEIC", True),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF", True),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "a video", False),
        (b"\xff\x0a\0\0", "JPEG XL", True),
        (b"  \n<!DOCTYPE html><html>", "an HTML page", False),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>", "SVG", True),
        (b"<?xml version='1.0'?><Error>", "an XML document", False),
        (b'\xef\xbb\xbf{"image": 1}', "JSON", False),
        (b"/9j/4AAQSkZJRg", "base64 text", False),
        (b"data:image/png;base64,iVBO", "a data URL", False),
        (bytes(128) + b"DICM", "DICOM", True),
    ],
)
def test_a_kind_is_told_by_its_first_bytes(start: bytes, name: str, is_image: bool) -> None:
    assert kind_of(start) == (name, is_image)


@pytest.mark.parametrize("data", [b"", b"x", b"hello", b"image=abc", bytes(200)])
def test_other_bytes_have_no_kind(data: bytes) -> None:
    assert kind_of(data) is None
