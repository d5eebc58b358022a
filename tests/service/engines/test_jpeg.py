"""A decoder that gives PIL's pixels stands for nvJPEG."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures
from torch import Tensor

from models.preprocess import CHANNELS, CIFAR, IMAGENET, Channels, Crop, InputSpec
from service.engines import jpeg
from service.engines.jpeg import JpegDecoder, of_torchvision
from service.engines.jpeg_check import by_pil, deviation, samples
from service.errors import UndecodableImage
from service.inference.jpeg_header import of_plain_file
from service.inference.tasks import JpegFile
from tests.support.device_decoder import CudaDecoder, decode_files
from tests.support.fake_cuda import fake_cuda
from tests.support.hostile.formats import picture, saved

POISON = "CUDA error: an illegal memory access was encountered"


def file(size: tuple[int, int] = (60, 40), spec: InputSpec = IMAGENET, seed: int = 0) -> JpegFile:
    """A different picture for each seed."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Pictures.fromarray(colours).resize(size, Pictures.Resampling.BICUBIC)
    found = of_plain_file(saved(image, "JPEG"), spec, 10**8)
    assert found is not None
    return found


def damaged() -> JpegFile:
    """One that neither the device nor PIL decodes."""
    return JpegFile(np.frombuffer(b"\xff\xd8\xff" + bytes(100), np.uint8), 60, 40)


def is_near(found: object, expected: NDArray[np.uint8]) -> bool:
    difference = np.abs(np.asarray(found).astype(int) - expected)
    return bool(difference.max() <= 1)


class Counted:
    """The stand-in, which notes how many files it is given and what it `fails` with."""

    def __init__(self, fails: Callable[[list[Tensor]], Exception | None] = lambda _: None) -> None:
        self.calls: list[int] = []
        self._fails = fails

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.calls.append(len(files))
        if (error := self._fails(files)) is not None:
            raise error
        return decode_files(files)


SPECS = {
    "imagenet": IMAGENET,
    "cifar": CIFAR,
    "bicubic": replace(IMAGENET, interpolation="bicubic"),
    "nearest": replace(IMAGENET, interpolation="nearest"),
    "model zoo's": replace(IMAGENET, crop="center_floor"),
    "Flax's": replace(IMAGENET, crop="before_resize", interpolation="bicubic"),
    "whole": replace(IMAGENET, resize=224),
}
SIZES = [(500, 375), (375, 500), (257, 1000), (256, 256), (224, 224), (31, 200), (1201, 907)]


@pytest.mark.parametrize("name", SPECS)
def test_images_are_resized_and_cropped_as_pil_does(name: str) -> None:
    spec = SPECS[name]
    files = [found for size in SIZES if (found := file(size, IMAGENET))]
    images = JpegDecoder(spec, "cpu", decode_files).decode(files)
    for each, image in zip(files, images, strict=True):
        assert isinstance(image, Tensor)
        assert (image.shape, image.dtype) == ((spec.size, spec.size, 3), torch.uint8)
        assert is_near(image, by_pil(each, spec)), (each.width, each.height)


def test_bicubic_stays_within_the_range() -> None:
    sharp = Pictures.new("RGB", (100, 100), "white")
    sharp.paste((0, 0, 0), (0, 0, 50, 100))
    given = of_plain_file(saved(sharp, "JPEG"), IMAGENET, 10**6)
    assert given is not None
    spec = SPECS["bicubic"]
    (image,) = JpegDecoder(spec, "cpu", decode_files).decode([given])
    assert is_near(image, by_pil(given, spec))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """In the place of torchvision, which loads only beside the torch that it was built for; what
    its decoder is called with."""
    calls: list[tuple[object, ...]] = []

    def decode_jpeg(files: list[Tensor], mode: str, device: str) -> list[Tensor]:
        calls.append((len(files), mode, device))
        return decode_files(files)

    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    stand_in = ModuleType("torchvision.io")
    monkeypatch.setattr(stand_in, "decode_jpeg", decode_jpeg, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision.io", stand_in)
    monkeypatch.setattr(jpeg, "_devices", set())
    return calls


def test_torchvision_decodes_a_whole_batch_to_rgb(torchvision: list[tuple[object, ...]]) -> None:
    grey = of_plain_file(saved(picture(mode="L"), "JPEG"), IMAGENET, 10**6)
    assert grey is not None
    files = [file((300, 200)), file((30, 50), seed=1), grey]
    decoder = JpegDecoder(IMAGENET, "cpu", of_torchvision("cpu"))
    for each, image in zip(files, decoder.decode(files), strict=True):
        assert isinstance(image, Tensor)
        assert is_near(image, by_pil(each, IMAGENET))
    assert torchvision == [(3, "RGB", "cpu")]


def races(in_flight: int = 2, *, waits: bool = True) -> list[str]:
    """What races there are if batches are decoded, and each is copied later by another stream.

    Without `waits`, the decoder's stream is not waited for.
    """
    expected = [by_pil(file((60, 40), seed=seed), CIFAR) for seed in range(4)]
    with fake_cuda() as fake:
        decoder = JpegDecoder(CIFAR, "cuda:0", CudaDecoder("cuda:0"), in_flight)
        assert decoder._stream is not None
        if not waits:
            decoder._stream.synchronize = lambda: None  # type: ignore[method-assign]
        copying = torch.cuda.Stream(torch.device("cuda:0"))  # type: ignore[no-untyped-call]
        lanes = [torch.empty((4, 32, 32, 3), dtype=torch.uint8, device="cuda:0") for _ in range(2)]
        torch.cuda.synchronize()
        for number in range(12):
            images = decoder.decode([file((60, 40), seed=seed) for seed in range(4)])
            with torch.cuda.stream(copying):
                lane = lanes[number % 2]
                for row, image in enumerate(images):
                    assert isinstance(image, Tensor)
                    lane[row].copy_(image)
            del images, image
            if waits and number % 2:  # Two batches are in flight until then.
                copying.synchronize()
                for found in lanes:
                    for row, pixels in enumerate(found.cpu().numpy()):
                        assert is_near(pixels, expected[row])
        return [str(race) for race in fake.races]


def test_streams_are_in_order() -> None:
    assert not races()
    # Images that are not kept are overwritten while the engine may still copy them; planes for
    # whose resizing nobody waits, while it may still read them.
    assert races(in_flight=0)
    assert races(waits=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nvjpeg_gives_almost_pils_pixels() -> None:
    decoder = JpegDecoder(IMAGENET, "cuda:0", of_torchvision("cuda:0"), in_flight=2)
    files = samples()
    for _ in range(3):
        for each, image in zip(files, decoder.attempt(files).cpu().numpy(), strict=True):
            assert not deviation(image, by_pil(each, IMAGENET))
    mixed = decoder.decode([*files, damaged()])
    assert [isinstance(image, Tensor) for image in mixed] == [True] * len(files) + [False]


def test_without_a_device_pil_decodes() -> None:
    decoder = JpegDecoder(IMAGENET, "cpu")
    given = file((500, 375))
    image, refusal = decoder.decode([given, damaged()])
    assert not decoder.on_device
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, by_pil(given, IMAGENET))
    assert isinstance(refusal, UndecodableImage)


def test_a_batch_of_many_pixels_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "PIXELS_AT_ONCE", 3 * 60 * 40)
    counted = Counted()
    files = [file(seed=seed) for seed in range(7)]
    files[5] = file((300, 200))  # More alone than all others together.
    images = JpegDecoder(IMAGENET, "cpu", counted).decode(files)
    assert counted.calls == [3, 2, 1, 1]
    for each, image in zip(files, images, strict=True):
        assert is_near(image, by_pil(each, IMAGENET))
    assert JpegDecoder(IMAGENET, "cpu", counted).decode([]) == []


def test_a_damaged_file_fails_alone_and_is_found_by_halves() -> None:
    counted = Counted()
    files = [file(seed=seed) for seed in range(64)]
    files[41] = damaged()
    images = JpegDecoder(IMAGENET, "cpu", counted).decode(files)
    assert isinstance(images[41], UndecodableImage)
    assert "not a readable image" in str(images[41])
    for at, (image, each) in enumerate(zip(images, files, strict=True)):
        assert at == 41 or (isinstance(image, Tensor) and is_near(image, by_pil(each, IMAGENET)))
    assert len(counted.calls) == 13
    assert counted.calls[0] == 64


def test_what_only_the_device_does_not_decode_is_decoded_by_pil_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = Counted(lambda files: RuntimeError("Failed to decode batch: 6\nadvice"))
    files = [file(seed=seed) for seed in range(4)]
    images = JpegDecoder(IMAGENET, "cpu", counted).decode([*files, damaged()])
    for each, image in zip(files, images, strict=False):
        assert isinstance(image, np.ndarray)
        assert is_near(image, by_pil(each, IMAGENET))
    assert isinstance(images[-1], UndecodableImage)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["the device did not decode a file: Failed to decode batch: 6"]


def test_a_file_of_another_size_than_its_header_says_is_pils() -> None:
    given = replace(file((60, 40)), width=61)
    (image,) = JpegDecoder(IMAGENET, "cpu", decode_files).decode([given])
    assert isinstance(image, np.ndarray)


def test_a_device_that_is_lost_is_the_engines_failure() -> None:
    counted = Counted(lambda files: RuntimeError(POISON))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        JpegDecoder(IMAGENET, "cpu", counted).decode([file(seed=seed) for seed in range(4)])
    assert counted.calls == [4]


def test_images_stay_while_their_batch_may_be_in_flight() -> None:
    decoder = JpegDecoder(IMAGENET, "cpu", decode_files, in_flight=2)

    def decoded() -> weakref.ref[Tensor]:
        (image,) = decoder.decode([file()])
        assert isinstance(image, Tensor)
        return weakref.ref(image)

    first, second = decoded(), decoded()
    gc.collect()
    assert first() is not None
    third = decoded()
    gc.collect()
    assert [each() is None for each in (first, second, third)] == [True, False, False]


def test_not_every_filter_has_a_counterpart() -> None:
    spec = replace(IMAGENET, interpolation="lanczos")
    with pytest.raises(ValueError, match="cannot resize with interpolation lanczos"):
        JpegDecoder(spec, "cpu", decode_files)
    (image,) = JpegDecoder(spec, "cpu").decode([file()])
    assert isinstance(image, np.ndarray)


@pytest.mark.usefixtures("torchvision")
def test_a_process_decodes_on_one_device() -> None:
    of_torchvision("cuda:1")
    of_torchvision("cuda:1")
    with pytest.raises(RuntimeError, match="this process decodes on cuda:1 already"):
        of_torchvision("cuda:0")


@pytest.mark.parametrize("channels", ["grey", "bgr", "rgb"])
@pytest.mark.parametrize("crop", ["center", "center_floor", "squash"])
def test_channels_and_sides_are_those_of_pil(channels: Channels, crop: Crop) -> None:
    """Also where an image need not be resized: then no value differs."""
    count = CHANNELS[channels]
    spec = InputSpec(
        size=(30, 56), resize=(40, 60), crop=crop, mean=(0.5,) * count, std=(0.5,) * count,
        channels=channels,
    )  # fmt: skip
    files = [file((60, 40), seed=1), file((90, 41), seed=2), file((31, 77), seed=3)]
    images = JpegDecoder(spec, "cpu", decode_files).attempt(files)
    assert images.shape == (3, *spec.shape)
    np.testing.assert_array_equal(images[0].numpy(), by_pil(files[0], spec))
    for image, each in zip(images[1:], files[1:], strict=True):
        assert is_near(image, by_pil(each, spec))
