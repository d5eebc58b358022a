"""JPEGs and TIFFs that Pillow does not read are named by what is rare about them."""

from __future__ import annotations

import pytest

from models.preprocess import CIFAR
from service.errors import UndecodableImage
from service.inference.decoding import decode_image
from service.inference.rare_kinds import rare_jpeg, rare_tiff
from tests.support.hostile.formats import frame, grey_tiff, jpeg, segment, short


def refusal(data: bytes) -> str:
    with pytest.raises(UndecodableImage, match=r"\A[^\n]+\Z") as caught:
        decode_image(data, CIFAR, 10**6)
    return str(caught.value)


@pytest.mark.parametrize(
    ("marker", "change", "words"),
    [
        (0xC0, [(0, 12)], "a JPEG with 12 bits a sample"),
        (0xC3, [(0, 16)], "a lossless JPEG"),
        (0xF7, [], "JPEG-LS"),
        (0xC5, [], "a hierarchical JPEG"),
        (0xC0, [(5, 2)], "a JPEG with 2 colours"),
        (0xC0, [], None),
        (0xC2, [], None),
    ],
)
def test_a_jpeg_is_named_by_its_frame(
    marker: int, change: list[tuple[int, int]], words: str | None
) -> None:
    # The thumbnail of another kind within a segment does not count.
    data = frame(jpeg(segment(0xE5, b"\xff\xc3\0\x11\x10" + bytes(20))), marker, change)
    assert rare_jpeg(data) == words


def test_a_refusal_says_how_to_save_a_jpeg() -> None:
    assert refusal(frame(jpeg(), 0xC0, [(0, 12)])) == (
        "this is a JPEG with 12 bits a sample, which this service does not decode; save it as "
        "baseline or progressive JPEG with 8 bits a sample"
    )


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            [short(258, 32, 32, 32), short(262, 2), short(277, 3), short(339, 3, 3, 3)],
            "a TIFF in RGB with 3 floating-point samples a pixel, of 32 bits",
        ),
        (
            [short(258, 16), short(339, 3)],
            "a TIFF in grey with 1 floating-point sample a pixel, of 16 bits",
        ),
        (
            [short(258, 8, 8, 8), short(277, 3), short(284, 2)],
            "a TIFF in grey with 3 unsigned integer samples a pixel, of 8 bits in separate planes",
        ),
        ([short(258, 16), short(262, 3)], "a TIFF in palette with 1 unsigned integer sample"),
        ([short(259, 34887)], "a TIFF that is compressed with LERC"),
        ([short(259, 50002)], "a TIFF that is compressed with JPEG XL"),
        ([short(259, 12345)], "a TIFF that is compressed with compression 12345"),
    ],
)
def test_a_tiff_is_named_by_its_samples_or_compression(tags: list[object], words: str) -> None:
    assert refusal(grey_tiff(16, 16, *tags, data=bytes(4096))).startswith(f"this is {words}")  # type: ignore[arg-type]


@pytest.mark.parametrize("end", range(10, 130, 7))
def test_what_is_cut_has_no_such_name(end: int) -> None:
    data = grey_tiff(16, 16, short(258, 32, 32, 32), short(277, 3), data=bytes(64))
    found = rare_tiff(data[:end])
    assert found is None or end > 10 + 9 * 12
    assert rare_jpeg(frame(jpeg(), 0xC3, [])[: min(end, 20)]) is None
