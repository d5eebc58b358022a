from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_resnet
from torch import nn
from torch_resnet import preact_resnet, resnet

from models import bundle
from models.bundle import BundleError
from models.interchange import convert
from models.interchange.pytorch import torch_resnet as importer
from models.interchange.pytorch.layout import to_ours
from models.preprocess import CIFAR, IMAGENET
from models.resnet import on_meta
from tests.support import libraries
from tests.support.said import said

CLASSES = {
    name: int(match[1])
    for name in dir(torch_resnet)
    if (match := re.fullmatch(r"(?:PreAct)?(?:Wide)?ResNet(\d+)", name))
}
DEEP = [name for name, depth in CLASSES.items() if depth > 200]
SHORTCUTS = {
    "A": torch_resnet.IdentityShortcut,
    "B": torch_resnet.ProjectionShortcut,
    "C": torch_resnet.FullProjectionShortcut,
    "conv": torch_resnet.ConvolutionShortcut,
}


def with_head(network: Any, classes: int = 10) -> nn.Module:
    network.set_head(nn.Linear(network.out_planes, classes))
    made: nn.Module = libraries.randomised(network, size_for(network))
    return made


def size_for(network: Any) -> int:
    """Pixels that leave something to pool."""
    first = network.init_layer
    return 32 if isinstance(first, nn.Conv2d) or first[0].kernel_size == (3, 3) else 64


def saved(network: nn.Module, path: Path, **more: Any) -> Path:
    torch.save({"model": network.state_dict(), **more} if more else network.state_dict(), path)
    return path


def test_there_are_all_of_its_classes() -> None:
    assert len(CLASSES) == 34
    assert len(DEEP) == 4


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in DEEP])
def test_every_class_gives_equal_logits(name: str) -> None:
    theirs = with_head(getattr(torch_resnet, name)())
    converted = libraries.ours(importer.LAYOUT, theirs)
    assert converted.architecture.preact == name.startswith("PreAct")
    assert libraries.difference(converted, theirs, size_for(theirs)) <= 1


@pytest.mark.parametrize("name", DEEP)
def test_the_deepest_have_the_names_and_shapes_of_ours(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torch_resnet, name)()
        theirs.set_head(nn.Linear(theirs.out_planes, 10))
    tensors, architecture, _ = to_ours(importer.LAYOUT, theirs.state_dict(), Path("x"))
    bundle.check_fit(on_meta(architecture), tensors, name)
    assert architecture.depth == CLASSES[name]


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ResNet18", {}),
        ("ResNet18", {"small_images": True}),
        ("ResNet20", {"drop_rate": 0.2}),
        ("ResNet20", {"small_images": False}),
        ("PreActResNet18", {}),
        ("PreActResNet18", {"small_images": True}),
        ("PreActResNet20", {}),
        ("WideResNet16", {"width": 2}),
        ("WideResNet16", {"width": 1}),
        ("PreActWideResNet16", {"width": 3}),
        ("PreActWideResNet16", {"width": 1, "small_images": False}),
    ],
)
def test_every_shortcut_gives_equal_logits(
    name: str, options: dict[str, Any], shortcut: str
) -> None:
    theirs = with_head(getattr(torch_resnet, name)(shortcut=SHORTCUTS[shortcut], **options))
    converted = libraries.ours(importer.LAYOUT, theirs)
    assert converted.architecture.shortcut == shortcut
    assert converted.architecture.width == options.get("width", 1)
    assert libraries.difference(converted, theirs, size_for(theirs)) <= 1


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("preact", [True, False])
def test_bottlenecks_of_any_shape_give_equal_logits(
    preact: bool, small: bool, width: int, shortcut: str
) -> None:
    """1001 layers' blocks and shapes, in few."""
    dimensions = [(1, 16), (2, 16), (3, 32), (2, 64)]
    options: Any = {
        "shortcut": SHORTCUTS[shortcut],
        "width": width,
        "small_images": small,
    }
    theirs = with_head(
        preact_resnet.PreActResNet(dimensions, preact_resnet.PreActBottleneck, **options)
        if preact
        else resnet.ResNet(dimensions, resnet.Bottleneck, **options)
    )
    converted = libraries.ours(importer.LAYOUT, theirs)
    assert (converted.architecture.shortcut, converted.architecture.width) == (shortcut, width)
    assert libraries.difference(converted, theirs, size_for(theirs)) <= 1


@pytest.mark.parametrize("name", ["ResNet20", "PreActResNet20"])
def test_a_file_of_its_example_becomes_a_bundle(tmp_path: Path, name: str) -> None:
    shortcut = torch_resnet.IdentityShortcut
    theirs = with_head(getattr(torch_resnet, name)(shortcut=shortcut), 100)
    path = saved(theirs, tmp_path / "best.ckpt", optimizer={"state": {}}, epoch=160)
    made = convert.convert("torch_resnet", path)
    assert libraries.difference(made.network(), theirs, 32) <= 1
    assert made.variant == ("preact_resnet20" if "PreAct" in name else "resnet20")
    assert made.architecture.shortcut_padding == "end"
    assert made.input.size == CIFAR.size
    assert made.input.mean == (0.5071, 0.4867, 0.4408)


def test_nothing_says_how_its_large_networks_saw_images(tmp_path: Path) -> None:
    theirs = resnet.ResNet([(1, 8), (1, 8), (1, 16)], resnet.BasicBlock)
    path = saved(with_head(theirs, 10), tmp_path / "r.pth")
    with pytest.raises(BundleError, match=r"\A[^\n]+--mean[^\n]+\Z"):
        convert.convert("torch_resnet", path)
    made = convert.convert("torch_resnet", path, said(mean=IMAGENET.mean, std=IMAGENET.std))
    assert made.input == IMAGENET


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("preact", [True, False])
@pytest.mark.parametrize(
    "dimensions",
    [
        [(1, 16), (2, 32), (1, 64)],
        [(1, 24), (1, 32), (2, 40)],
        [(1, 64), (1, 16), (1, 24)],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("width", [1, 3])
def test_the_stem_may_have_other_channels_than_the_first_stage(
    dimensions: list[tuple[int, int]], kind: str, width: int, preact: bool, small: bool
) -> None:
    classes: Any = preact_resnet if preact else resnet
    names = ("PreActResNet", "PreActBlock", "PreActBottleneck")
    if not preact:
        names = ("ResNet", "BasicBlock", "Bottleneck")
    make, *blocks = (getattr(classes, name) for name in names)
    block = blocks[kind == "bottleneck"]
    theirs = with_head(make(dimensions, block, width=width, small_images=small))
    converted = libraries.ours(importer.LAYOUT, theirs)
    assert converted.architecture.stem_width == dimensions[0][1]
    assert libraries.difference(converted, theirs, size_for(theirs)) <= 1


def test_dropout_of_wide_networks_is_nothing_when_it_serves(tmp_path: Path) -> None:
    make: Any = torch_resnet.WideResNet16
    theirs = with_head(make(width=2, drop_rate=0.3), 10)
    made = convert.convert("torch_resnet", saved(theirs, tmp_path / "r.pth"))
    assert libraries.difference(made.network(), theirs, 32) <= 1
    assert made.variant == "wide_resnet16_2"


@torch.inference_mode()
def test_a_network_without_a_head_has_features(tmp_path: Path) -> None:
    theirs = libraries.randomised(resnet.ResNet([(1, 8), (1, 8)], resnet.BasicBlock), 64)
    options = said(mean=IMAGENET.mean, std=IMAGENET.std)
    made = convert.convert("torch_resnet", saved(theirs, tmp_path / "r.pth"), options)
    assert (made.labels, made.architecture.num_classes) == ((), 0)
    assert libraries.difference(made.network(), theirs, size_for(theirs)) <= 1


def test_a_head_of_two_layers(tmp_path: Path) -> None:
    make: Any = torch_resnet.ResNet20
    network = make()
    layers = [nn.Dropout(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    network.set_head(nn.Sequential(*layers))
    theirs = libraries.randomised(network, 32)
    made = convert.convert("torch_resnet", saved(theirs, tmp_path / "r.pth"))
    assert made.architecture.head == (32,)
    assert libraries.difference(made.network(), theirs, 32) <= 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(2, 2), tmp_path / "r.pth")
    with pytest.raises(BundleError, match=r"not a torch-resnet network; its first tensors: weight"):
        convert.convert("torch_resnet", path)
