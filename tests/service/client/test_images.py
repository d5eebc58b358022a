from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import image_files
from service.client import (
    UnreadableImage,
)
from service.client.images import SUFFIXES
from service.client.images import encoded as encode
from tests.conftest import encoded

IMAGE = encoded()


def test_an_image_is_given_in_many_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGE)
    picture = Image.open(io.BytesIO(IMAGE))
    pixels = np.asarray(picture)
    with path.open("rb") as file:
        assert encode(file) == IMAGE
    for same in (path, str(path), IMAGE, bytearray(IMAGE), memoryview(IMAGE), io.BytesIO(IMAGE)):
        assert encode(same) == IMAGE
    for made in (picture, pixels, pixels[:, ::-1][:, ::-1]):
        again = Image.open(io.BytesIO(encode(made)))
        assert np.array_equal(np.asarray(again), pixels)
    assert Image.open(io.BytesIO(encode(picture.convert("CMYK")))).mode == "RGB"


def test_a_folder_has_the_same_images_as_for_training() -> None:
    assert image_files.SUFFIXES == SUFFIXES


def test_a_picture_is_sent_upright() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(encode(Image.open(buffer)))).size == (20, 40)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((3, 5), "L"), ((3, 5, 1), "L"), ((3, 5, 3), "RGB"), ((3, 5, 4), "RGBA"), ((3, 3), "L")],
)
def test_an_array_has_one_three_or_four_channels(shape: tuple[int, ...], mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    sent = Image.open(io.BytesIO(encode(pixels)))
    assert (sent.mode, sent.size) == (mode, (shape[1], 3))
    assert np.array_equal(np.asarray(sent).reshape(shape), pixels)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("/nowhere.png", "/nowhere.png: No such file"),
        ("/", "/: Is a directory"),
        ("a\0b", "null"),
        (np.zeros((4, 4, 2), np.uint8), r"1, 3 .RGB. or 4 .RGBA. channels, not uint8 \[4, 4, 2\]"),
        (np.zeros((4, 4, 3), np.float32), "not float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
        (Image.new("RGB", (0, 3)), "cannot be read"),
        (Image.open(io.BytesIO(IMAGE[:300])), "cannot be read"),
    ],
)
def test_an_image_that_is_none_is_told_before_it_is_sent(image: Any, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        encode(image)


@pytest.mark.parametrize(("image", "words"), [(3, "not int"), (io.StringIO("x"), "mode 'rb'")])
def test_what_is_no_image_at_all_is_a_mistake_of_the_program(image: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        encode(image)
