"""Every engine with every kind of input, head and output: what the plain network computes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models import bundling, labels
from models.bundle import Bundle
from models.classifier import Outputs
from models.draws import DrawsFrom
from models.preprocess import CHANNELS, InputSpec
from models.resnet import ResNet
from models.views import Views
from service.engines import quantisation
from service.engines.engine import Warm
from service.engines.start import start_engine, start_first
from service.inference.tasks import Embed, Explain
from tests.support import rounding, tiny
from tests.support.engine_checks import Images, compiled_quickly, images, planned
from tests.support.fake_cuda import fake_cuda

SIDES = (24, 40)
COUNT = 3
# Multiples of 8: cuDNN fuses the convolutions.
SMALL = {"planes": (8, 16), "num_classes": 5}
IMAGENET_STEM = {"stem": "imagenet", "block": "bottleneck"}
DILATED = {"blocks": (1, 2, 2), "planes": (8, 16, 16)}


def _marked(engine: str) -> Any:
    _, precision, device = ENGINES[engine]
    depends = device == "cpu" and precision != "fp32"
    return pytest.param(engine, marks=[pytest.mark.precision] * depends)


@dataclass(frozen=True)
class Kind:
    """A network: changes of SMALL, and of its bundle."""

    changes: dict[str, Any] = field(default_factory=dict)
    channels: str = "rgb"
    outputs: Outputs = "exclusive"
    size: tuple[int, int] = SIDES
    views: Views = "plain"


KINDS = {
    "not square": Kind(),
    "upright": Kind(size=(40, 24)),
    "grey": Kind(channels="grey"),
    "rgba": Kind(channels="rgba"),
    "bgr": Kind(channels="bgr"),
    "independent": Kind(outputs="independent"),
    "one class": Kind({"num_classes": 1}, outputs="independent"),
    "two layers": Kind({"head": (16,)}),
    "three layers, independent": Kind({"head": (16, 12)}, outputs="independent"),
    "no head": Kind({"num_classes": 0}),
    "no head, grey": Kind({"num_classes": 0}, channels="grey", outputs="independent"),
    "3x3 stem with a pool": Kind({"pool": "max"}),
    "3x3 stem of stride 2 with a pool": Kind({"pool": "max", "stem_stride": 2}),
    "7x7 stem without a pool": Kind({**IMAGENET_STEM, "pool": "none", "stem_channels": 24}),
    "7x7 stem of stride 1": Kind({**IMAGENET_STEM, "stem_stride": 1}),
    "dilated": Kind({**DILATED, "dilation": (1, 2)}),
    "dilated bottleneck": Kind({**DILATED, "block": "bottleneck", "dilation": (2,)}),
    "dilated, pre-activation": Kind({**DILATED, "preact": True, "dilation": (2,)}),
    "blurred": Kind({**IMAGENET_STEM, "antialias": "blur"}),
    "blurred basic": Kind({"antialias": "blur", "pool": "max"}),
    "averaged": Kind({**IMAGENET_STEM, "antialias": "average"}),
    "averaged basic": Kind({"antialias": "average", "pool": "max"}),
    "mirrored": Kind(views="mirrored"),
    "mirrored, pre-activation, grey": Kind({"preact": True}, channels="grey", views="mirrored"),
    "mirrored, two layers, upright": Kind({"head": (16,)}, size=(40, 24), views="mirrored"),
    "mirrored, independent": Kind({"stem": "imagenet"}, outputs="independent", views="mirrored"),
    "mirrored, no head": Kind({"num_classes": 0}, views="mirrored"),
}
ENGINES = {
    "eager fp32": ("eager", "fp32", "cpu"),
    "eager bf16": ("eager", "bf16", "cpu"),
    "openvino fp32": ("openvino", "fp32", "cpu"),
    "openvino bf16": ("openvino", "bf16", "cpu"),
    "openvino int8": ("openvino", "int8", "cpu"),
    "cuda fused fp32": ("fused", "fp32", "cuda:0"),
    "cuda fused fp16": ("fused", "fp16", "cuda:0"),
}


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And at every size, however slow the machine is."""
    for name, value in (("SHORTEST_SAMPLE", 1e-6), ("LONGEST_SAMPLE", 1e-6), ("LONGEST", 100.0)):
        monkeypatch.setattr(f"service.engines.buckets.{name}", value)


@cache
def made(name: str) -> Bundle:
    """Of random weights, calibrated with `batch`."""
    kind = KINDS[name]
    count = CHANNELS[kind.channels]
    spec = InputSpec(
        size=kind.size,
        resize=kind.size,
        crop="squash",
        mean=(0.5, 0.4, 0.6, 0.3)[:count],
        std=(0.2, 0.3, 0.25, 0.5)[:count],
        channels=kind.channels,  # type: ignore[arg-type]
    )
    architecture = tiny.architecture(**{**SMALL, **kind.changes, "in_channels": count})
    with DrawsFrom(torch.Generator().manual_seed(0)):
        network = with_norms(ResNet(architecture).eval())
    uncalibrated = bundling.from_network(
        network,
        name="tiny",
        input=spec,
        labels=labels.default(architecture.num_classes),
        outputs=kind.outputs,
        views=kind.views,
    )
    ranges = quantisation.ranges(uncalibrated, images(COUNT, spec))
    return replace(uncalibrated, calibration={"ranges": ranges})


def with_norms(network: ResNet) -> ResNet:
    """With norms and biases as a training leaves them, so that a lost one would show."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.7, 1.3, generator=generator)
        elif value.ndim == 1:
            value.normal_(std=0.2, generator=generator)
    return network


@contextmanager
def started(name: str, engine: str) -> Iterator[Warm]:
    kind, precision, device = ENGINES[engine]
    plan = replace(planned(made(name), precision, device=device), max_batch=2)
    with fake_cuda() if device != "cpu" else nullcontext() as fake:
        yield start_engine(kind, plan, 1.0)
        assert fake is None or not fake.races


def plain(made: Bundle, batch: Images) -> tuple[NDArray[np.float32], ...]:
    """Probabilities, features, maps and logits."""
    classifier = made.classifier()
    with torch.inference_mode():
        probabilities, maps = classifier.with_maps(torch.from_numpy(np.stack(batch)))
        features = maps.mean((2, 3))
        results = probabilities, features, maps, classifier.logits(features)
    return tuple(each.numpy() for each in results)


def relative(made: Bundle, precision: str) -> float:
    """What rounding changes, in parts of the largest value."""
    if precision != "int8":
        return rounding.relative(made.tensors, precision)
    # Of each layer, the inputs are rounded to 256 steps of their range, and the weights to 255.
    steps = 6 / 510 * math.sqrt(2 * len(rounding.sums(made.tensors)))
    return steps + rounding.relative(made.tensors, "bf16")


def assert_near(found: NDArray[np.float32], wanted: NDArray[np.float32], allowed: float) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


def check(warm: Warm, made: Bundle, precision: str) -> None:
    """Features, probabilities and activation maps are those of the plain network."""
    batch = images(COUNT, made.input)
    probabilities, features, maps, logits = plain(made, batch)
    moved = relative(made, precision)
    if not logits.size:
        assert warm.launch(batch[:1])().classes.shape == (1, 0)
        assert_near(warm.infer(batch), features, moved * features.max())
    else:
        # A softmax moves by at most half of what its logits move by, a sigmoid by a quarter.
        moves = moved * np.abs(logits).max() / (2 if made.outputs == "exclusive" else 4)
        assert_near(warm.infer(batch), probabilities, moves + rounding.of_sums([logits.shape[1]]))
    for image, one in enumerate(batch):
        ranking = warm.launch([one, one], [Embed(), Explain()])()
        assert (np.diff(ranking.probabilities) <= 0).all()
        embedding, explained = ranking.details
        assert embedding is not None
        assert_near(embedding, features[image], moved * features.max())
        if made.architecture.num_classes and not made.architecture.head:
            assert explained is not None
            weight = made.tensors["head.weight"][ranking.classes[1, 0]].numpy()
            grid = np.tensordot(weight, maps[image], 1).ravel()
            largest = np.tensordot(np.abs(weight), maps[image], 1).max()
            assert_near(explained[:-1], grid, moved * largest)
        else:
            assert explained is None


@pytest.mark.parametrize("engine", [*map(_marked, ENGINES)])
@pytest.mark.parametrize("name", KINDS)
def test_every_engine_computes_what_the_network_does(name: str, engine: str) -> None:
    with started(name, engine) as warm:
        check(warm, made(name), ENGINES[engine][1])


def test_a_network_without_classes_is_judged_by_its_features(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = made("no head")
    coarse = dict.fromkeys(bundle.calibration["ranges"], (-1e3, 1e3))
    wrong = planned(replace(bundle, calibration={"ranges": coarse}), "int8")
    warm = start_first(["openvino"], wrong, 0.01)
    assert (warm.engine.name, warm.engine.precision) == ("eager", "fp32")
    assert "its features differ from fp32 by up to" in caplog.text
    assert warm.parity.top1_agreement == 1.0
    assert warm.parity.max_difference <= rounding.relative(bundle.tensors)


def test_features_that_are_not_finite_are_refused() -> None:
    bundle = made("no head")
    broken = dict(bundle.tensors)
    (name, *_) = [name for name in broken if name.endswith("bn2.bias")]
    broken[name] = torch.full_like(broken[name], torch.nan)
    with pytest.raises(RuntimeError, match="NaN in fp32 on cpu"):
        start_engine("eager", planned(replace(bundle, tensors=broken)), None)


COMPILED = ("no head, grey", "three layers, independent", "blurred", "dilated", "mirrored")


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_does_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(planned(made(name)), max_batch=2)
    with compiled_quickly(monkeypatch):
        check(start_engine("compile", plan, 1.0), made(name), "fp32")
