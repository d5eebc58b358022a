"""The guide for those who come from torch-resnet is true of both packages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import models
from models.resnet import on_meta

torch_resnet = pytest.importorskip("torch_resnet")
GUIDE = (Path(__file__).parents[1] / "docs" / "torch-resnet.md").read_text()
CLASSES = re.findall(r"^\| `(\w+)\((.*)\)` \| `(\w+)` \|$", GUIDE, re.MULTILINE)
# Layers take seconds to build.
THOUSAND = [pytest.mark.slow]


def test_every_class_is_in_the_table() -> None:
    named = [name for name in dir(torch_resnet) if re.search(r"ResNet\d", name)]
    assert {name for name, _, _ in CLASSES} == set(named)
    assert len(named) == 34


@pytest.mark.parametrize(
    ("theirs", "given", "ours"),
    [
        pytest.param(*row, id="-".join(row), marks=THOUSAND if re.search(r"\d{4}", row[0]) else [])
        for row in CLASSES
    ],
)
def test_a_row_of_the_table_holds(theirs: str, given: str, ours: str) -> None:
    arguments = dict(each.split("=") for each in given.split(", ") if each)
    keywords = {
        key: value == "True" if value in ("True", "False") else int(value)
        for key, value in arguments.items()
    }
    with torch.device("meta"):
        network = getattr(torch_resnet, theirs)(**keywords)
    architecture = models.variant(ours).architecture
    shapes = [tuple(p.shape) for p in network.parameters()]
    headless = on_meta(models.variants.override(architecture, num_classes=0))
    assert sorted(shapes) == sorted(tuple(p.shape) for p in headless.parameters())


def test_its_example_runs() -> None:
    code = GUIDE.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, object] = {}
    exec(code, scope)
    network = scope["network"]
    assert isinstance(network, models.ResNet)
    assert models.count_parameters(network) == 23_520_842
    assert models.count_layers(network) == 54
    logits = scope["logits"]
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 10)
