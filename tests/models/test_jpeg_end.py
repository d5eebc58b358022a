"""A JPEG without its end is whole if all of its pixels are there, and refused otherwise."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models import image_files, jpeg_end
from models.preprocess import CIFAR, decode_at_scale, upright_rgb


def photograph(size: tuple[int, int] = (203, 149), seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, 8, (size[1], size[0], 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(format: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    photograph().convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def pixels(data: bytes, *, scaled: bool = False) -> NDArray[np.uint8]:
    with image_files.opened(data) as image:
        if scaled:
            decode_at_scale(image, CIFAR)
        return np.asarray(upright_rgb(image))


KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "full colour": {"subsampling": 0},
    "best": {"quality": 100},
    "own tables": {"optimize": True},
    "restart intervals": {"restart_marker_blocks": 5},
    "rows of restart intervals": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "several pictures": {"format": "MPO"},
}
EACH_KIND = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


@EACH_KIND
@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"\xff",
        bytes(500),
        b"\xff" * 9,
        b"\xff" + bytes(9),
        b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n",
        b"\xff\xd9\xff\xd9",
        b"\xff\xd9" + bytes(100),
    ],
    ids=["nothing", "half", "zeros", "ones", "half and zeros", "a border", "two", "padded"],
)
def test_whatever_stands_for_the_end_the_pixels_are_the_same(
    options: dict[str, Any], end: bytes
) -> None:
    whole = saved(**options)
    assert whole.endswith(b"\xff\xd9")
    for scaled in (False, True):
        expected = pixels(whole, scaled=scaled)
        assert np.array_equal(pixels(whole[:-2] + end, scaled=scaled), expected)


def test_a_frame_of_a_stream_is_whole_before_the_next_one() -> None:
    whole = saved()
    assert np.array_equal(pixels(whole[:-2] + whole), pixels(whole))


@EACH_KIND
def test_a_file_cut_within_its_pixels_is_refused(options: dict[str, Any]) -> None:
    """Wherever it is cut, also between restart intervals and between scans."""
    whole = saved(**options)
    scans = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)]
    restarts = [
        at for at in range(len(whole)) if whole[at] == 0xFF and 0xD0 <= whole[at + 1] < 0xD8
    ]
    ends = {*range(len(whole) - 20, len(whole) - 2), *range(scans[0] + 30, len(whole) - 2, 397)}
    ends |= {at + more for at in (*scans[1:], *restarts[::5]) for more in (0, 1, 2)}
    for end in ends:
        with pytest.raises(OSError, match=r"truncated|broken"):
            pixels(whole[:end])


@pytest.mark.parametrize("tail", [bytes(9000), b"\xff" * 9000], ids=["zeros", "ones"])
def test_an_upload_whose_rest_is_filled_up_is_refused(tail: bytes) -> None:
    whole = saved()
    with pytest.raises(OSError, match=r"truncated|broken"):
        pixels(whole[: len(whole) // 2] + tail[: len(whole) // 2])


def test_a_missing_scan_of_one_colour_is_noticed() -> None:
    """Without its last one, libjpeg would show it in few colours or blurred."""
    whole = saved(progressive=True)
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(OSError, match=r"truncated|broken"):
        pixels(whole[:last])


def test_a_large_file_is_not_decoded_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = saved()[:-2]
    monkeypatch.setattr(jpeg_end, "MOST_PIXELS", 203 * 149)
    assert pixels(cut).shape == (149, 203, 3)
    monkeypatch.setattr(jpeg_end, "MOST_PIXELS", 203 * 149 - 1)
    with pytest.raises(OSError, match="truncated"):
        pixels(cut)


def test_a_second_picture_may_be_cut() -> None:
    """As in photographs with a gain map behind them."""
    buffer = io.BytesIO()
    photograph().save(buffer, "MPO", save_all=True, append_images=[photograph(seed=1)])
    several = buffer.getvalue()
    second = several.index(b"\xff\xd9") + 2
    expected = pixels(several)
    for end in (second, second + 2, second + 500, len(several) - 2):
        assert np.array_equal(pixels(several[:end]), expected)


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 5}], ids=["none", "others"])
def test_a_mark_between_intervals_that_does_not_belong_there_is_no_end(
    options: dict[str, Any],
) -> None:
    """libjpeg would make up the rest, whatever follows."""
    whole = saved(**options)
    half = whole[: len(whole) * 2 // 3]
    garbage = half[-300:-100].replace(b"\xff", b"") + b"\xff\x42"  # Pillow does not accept its end.
    for mark in range(0xD0, 0xD8):
        with pytest.raises(OSError, match=r"truncated|broken"):
            pixels(half + b"\x12\x34\xff" + bytes([mark]) + garbage)


def test_a_file_of_many_scans_is_not_decoded_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = saved(progressive=True)[:-2]
    passes = 203 * 149 * cut.count(b"\xff\xda")
    monkeypatch.setattr(jpeg_end, "MOST_PIXELS_OF_SCANS", passes)
    assert pixels(cut).shape == (149, 203, 3)
    monkeypatch.setattr(jpeg_end, "MOST_PIXELS_OF_SCANS", passes - 1)
    with pytest.raises(OSError, match="truncated"):
        pixels(cut)
