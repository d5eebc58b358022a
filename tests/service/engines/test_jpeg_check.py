from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import bundling
from models.architecture import Architecture
from models.bundle import Bundle
from models.preprocess import CIFAR, IMAGENET, InputSpec
from service.engines import jpeg_check
from service.engines.blueprint import Blueprint
from service.engines.engine import Warm
from service.engines.jpeg import DecodeFiles, JpegDecoder
from service.engines.jpeg_check import by_pil, check, decoder_for, deviation, samples
from service.engines.parity import ParityError
from service.engines.start import start_engine
from service.errors import RequestError
from service.inference.jpeg_header import of_plain_file
from service.inference.ranking import Ranking
from service.inference.tasks import ImageInput, JpegFile
from tests.support.device_decoder import CudaDecoder, decode_files, repeating_colours
from tests.support.fake_cuda import fake_cuda

ARCHITECTURE = Architecture(
    block="basic", blocks=(1, 1), planes=(8, 16), stem="small", num_classes=5, shortcut="A"
)
POISON = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return bundling.untrained(ARCHITECTURE, "tiny", CIFAR)


def planned(made: Bundle, decode: str = "device") -> Blueprint:
    return Blueprint(
        made, "cpu", "fp32", max_batch=8, threads=1, request_seconds=0.0, cache=None, decode=decode
    )


@pytest.fixture(scope="module")
def warm(tiny: Bundle) -> Warm:
    return start_engine("eager", planned(tiny, "host"), None)


def changed(change: Callable[[Tensor], Tensor]) -> DecodeFiles:
    return lambda files: [change(planes) for planes in decode_files(files)]


def studio(planes: Tensor) -> Tensor:
    return ((planes.float() - 16) * 255 / 219).clamp(0, 255).to(torch.uint8)


WRONG: dict[str, DecodeFiles] = {
    "blue first": changed(lambda planes: planes.flip(0)),
    "studio range": changed(studio),
    "a pixel to the right": changed(lambda planes: planes.roll(1, 2)),
    "a pixel down": changed(lambda planes: planes.roll(1, 1)),
    "upside down": changed(lambda planes: planes.flip(1)),
    "no colours": changed(lambda planes: planes.float().mean(0).to(torch.uint8).expand(3, -1, -1)),
    "a block lost": changed(lambda planes: planes.index_fill(2, torch.arange(100, 140), 0)),
    "blank": changed(torch.zeros_like),
}
SPECS = {
    "cifar": CIFAR,
    "imagenet": IMAGENET,
    "bicubic": replace(CIFAR, interpolation="bicubic"),
    "squashed": replace(IMAGENET, size=(96, 200), resize=(96, 200), crop="squash"),
    "not square": replace(IMAGENET, size=(160, 96), resize=(180, 100)),
    "grey": replace(CIFAR, channels="grey", mean=(0.5,), std=(0.5,)),
    "bgr": replace(IMAGENET, channels="bgr"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize("decode", [decode_files, repeating_colours])
def test_decoders_that_differ_in_rounding_and_colours_pass(
    spec: InputSpec, decode: DecodeFiles
) -> None:
    files = samples()
    images = JpegDecoder(spec, "cpu", decode).attempt(files).numpy()
    for file, image in zip(files, images, strict=True):
        assert not deviation(image, by_pil(file, spec))


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
@pytest.mark.parametrize("name", WRONG)
def test_decoders_that_are_wrong_do_not(spec: InputSpec, name: str) -> None:
    files = samples()
    images = JpegDecoder(spec, "cpu", WRONG[name]).attempt(files).numpy()
    reasons = [
        deviation(image, by_pil(file, spec)) for file, image in zip(files, images, strict=True)
    ]
    assert any("differ from the host's" in reason for reason in reasons)


def test_samples_are_of_each_kind() -> None:
    files = samples()
    assert {(file.width, file.height) for file in files} == {(500, 375), (375, 501)}
    assert len({file.data.tobytes() for file in files}) == 5
    for file in files:
        plain = of_plain_file(file.data.tobytes(), IMAGENET, 10**6)
        assert plain is not None
        assert (plain.width, plain.height) == (file.width, file.height)


def test_a_full_batch_is_compared(warm: Warm) -> None:
    sizes: list[int] = []

    def counted(files: list[Tensor]) -> list[Tensor]:
        sizes.append(len(files))
        return decode_files(files)

    check(JpegDecoder(CIFAR, "cpu", counted), warm, CIFAR, 0.005)
    assert sizes == [max(5, warm.buckets.largest)]


def test_probabilities_are_compared_too(warm: Warm) -> None:
    """The engine may take a device's images for others than the host's."""
    calls: list[int] = []

    def infer(images: object) -> object:
        calls.append(1)
        return np.full((5, 5), len(calls), np.float32)

    other = replace(warm)
    object.__setattr__(other, "infer", infer)
    with pytest.raises(ParityError, match=r"differ by up to 1, more than parity_tolerance 0\.5"):
        check(JpegDecoder(CIFAR, "cpu", decode_files), other, CIFAR, 0.5)


def test_an_engine_decodes_on_its_device_if_all_agrees(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(jpeg_check, "of_torchvision", lambda device: repeating_colours)
    started = start_engine("eager", planned(tiny), None)
    assert started.decodes_on_device
    assert "tiny: plain JPEGs are decoded on cpu" in caplog.messages


@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_a_cuda_engine_computes_what_its_device_decoded(
    kind: str, tiny: Bundle, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a simulated device: files beside pixels, with two batches in flight."""
    monkeypatch.setattr(jpeg_check, "of_torchvision", CudaDecoder)
    files, chance = samples(), np.random.default_rng(0)
    with fake_cuda() as fake:
        engine = start_engine(kind, replace(planned(tiny), device="cuda:0", max_batch=4), None)
        assert engine.decodes_on_device
        pixels = chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        inputs: list[ImageInput] = [*files, pixels, (pixels / 1.5).astype(np.float32)]
        flying: list[tuple[list[ImageInput], Callable[[], Ranking]]] = []
        for number in range(12):
            # The last input, and only it, is of fractions.
            most = len(inputs) - number % 2
            # On a busy machine, one image at a time may have been the fastest.
            count = 1 + number % engine.buckets.largest
            batch = [inputs[at] for at in chance.integers(0, most, count)]
            images = [each for each in engine.decode(batch) if not isinstance(each, RequestError)]
            flying.append((batch, engine.launch(images)))
            if len(flying) == engine.engine.in_flight:
                given, result = flying.pop(0)
                expected = warm.infer(
                    [by_pil(each, CIFAR) if isinstance(each, JpegFile) else each for each in given]
                )
                np.testing.assert_allclose(result().by_class(), expected, atol=0.01)
        assert not fake.races


def test_it_does_not_if_it_is_not_to(warm: Warm) -> None:
    assert warm.decoder is not None
    assert not warm.decodes_on_device


def fails(device: str) -> DecodeFiles:
    raise RuntimeError("operator torchvision::nms does not exist\nadvice")


def fails_later(device: str) -> DecodeFiles:
    def decode(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("Failed to initialize batch decoding: 7")

    return decode


FALLBACKS: dict[str, tuple[Callable[[str], DecodeFiles], str]] = {
    "not installed": (fails, "operator torchvision::nms does not exist"),
    "does not decode": (fails_later, "Failed to initialize batch decoding: 7"),
    "is wrong": (lambda device: WRONG["blue first"], "the device's pixels differ from the host's"),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_else_it_decodes_on_the_host_and_says_why_in_one_line(
    name: str,
    tiny: Bundle,
    warm: Warm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_torchvision, reason = FALLBACKS[name]
    monkeypatch.setattr(jpeg_check, "of_torchvision", of_torchvision)
    decoder = decoder_for(planned(tiny), warm, None)
    assert not decoder.on_device
    (message,) = caplog.messages
    assert message.startswith(f"tiny: JPEGs are decoded on the host: {reason}")
    assert "advice" not in message
    (file, *_) = samples()
    assert isinstance(decoder.decode([file])[0], np.ndarray)


RGBA: dict[str, Any] = {"channels": "rgba", "mean": (0.5,) * 4, "std": (0.5,) * 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interpolation": "lanczos"}, "cannot resize with interpolation lanczos"),
        ({"crop": "letterbox"}, "cannot crop with letterbox"),
        (RGBA, "does not decode to channels rgba"),
    ],
)
def test_what_a_device_cannot_do_is_a_reason(
    warm: Warm,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setattr(jpeg_check, "of_torchvision", lambda device: decode_files)
    spec = replace(CIFAR, **changes)
    architecture = replace(ARCHITECTURE, in_channels=spec.shape[2])
    made = bundling.untrained(architecture, "tiny", spec)
    assert not decoder_for(planned(made), warm, None).on_device
    assert reason in caplog.text


def test_a_device_that_is_lost_fails_the_start(
    tiny: Bundle, warm: Warm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(device: str) -> DecodeFiles:
        raise RuntimeError(POISON)

    monkeypatch.setattr(jpeg_check, "of_torchvision", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        decoder_for(planned(tiny), warm, None)
