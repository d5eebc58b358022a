"""Networks with blocks and heads of a user's own, in each engine of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from models.bundle import Bundle
from models.resnet import ResNet
from service.engines.blueprint import Blueprint
from service.engines.start import start_first
from service.inference.tasks import CLASSIFY, Embed, Explain
from tests.support import tiny
from tests.support.own_blocks import Cosine, InPlace, Plain, Squeezed


def made(block: type[nn.Module] | None, head: nn.Module | None = None) -> Bundle:
    network = ResNet(tiny.ARCHITECTURE, block=block)  # type: ignore[arg-type]
    if head is not None:
        network.set_head(head)
    return models.from_network(
        tiny.randomised(network).eval(), name="own", input=tiny.INPUT, labels=["x"] * 10
    )


def blueprint(bundle: Bundle, precision: str, cache: Path | None = None) -> Blueprint:
    return Blueprint(bundle, "cpu", precision, 2, 1, 0.0, cache)


@pytest.mark.parametrize("kind", ["eager", "openvino", "fused"])
@pytest.mark.parametrize(
    ("block", "head", "falls_back"),
    [
        (Plain, None, False),
        (Squeezed, None, True),
        (InPlace, None, False),
        (Plain, Cosine(8, 10), True),
        (None, Cosine(8, 10), True),
    ],
)
def test_every_engine_computes_own_code_or_leaves_it_to_torch(
    kind: str, block: type[nn.Module] | None, head: nn.Module | None, falls_back: bool
) -> None:
    bundle = made(block, head)
    warm = start_first([kind], blueprint(bundle, "fp32"), None)
    assert warm.engine.name == ("openvino" if kind == "openvino" and not falls_back else "eager")
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, bundle.input.shape, dtype=np.uint8) for _ in range(2)]
    found = warm.engine.launch(images, 2, [CLASSIFY] * 2)().by_class()
    with torch.no_grad():
        expected = bundle.classifier()(torch.from_numpy(np.stack(images)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_own_code_is_served_in_16_bits_and_embeds_but_a_head_of_its_own_explains_nothing() -> None:
    warm = start_first(["eager"], blueprint(made(Squeezed, Cosine(8, 10)), "bf16"), None)
    images = [np.full((8, 8, 3), 100, np.uint8)] * 2
    ranking = warm.engine.launch(images, 2, [Embed(), Explain()])()
    features, explained = ranking.details
    assert features is not None
    assert features.shape == (8,)
    assert explained is None


def test_nothing_is_kept_of_code_that_may_change(tmp_path: Path) -> None:
    assert blueprint(made(None), "fp32", tmp_path).cached("x", ".json") is not None
    assert blueprint(made(Plain), "fp32", tmp_path).cached("x", ".json") is None
