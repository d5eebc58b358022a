"""Models that decode on their device: a decoder that gives PIL's pixels stands for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from models import bundle, bundling
from models.preprocess import IMAGENET, InputSpec
from service.cli.trial import Instant
from service.config.settings import Settings
from service.engines import devices, jpeg_check
from service.errors import ServiceError
from service.inference import pipeline
from service.inference.decoding import DecodedImage
from service.inference.interfaces import Computed
from service.inference.jobs import Job
from service.inference.ranking import Row
from service.inference.tasks import Embed, Explain, ImageInput, JpegFile, Pixels, Task
from service.metrics import Metrics
from service.repository.loader import Loader
from service.repository.model import LocalModel
from tests.conftest import PATIENCE
from tests.support import device_decoder, tiny
from tests.support.hostile.formats import saved, segment
from tests.support.hostile.images import animation, turned

SPEC = replace(IMAGENET, size=64, resize=72)
MAX_PIXELS = 300_000
# An 8-bit step of a pixel changes no probability by more.
NEAR = 0.02


def picture(seed: int, size: tuple[int, int] = (100, 75)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def jpeg(seed: int = 0, size: tuple[int, int] = (100, 75), **options: object) -> bytes:
    return saved(picture(seed, size), "JPEG", **options)


DAMAGED = b"\xff\xd8\xff" + bytes(500)


Outcome = Computed | ServiceError


async def compute(model: LocalModel, image: bytes | Pixels, task: Task | None = None) -> Outcome:
    job: Job[ImageInput, Row] = Job() if task is None else Job(task)
    try:
        return await model.compute(image, job, asyncio.get_running_loop().time() + PATIENCE)
    except ServiceError as error:
        return error


class Models(dict[str, LocalModel]):
    """The models by name, and one event loop for all tests."""

    def __init__(self, models: Iterable[LocalModel], runner: asyncio.Runner) -> None:
        super().__init__({model.name: model for model in models})
        self._runner = runner

    def outcomes(
        self, name: str, images: list[bytes | Pixels], task: Task | None = None
    ) -> list[Outcome]:
        """What comes of images that are sent together."""

        async def all_of_them() -> list[Outcome]:
            return await asyncio.gather(*(compute(self[name], image, task) for image in images))

        return self._runner.run(all_of_them())

    def both(
        self, images: list[bytes | Pixels], task: Task | None = None
    ) -> tuple[list[Outcome], list[Outcome]]:
        """The same on the host and on the device."""
        return self.outcomes("host", images, task), self.outcomes("device", images, task)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """One network twice: "host" and "device" decode there."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    bundle.write(bundling.from_network(tiny.network(), **tiny.described(input=SPEC)), path)
    common = {"spec": str(path), "device": "cpu", "engine": "eager", "precision": "fp32"}
    settings = Settings.model_validate(
        {
            "models": [{**common, "name": name, "decode": name} for name in ("host", "device")],
            "max_pixels": MAX_PIXELS,
            "engine_threads": 1,
            "cache_dir": path.parent,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_check_decoder", lambda device: None)
        patch.setattr(jpeg_check, "of_torchvision", lambda device: device_decoder.decode_files)
        loader = Loader(settings, Metrics(), 0.0)
        opened = loader.open_all()
        for model in opened:
            assert model.decode == model.describe()["decode"] == "host"  # It is not running yet.
            loader.start(model)
        end = time.monotonic() + PATIENCE
        while not all(model.ready for model in opened):
            assert time.monotonic() < end, [model.reason for model in opened]
            time.sleep(0.01)
        with asyncio.Runner() as runner:
            yield Models(opened, runner)
        loader.close(PATIENCE)


def by_class(row: Row) -> np.ndarray:
    ordered = np.empty_like(row.probabilities)
    ordered[row.classes] = row.probabilities
    return ordered


def check_equal(host: Outcome, device: Outcome) -> None:
    if isinstance(host, ServiceError):
        assert (type(device), str(device)) == (type(host), str(host))
        return
    assert isinstance(device, Computed), device
    assert np.abs(by_class(device.row) - by_class(host.row)).max() < NEAR
    assert device.decoded.size == host.decoded.size


@pytest.fixture
def files(models: Models, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each batch had that the engine decoded."""
    counts: list[int] = []
    warm = models["device"].workers[0].running
    assert warm is not None
    assert warm.decoder is not None
    decode = warm.decoder.decode

    def counted(given: list[JpegFile]) -> list[object]:
        counts.append(len(given))
        return list(decode(given))

    monkeypatch.setattr(warm.decoder, "decode", counted)
    return counts


def test_the_card_says_where_files_are_decoded(models: Models) -> None:
    for name, model in models.items():
        assert model.decode == model.describe()["decode"] == name


def test_probabilities_are_those_of_the_host(models: Models, files: list[int]) -> None:
    sizes = [(100, 75), (75, 100), (72, 72), (127, 90), (110, 400)]
    images: list[bytes | Pixels] = [jpeg(seed, sizes[seed % 5]) for seed in range(20)]
    images += [saved(picture(30).convert("L"), "JPEG"), jpeg(31, subsampling=0)]
    host, device = models.both(images)
    for ours, theirs in zip(host, device, strict=True):
        check_equal(ours, theirs)
    assert sum(files) == len(images)
    computed = [each for each in host if isinstance(each, Computed)]
    different = np.ptp([by_class(each.row) for each in computed], axis=0)
    assert different.max() > 10 * NEAR, "the network tells the images apart"
    for each in device:
        assert isinstance(each, Computed)
        assert each.decode == 0 < each.inference
        assert each.total >= each.queue + each.inference


def test_pixels_and_files_of_all_kinds_share_batches(models: Models, files: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images: list[bytes | Pixels] = []
    for seed in range(6):
        images += [jpeg(seed), saved(picture(seed), "PNG"), pixels]
        images += [(pixels / 1.5).astype(np.float32), jpeg(seed, progressive=True)]
    host, device = models.both(images)
    for ours, theirs in zip(host, device, strict=True):
        check_equal(ours, theirs)
    assert sum(files) == 6


OTHERS: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: jpeg(progressive=True),
    "cmyk": lambda: saved(picture(0).convert("CMYK"), "JPEG"),
    "turned": lambda: turned(6),
    "png": lambda: saved(picture(0), "PNG"),
    "several": lambda: animation("MPO"),
    "larger than a slot": lambda: jpeg()[:2] + segment(0xE5, bytes(50_000)) + jpeg()[2:],
    "too many pixels": lambda: jpeg(size=(1000, 301)),
    "sliver": lambda: jpeg(size=(2000, 1)),
    "truncated": lambda: jpeg()[:900],
    "without an end": lambda: jpeg()[:-2],
    "no image": lambda: b"hello",
    "empty": lambda: b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_decoded_or_refused_as_ever(
    name: str, models: Models, files: list[int]
) -> None:
    (host,), (device,) = models.both([OTHERS[name]()])
    check_equal(host, device)
    assert not files


def test_a_damaged_file_fails_alone(
    models: Models, files: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file with a plain header is known that PIL refuses, so this one is taken for plain."""

    def of_any_file(data: bytes, spec: InputSpec, max_pixels: int) -> JpegFile:
        return JpegFile(np.frombuffer(data, np.uint8), 100, 75)

    monkeypatch.setattr(pipeline, "of_plain_file", of_any_file)
    images: list[bytes | Pixels] = [jpeg(seed) for seed in range(12)]
    images[3] = images[8] = DAMAGED
    host, device = models.both(images)
    for ours, theirs in zip(host, device, strict=True):
        check_equal(ours, theirs)
    assert [isinstance(each, ServiceError) for each in device].count(True) == 2
    assert "not a readable image" in str(device[3])
    assert sum(files) == 12
    for each in device:
        assert isinstance(each, ServiceError) or 0 < each.batch_size <= 12
    # A batch of nothing else, and then the next one.
    (refusal,) = models.outcomes("device", [DAMAGED])
    assert str(refusal) == str(device[3])
    check_equal(*(found[0] for found in models.both([jpeg()])))


def test_features_are_those_of_the_host_and_explanations_have_their_pixels(
    models: Models, files: list[int]
) -> None:
    (host,), (device,) = models.both([jpeg()], Embed())
    assert isinstance(host, Computed)
    assert isinstance(device, Computed)
    assert host.row.detail is not None
    assert device.row.detail is not None
    np.testing.assert_allclose(device.row.detail, host.row.detail, atol=0.05)
    assert files == [1]
    (explained,) = models.outcomes("device", [jpeg()], Explain())
    assert isinstance(explained, Computed)
    assert explained.decoded.pixels.shape == (64, 64, 3)
    assert files == [1]


DECODED = DecodedImage(np.zeros((32, 32, 3), np.uint8), 0.0, 0.0, (32, 32))


class Answering(Instant):
    """Every image is of class `best`."""

    def __init__(self, best: int) -> None:
        super().__init__()
        self.best = best

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        row = Row(np.array([self.best, 0], np.int32), np.array([0.75, 0.25], np.float32))
        return Computed(self, row, DECODED, 0.0, 0.0, 0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("counted", "series"),
    [
        (0, {}),
        (3, {"0/0": 1, "2/2": 1, "other/other": 2}),
        (10, {f"{n}/{n}": 1 for n in (0, 2, 3, 9)}),
    ],
)
def test_the_first_classes_are_counted_one_by_one(counted: int, series: dict[str, float]) -> None:
    async def predict(best: int) -> None:
        model = Answering(best)
        models = SimpleNamespace(models={model.name: model})
        deadline = asyncio.get_running_loop().time() + PATIENCE
        await pipeline.Pipeline(metrics, models, counted).compute(model, b"", deadline)

    metrics = Metrics()
    for best in (0, 2, 3, 9):
        asyncio.run(predict(best))
    found = metrics.counted()["trial"]
    start = "resnet_serve_predictions_total/"
    assert {n.removeprefix(start): v for n, v in found.items() if n.startswith(start)} == series
    confident = found.get("resnet_serve_confidence_ratio_count", 0)
    assert confident == (4 if counted else 0)


def test_images_of_a_network_without_classes_have_no_prediction() -> None:
    async def embed() -> None:
        model = Answering(0)
        model.labels = ()
        models = SimpleNamespace(models={model.name: model})
        deadline = asyncio.get_running_loop().time() + PATIENCE
        await pipeline.Pipeline(metrics, models, 100).compute(model, b"", deadline)

    metrics = Metrics()
    asyncio.run(embed())
    assert not [name for name in metrics.counted()["trial"] if "predictions" in name]
