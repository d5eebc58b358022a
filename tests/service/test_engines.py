from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import bundle
from models.bundle import Bundle
from models.classifier import Classifier
from models.preprocess import CIFAR
from models.resnet import Architecture
from service import engines
from service.engines.eager import EagerEngine, buckets
from service.errors import ConfigError
from service.settings import ModelSettings

TINY = Architecture(
    block="basic", blocks=(1, 1), planes=(8, 16), stem="small", num_classes=5, shortcut="A"
)


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return bundle.untrained(TINY, "tiny", CIFAR)


def images(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    random = np.random.default_rng(count)
    return [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])],
)
def test_buckets_are_powers_of_two_up_to_the_limit(max_batch: int, sizes: list[int]) -> None:
    assert buckets(max_batch) == sizes


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_padding_to_a_bucket_changes_no_answer(tiny: Bundle, count: int) -> None:
    engine = EagerEngine(tiny, "cpu", "fp32", 8)
    engine.infer(images(8))  # Leaves other images in the slab.
    batch = images(count)
    with torch.inference_mode():
        expected = Classifier(tiny.network(), tiny.input)(torch.from_numpy(np.stack(batch)))
    probabilities = engine.infer(batch)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)


def test_bf16_is_near_fp32(tiny: Bundle) -> None:
    batch = images(4)
    exact = EagerEngine(tiny, "cpu", "fp32", 4).infer(batch)
    near = EagerEngine(tiny, "cpu", "bf16", 4).infer(batch)
    assert 0 < np.abs(exact - near).max() < 0.05


def test_warming_up_refuses_weights_that_give_nan(tiny: Bundle) -> None:
    broken = dict(tiny.tensors)
    broken["head.bias"] = torch.full_like(broken["head.bias"], torch.nan)
    engine = EagerEngine(replace(tiny, tensors=broken), "cpu", "fp32", 1)
    with pytest.raises(RuntimeError, match="NaN in fp32 on cpu"):
        engine.warm_up()


def test_devices_are_resolved_and_may_repeat() -> None:
    settings = ModelSettings(spec="x", device=["cpu", "cpu"])
    assert engines.devices(settings) == ["cpu", "cpu"]
    found = engines.devices(ModelSettings(spec="x"))
    assert found == (["cuda:0"] if torch.cuda.is_available() else ["cpu"])


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match="cuda:99 is not here"):
        engines.devices(ModelSettings(spec="x", device="cuda:99"))


def test_precision_is_what_is_asked_for_or_what_the_hardware_has() -> None:
    assert engines.precision(ModelSettings(spec="x", precision="bf16"), "cpu") == "bf16"
    automatic = engines.precision(ModelSettings(spec="x"), "cpu")
    assert automatic == ("bf16" if engines.cpu_has_bf16() else "fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_is_near_the_cpu(tiny: Bundle, precision: str) -> None:
    batch = images(5)
    exact = EagerEngine(tiny, "cpu", "fp32", 8).infer(batch)
    engine = EagerEngine(tiny, "cuda:0", precision, 8)
    engine.warm_up()
    assert np.abs(exact - engine.infer(batch)).max() < (1e-3 if precision == "fp32" else 0.05)
