from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import itertools
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from models import preprocess
from models.preprocess import CIFAR, IMAGENET, InputSpec, upright_rgb
from service.errors import QueueFull, TooLarge, UndecodableImage
from service.inference import decoding
from service.inference.decoding import Decoder, decode_image, prepare
from service.inference.lane import Lane
from service.inference.tasks import Pixels
from tests.conftest import encoded
from tests.support import kinds
from tests.support.hostile import formats

LIMIT = 1_000_000


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(side: int = 32) -> Image.Image:
    x = np.linspace(0, 255, side, dtype=np.uint8)
    red, green = np.meshgrid(x, x)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 40)], axis=2))


def pixels_of(data: bytes) -> Pixels:
    return decode_image(data, CIFAR, LIMIT).pixels


def test_pixels_are_those_of_the_image() -> None:
    assert np.array_equal(pixels_of(saved(gradient(), "PNG")), np.asarray(gradient()))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(32, 32), (500, 375), (31, 200)])
def test_every_format_gives_the_specs_size(format: str, size: tuple[int, int]) -> None:
    pixels = decode_image(encoded(format, size), IMAGENET, LIMIT).pixels
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, format: str) -> None:
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpositions
    upright = gradient()
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(stored, format, exif=exif, **options)
    assert np.array_equal(pixels_of(data), np.asarray(upright))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_hide_the_image(format: str) -> None:
    data = saved(gradient(), format, exif=b"Exif\x00\x00" + b"\xff" * 40)
    assert pixels_of(data).shape == (32, 32, 3)


def test_grey_becomes_three_equal_channels() -> None:
    pixels = pixels_of(saved(gradient().convert("L"), "PNG"))
    assert np.array_equal(pixels[..., 0], np.asarray(gradient().convert("L")))
    assert (pixels == pixels[..., :1]).all()


def test_bilevel_is_black_and_white() -> None:
    assert set(np.unique(pixels_of(saved(gradient().convert("1"), "PNG")))) == {0, 255}


def half_transparent() -> Image.Image:
    image = gradient().convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (0, 0, 16, 32))
    image.putalpha(alpha)
    return image


def palette_with_transparency() -> Image.Image:
    return half_transparent().quantize(256)


def grey_with_alpha() -> Image.Image:
    return half_transparent().convert("LA")


@pytest.mark.parametrize(
    "make", [half_transparent, palette_with_transparency, grey_with_alpha], ids=lambda f: f.__name__
)
def test_transparency_is_laid_on_white(make: Callable[[], Image.Image]) -> None:
    pixels = pixels_of(saved(make(), "PNG"))
    assert (pixels[:, 16:] == 255).all()
    assert not (pixels[:, :16] == 255).all()


def test_a_transparent_colour_of_an_rgb_png_is_laid_on_white() -> None:
    image = Image.new("RGB", (32, 32), (1, 2, 3))
    image.paste((9, 9, 9), (0, 0, 32, 8))
    pixels = pixels_of(saved(image, "PNG", transparency=(1, 2, 3)))
    assert (pixels[:8] == 9).all()
    assert (pixels[8:] == 255).all()


def test_a_palette_gives_its_colours() -> None:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert (pixels_of(saved(image, "PNG")) == (200, 100, 50)).all()


def test_cmyk_jpegs_have_natural_colours() -> None:
    red = Image.new("RGB", (32, 32), (220, 30, 30)).convert("CMYK")
    mean = pixels_of(saved(red, "JPEG", quality=95)).mean((0, 1))
    assert mean == pytest.approx((220, 30, 30), abs=12)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_keep_their_upper_8(format: str) -> None:
    values = np.linspace(0, 65535, 32 * 32, dtype=np.uint16).reshape(32, 32)
    pixels = pixels_of(saved(Image.fromarray(values), format))
    assert np.array_equal(pixels[..., 0], (values >> 8).astype(np.uint8))


def test_a_gif_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels_of(data) == (255, 0, 0)).all()


def test_rgb_is_passed_on_as_it_is() -> None:
    image = gradient()
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_no_truncated_file_gives_anything_but_a_clear_refusal(format: str) -> None:
    whole = encoded(format, (64, 48))
    refusals = []
    for end in range(0, len(whole), max(1, len(whole) // 40)):
        try:
            decode_image(whole[:end], CIFAR, LIMIT)
        except UndecodableImage as error:
            refusals.append(str(error))
    assert len(refusals) >= 20
    for refusal in refusals:
        assert "send a whole" in refusal
        assert "\n" not in refusal


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\xff\xd8\xff",
        b"BM" + b"\xff" * 60,
        b"II*\x00\x08\x00\x00\x00\xff\xff",
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        pixels_of(data)


def test_formats_that_are_not_offered_are_refused() -> None:
    with pytest.raises(UndecodableImage):
        pixels_of(saved(gradient(), "PPM"))


def test_the_pixel_limit_is_checked_without_decoding() -> None:
    data = saved(Image.new("1", (2000, 2000)), "PNG")
    with pytest.raises(TooLarge, match="2000 x 2000 pixels; the limit is 1000000"):
        pixels_of(data)


@pytest.mark.parametrize("pillows_limit", [None, 89_478_485])
def test_an_absurd_size_is_refused_whatever_pillows_own_limit(
    pillows_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    header = encoded("BMP")
    absurd = header[:18] + (2**20).to_bytes(4, "little") * 2 + header[26:]
    with pytest.raises(TooLarge):
        pixels_of(absurd)


def test_slivers_that_would_grow_are_refused() -> None:
    with pytest.raises(TooLarge, match="differ too much"):
        decode_image(saved(Image.new("1", (1, 60_000)), "PNG"), IMAGENET, 50_000_000)


def test_the_decoder_gives_the_same_and_says_how_long_it_took() -> None:
    decoder = Decoder(2, LIMIT)
    data = saved(gradient(), "PNG")
    decoded = asyncio.run(decoder.decode(data, CIFAR))
    decoder.close()
    assert np.array_equal(decoded.pixels, pixels_of(data))
    assert decoded.ended > decoded.began


def test_decoding_never_uses_more_threads_than_it_may() -> None:
    decoder = Decoder(2, LIMIT)
    data = encoded("PNG", (300, 300))

    async def many() -> None:
        await asyncio.gather(*(decoder.decode(data, IMAGENET) for _ in range(20)))

    asyncio.run(many())
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]
    decoder.close()
    assert 1 <= len(names) <= 2


def test_resizing_after_orientation_equals_resizing_the_upright_image() -> None:
    upright = Image.open(io.BytesIO(encoded("PNG", (300, 200))))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (300, 200)
    assert np.array_equal(
        decode_image(data, IMAGENET, LIMIT).pixels,
        decode_image(saved(upright, "PNG"), IMAGENET, LIMIT).pixels,
    )


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_conversion_in_bands_equals_conversion_at_once(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = half_transparent().resize((37, 53))
    if mode == "P":
        image = image.quantize(64)
    elif mode == "I;16":
        image = Image.fromarray(np.arange(53 * 37, dtype=np.uint16).reshape(53, 37) * 33)
    else:
        image = image.convert(mode)
    at_once = upright_rgb(image)
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 37 * 10)
    in_bands = upright_rgb(image)
    assert in_bands.size == (37, 53)
    assert np.array_equal(np.asarray(in_bands), np.asarray(at_once))


@contextlib.asynccontextmanager
async def occupied(lane: Lane) -> AsyncIterator[None]:
    """The lane's only thread has other work."""
    begun, released = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        released.wait()

    working = asyncio.ensure_future(lane.run(work))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        released.set()
        await working


def test_small_images_do_not_wait_for_large_ones() -> None:
    """However many there are, and even if there is a single thread for the small ones."""

    async def scene() -> None:
        decoder = Decoder(1, 40_000)
        large, small = encoded("BMP", (150, 150)), encoded("BMP", (70, 70))
        async with occupied(decoder._large):
            waiting = [asyncio.ensure_future(decoder.decode(large, CIFAR)) for _ in range(8)]
            for _ in range(8):
                decoded = await asyncio.wait_for(decoder.decode(small, CIFAR), 60)
                assert decoded.pixels.shape == (32, 32, 3)
            assert not any(each.done() for each in waiting)
        for each in waiting:
            assert (await each).pixels.shape == (32, 32, 3)
        decoder.close()

    asyncio.run(scene())


def test_a_jpeg_without_its_end_counts_as_large_at_a_quarter_of_the_pixels() -> None:
    """It is decoded several times."""
    whole = encoded("JPEG", (100, 100))
    for data, cost in ((whole, 1), (whole[:-2], 4)):
        decode_image(data, CIFAR, 10**6, cost * 10_000)
        with pytest.raises(decoding._LargeImage):
            decode_image(data, CIFAR, 10**6, cost * 10_000 - 1)


def test_only_so_many_large_images_wait() -> None:
    """Else they would take all places of the queue, while the engine has nothing to do."""

    async def scene() -> None:
        decoder = Decoder(1, 40_000)
        large, small = encoded("BMP", (150, 150)), encoded("BMP", (70, 70))
        count = decoding.LARGE_WAITING
        async with occupied(decoder._large):
            tasks = [asyncio.ensure_future(decoder.decode(large, CIFAR)) for _ in range(count + 5)]
            await asyncio.sleep(0)
            await decoder.decode(small, CIFAR)  # Behind the first look at each of them.
            await asyncio.sleep(0)
            refused = [task for task in tasks if task.done()]
            assert len(refused) == 5
            for task in refused:
                with pytest.raises(QueueFull, match="32 images of more than 10000 pixels"):
                    task.result()
            tasks[0].cancel()
            await asyncio.sleep(0)
            again = asyncio.ensure_future(decoder.decode(large, CIFAR))
            await asyncio.sleep(0)
            await decoder.decode(small, CIFAR)
            await asyncio.sleep(0)
            assert not again.done(), "who left makes room"
        assert (await again).pixels.shape == (32, 32, 3)
        await asyncio.wait(tasks)
        assert decoder._large_waiting == 0
        decoder.close()

    asyncio.run(scene())


def test_large_images_are_decoded_one_at_a_time() -> None:
    async def scene() -> None:
        decoder = Decoder(4, 40_000)
        large = encoded("BMP", (150, 150))
        decoded = await asyncio.gather(*(decoder.decode(large, CIFAR) for _ in range(6)))
        decoder.close()
        spans = sorted((each.began, each.ended) for each in decoded)
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))

    asyncio.run(scene())


def test_who_leaves_while_waiting_for_a_thread_leaves_nothing_there() -> None:
    async def scene() -> None:
        decoder = Decoder(1, 40_000)
        large, small = encoded("BMP", (150, 150)), encoded("BMP", (70, 70))
        async with occupied(decoder._large):
            late = asyncio.ensure_future(decoder.decode(large, CIFAR))
            await decoder.decode(small, CIFAR)  # Behind the first look at the large one.
            async with occupied(decoder._lane):
                left = asyncio.ensure_future(decoder.decode(small, CIFAR))
                await asyncio.sleep(0)
                for each in (late, left):
                    each.cancel()
                done, _ = await asyncio.wait([late, left], timeout=10)
                assert done == {late, left}, "at once, though the threads go on"
                for lane in (decoder._lane, decoder._large):
                    assert lane._pool._work_queue.empty()
        for image in (large, small):
            assert (await decoder.decode(image, CIFAR)).pixels.shape == (32, 32, 3)
        decoder.close()

    asyncio.run(scene())


def test_who_leaves_while_a_bad_image_is_decoded_leaves_no_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        decoder = Decoder(1, 40_000)
        bad = encoded("BMP", (100, 100))[:-5000]
        late = asyncio.ensure_future(decoder.decode(bad, CIFAR))
        await asyncio.sleep(0)  # It has begun.
        late.cancel()
        assert (await decoder.decode(encoded("BMP", (70, 70)), CIFAR)).pixels.shape == (32, 32, 3)
        decoder.close()

    asyncio.run(scene())
    gc.collect()
    assert not caplog.records


def test_a_webp_may_have_half_the_pixels() -> None:
    data = encoded("WEBP", (300, 200))
    assert decode_image(data, CIFAR, 2 * 300 * 200).pixels.shape == (32, 32, 3)
    with pytest.raises(TooLarge, match="300 x 200 pixels; the limit is 59999"):
        decode_image(data, CIFAR, 2 * 300 * 200 - 1)


def test_prepared_libraries_say_nothing_of_what_they_find_odd(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prepare()
    fax = bytearray(saved(gradient().convert("1"), "TIFF", compression="group4"))
    fax[8:20] = bytes(range(100, 112))
    with contextlib.suppress(UndecodableImage):
        pixels_of(bytes(fax))
    cut = saved(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09")
    assert pixels_of(cut).shape == (32, 32, 3)
    for samples in (8, 259):
        odd = formats.grey_tiff(32, 32, formats.short(277, samples), data=bytes(1024))
        with pytest.raises(UndecodableImage):
            pixels_of(odd)
    assert capfd.readouterr().err == ""
    assert not caplog.records


def small_png(kind: bytes | None = None) -> bytes:
    """A PNG of 32 x 32 pixels; with a chunk of `kind` that inflates to a megabyte."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    data = buffer.getvalue()
    if kind is None:
        return data
    head = b"key\0\1\0en\0\0" if kind == b"iTXt" else b"key\0\0"
    content = head + zlib.compress(bytes(2**20 - 10), 9)
    check = zlib.crc32(kind + content)
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)
    return data[:33] + chunk + data[33:]


def many_scans(count: int) -> bytes:
    """A JPEG whose header is followed by so many scans; only the first is whole."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "JPEG")
    data = buffer.getvalue()
    scan = data[data.index(b"\xff\xda") : -2]
    return data[:-2] + scan * (count - 1) + data[-2:]


@pytest.mark.parametrize(
    ("data", "on_the_loop"),
    [
        (small_png(), True),
        (small_png(b"zTXt"), False),
        (small_png(b"iTXt"), False),
        (small_png(b"iCCP"), False),
        (many_scans(12), True),
        (many_scans(13), False),
    ],
    ids=["PNG", "zTXt", "iTXt", "iCCP", "12 scans", "13 scans"],
)
def test_only_what_is_quick_is_decoded_on_the_event_loop(
    data: bytes, on_the_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(data) < decoding.TINY_BYTES
    monkeypatch.setattr(decoding, "decode_image", lambda *arguments, exact: arguments)
    decoder = Decoder(1, LIMIT)
    assert (decoder.decode_tiny(data, CIFAR) is not None) == on_the_loop
    decoder.close()


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "spec",
    [kinds.GREY, kinds.SQUASHED, kinds.LETTERBOXED, kinds.RGBA],
    ids=["grey", "squash", "letterbox and bgr", "rgba"],
)
def test_pixels_have_the_shape_and_the_channels_of_the_model(spec: InputSpec, format: str) -> None:
    data = encoded(format, (70, 50), "RGB" if format == "JPEG" else "RGBA")
    decoded = decode_image(data, spec, LIMIT)
    assert decoded.pixels.shape == spec.shape
    assert np.array_equal(decoded.pixels, kinds.pixels(data, spec))
    assert decoded.size == (70, 50)


def test_only_rgba_keeps_transparency() -> None:
    data = saved(half_transparent(), "PNG")
    alpha = decode_image(data, kinds.RGBA, LIMIT).pixels[:, :, 3]
    assert alpha.min() < 255
    opaque = decode_image(saved(gradient(), "PNG"), kinds.RGBA, LIMIT).pixels
    assert (opaque[:, :, 3] == 255).all()


def test_a_sliver_grows_no_more_than_its_model_resizes_it() -> None:
    """Where the model squashes or fits images into its box, none is too long."""
    sliver = saved(Image.new("RGB", (1, 5000)), "PNG")
    for spec in (kinds.SQUASHED, kinds.LETTERBOXED):
        assert decode_image(sliver, spec, LIMIT).pixels.shape == spec.shape
    wide = InputSpec(size=(8, 512), resize=(8, 512), mean=CIFAR.mean, std=CIFAR.std)
    with pytest.raises(TooLarge, match="sides"):
        decode_image(sliver, wide, LIMIT)


def test_a_limit_below_the_models_own_box_refuses_no_small_image() -> None:
    small = encoded(size=(32, 32))
    assert decode_image(small, IMAGENET, 32 * 32).pixels.shape == IMAGENET.shape


def test_a_camera_file_of_several_pictures_is_decoded_at_scale() -> None:
    large = gradient(64).resize((1600, 1200))
    several = saved(large, "MPO", save_all=True, append_images=[gradient(64)], quality=90)
    one = saved(large, "JPEG", quality=90)
    assert Image.open(io.BytesIO(several)).format == "MPO"
    ours, plain = (decode_image(data, CIFAR, 10**7) for data in (several, one))
    assert ours.size == plain.size == (200, 150)
    assert np.array_equal(ours.pixels, plain.pixels)


def test_an_image_for_a_large_model_is_not_decoded_on_the_event_loop() -> None:
    decoder = Decoder(1, LIMIT)
    try:
        small = encoded(size=(16, 16))
        assert decoder.decode_tiny(small, kinds.GREY) is not None
        high = InputSpec(size=(65, 8), resize=(65, 8), mean=CIFAR.mean, std=CIFAR.std)
        assert decoder.decode_tiny(small, high) is None
    finally:
        decoder.close()
