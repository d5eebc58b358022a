from __future__ import annotations

import argparse
import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from models.bundle import BundleError
from models.interchange import convert, torchvision_weights
from models.interchange.pytorch import torchvision
from models.preprocess import IMAGENET
from tests.support import libraries
from tests.support.said import said

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


@functools.lru_cache(maxsize=1)
def network(name: str) -> nn.Module:
    """The same one to whoever asks next: nobody changes it."""
    models = libraries.import_torchvision().models
    made: nn.Module = libraries.randomised(models.get_model(name, weights=None), 64)
    return made


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.convert("torchvision", path, said(**options))
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_equal_logits(name: str) -> None:
    theirs = network(name)
    assert libraries.difference(libraries.ours(torchvision.LAYOUT, theirs), theirs, 64) <= 1


@pytest.mark.parametrize("size", [65, 96])
def test_logits_are_equal_for_other_sizes(size: int) -> None:
    theirs = network("resnet18")
    assert libraries.difference(libraries.ours(torchvision.LAYOUT, theirs), theirs, size) <= 1


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "trained", "safetensors", "half"])
def test_every_form_of_file_is_read(tmp_path: Path, form: str) -> None:
    theirs = network("resnet18")
    state = theirs.state_dict()
    path = tmp_path / "theirs.pth"
    if form == "safetensors":
        path = tmp_path / "theirs.safetensors"
        safetensors.torch.save_file(state, path)
    elif form == "half":
        theirs = copy.deepcopy(theirs).half().float()
        saved({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    else:
        parallel = {f"module.{name}": value for name, value in state.items()}
        # As its reference script for training writes it.
        trained = {"model": state, "epoch": 89, "args": argparse.Namespace(lr=0.1, model="r18")}
        forms: dict[str, Any] = {"plain": state, "parallel": parallel, "trained": trained}
        saved(forms.get(form, {"state_dict": parallel, "best_acc1": 69.8}), path)
    made = convert.convert("torchvision", path)
    assert libraries.difference(made.network(), theirs, 64) <= 1
    assert (made.variant, made.input, made.name) == ("resnet18", IMAGENET, "theirs")
    assert made.labels[0] == "tench"


def test_a_published_file_gets_its_own_resolution_and_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(network("resnet18").state_dict(), tmp_path / "renamed.pth")
    digest = convert.convert("torchvision", path).provenance["sha256"]
    row = torchvision_weights.Published("resnet18", "IMAGENET1K_V2", digest[:8], 232, 80.1, 95.25)
    monkeypatch.setattr(torchvision_weights, "WEIGHTS", (*torchvision_weights.WEIGHTS, row))
    made = convert.convert("torchvision", path)
    assert made.input == replace(IMAGENET, resize=232)
    assert made.provenance["weights"] == "IMAGENET1K_V2"
    assert made.metrics["imagenet1k-val"]["top1"] == 0.801


def test_what_is_published_is_what_torchvision_says() -> None:
    models = libraries.import_torchvision().models
    for row in torchvision_weights.WEIGHTS:
        theirs = models.get_model_weights(row.variant)[row.weights]
        assert theirs.url == f"{torchvision_weights.URL}/{row.file}"
        figures = theirs.meta["_metrics"]["ImageNet-1K"]
        assert (figures["acc@1"], figures["acc@5"]) == (row.top1, row.top5)
        prepare = theirs.transforms()
        assert row.input == replace(
            IMAGENET, size=prepare.crop_size[0], resize=prepare.resize_size[0]
        )
        assert prepare.interpolation.value == row.input.interpolation
        assert (tuple(prepare.mean), tuple(prepare.std)) == (row.input.mean, row.input.std)
        best = models.get_model_weights(row.variant).DEFAULT
        assert torchvision_weights.find(row.variant).weights == best.name


def test_other_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.pth"
    theirs = libraries.import_torchvision().models.resnext50_32x4d()
    saved(theirs.state_dict(), path)
    assert "layer" not in refusal(path)
    assert "32 groups (ResNeXt)" in refusal(path)
    saved(libraries.import_torchvision().models.mobilenet_v3_small().state_dict(), path)
    assert "not a torchvision ResNet; its first tensors: features.0.0.weight" in refusal(path)
    state = network("resnet18").state_dict()
    saved({k: v for k, v in state.items() if not k.startswith("layer3.0.")}, path)
    assert "block 0 of stage 2 is missing" in refusal(path)
    saved({k: v for k, v in state.items() if not k.startswith("layer2.")}, path)
    refusal(path)
    saved(state, path)
    assert "holds resnet18, not resnet34" in refusal(path, variant="resnet34")
    saved(state | {"conv1.weight": torch.ones(64, 3, 3, 3)}, path)
    assert "a stem for small images" in refusal(path)
    saved({**state, "layer1.0.extra": nn.Module}, path)
    assert "a whole network (torch.nn.modules.module.Module)" in refusal(path)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert "not a whole safetensors file" in refusal(path)


def test_group_norm_is_refused(tmp_path: Path) -> None:
    models = libraries.import_torchvision().models
    theirs = models.resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels))
    assert "GroupNorm" in refusal(saved(theirs.state_dict(), tmp_path / "r.pth"))


@pytest.mark.parametrize(
    "odd",
    [
        {"conv1.weight": torch.ones(())},
        {"conv1.weight": torch.ones(64, 3, 5, 5)},
        {"layer1.0.conv1.weight": torch.ones(3)},
        {"layer1.0.conv2.weight": torch.ones(64, 0, 3, 3)},
        {"layer1.0.conv2.weight": torch.ones(64, 7, 3, 3)},
        {"layer2.0.downsample.0.weight": torch.ones(())},
        {"fc.weight": torch.ones(3)},
        {"fc.weight": torch.ones(3, 512)},
        {"linear.extra": torch.ones(3)},
        {"module.conv1.weight": torch.ones(3)},
        {"layer9.0.conv1.weight": torch.ones(3)},
        {"bn1.running_mean": torch.ones(64, dtype=torch.int64)},
        {"layer1.0.conv1.bias": torch.ones(64)},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_odd_tensors_are_refused(tmp_path: Path, odd: dict[str, torch.Tensor]) -> None:
    with torch.device("cpu"):
        state = libraries.import_torchvision().models.resnet18().state_dict()
    refusal(saved({**state, **odd}, tmp_path / "r.pth"))
