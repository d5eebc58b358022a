"""What a researcher does with the package `models`, without the service."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import models
from models.data.source import open_source
from models.interchange import torchvision_weights
from models.preprocess import InputSpec
from models.training import recipes
from models.training.plan import Plan, augmentation
from models.training.run import train_bundle
from tests.conftest import CACHE
from tests.support import made, tiny


def test_build_a_network_by_the_name_that_a_library_or_a_paper_gives_it() -> None:
    assert models.build("preact_resnet50", num_classes=10).out_channels == 2048
    with pytest.raises(ValueError, match="did you mean num_classes"):
        models.build("resnet20", num_clases=10)


@pytest.mark.parametrize(
    ("field", "advice"),
    [
        ("pretrained", "a SPEC such as torchvision:resnet50 names trained weights"),
        ("output_stride", "did you mean dilation?"),
        ("in_chans", "did you mean in_channels?"),
        ("drop_rate", "did you mean dropout?"),
        ("device", "network.to(device) moves a network"),
    ],
)
def test_an_argument_of_another_library_is_told_what_it_is_here(field: str, advice: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no field {field!r}; {advice}")):
        models.build("resnet50", **cast("dict[str, Any]", {field: 1}))


def test_the_kind_of_block_is_a_field_too() -> None:
    network = models.build("resnet20", block="bottleneck")
    assert (network.architecture.block, network.out_channels) == ("bottleneck", 256)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: models.build(cast("Any", 3)), "a variant's name is text, not 3"),
        (lambda: models.ResNet(cast("Any", "resnet20")), "takes an Architecture, not a str; build"),
        (
            lambda: tiny.network().set_head(cast("Any", 10)),
            r"a head is a torch.nn.Module, such as Linear\(8, 10",
        ),
        (lambda: tiny.network().set_head(cast("Any", None)), "not None"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        wrong()


@pytest.mark.parametrize("spec", ["builtin:resnet20-cifar10", "mine.safetensors"])
def test_build_sends_who_names_weights_to_load(spec: str) -> None:
    with pytest.raises(ValueError, match=r"names weights, [^\n]*; models.load reads it\Z"):
        models.build(spec)


def test_an_empty_spec_is_not_this_folder() -> None:
    with pytest.raises(models.BundleError, match=r"\Ano such file; a SPEC is builtin:NAME"):
        models.load("")


def test_shells_and_notebooks_complete_the_public_names() -> None:
    assert dir(models) == sorted(models.__all__)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PreActResNet50", "preact_resnet50"),
        ("WRN-28-10", "wrn_28_10"),
        ("wrn_28x10", "wrn_28_10"),
        ("resnetv2_50", "preact_resnet50"),
        ("resnet50.a1_in1k", "resnet50"),
        ("ResNet50", "resnet50"),
        ("wide-resnet-28-10", "wide_resnet28_10"),
        ("WideResNet28-10", "wide_resnet28_10"),
        ("resnet_18", "resnet18"),
        ("resnet 18", "resnet18"),
    ],
)
def test_other_names_are_told_ours_first(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"\Ano variant is called [^\n]*nearest: {meant}(,|\Z)"):
        models.build(name)
    with pytest.raises(models.BundleError, match=rf"did you mean [^\n]*\brandom:{meant}\b"):
        models.load(name)


def test_a_name_of_the_hub_is_told_its_prefix() -> None:
    with pytest.raises(models.BundleError, match=r"did you mean hf:timm/resnet50\.a1_in1k\?"):
        models.load("timm/resnet50.a1_in1k")


def test_freeze_the_body_and_train_the_head_by_hand() -> None:
    network = tiny.network().train().requires_grad_(False)
    network.set_head(nn.Linear(network.out_channels, 3))
    before = {name: value.clone() for name, value in network.named_parameters()}
    network(torch.rand(4, 3, 8, 8)).square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    optimizer.step()
    changed = {n for n, value in network.named_parameters() if not value.equal(before[n])}
    assert changed == {"head.weight", "head.bias"}


def test_fine_tune_what_a_spec_names(tmp_path: Path) -> None:
    start = models.read("builtin:resnet20-cifar10")
    recipe = recipes.by_name("quick").lasting("iterations", 1)
    recipe = replace(recipe, batch_size=8)
    source = open_source(
        made.folder(tmp_path / "data", 12),
        start.input,
        "cpu",
        augmentation=augmentation(recipe, start.input),
    )
    plan = Plan(start=start, source=source, recipe=recipe, recipe_name="quick", seed=0)
    tuned = train_bundle(plan, name="tuned")
    assert tuned.labels == source.classes
    assert len(tuned.labels) == tuned.network().architecture.num_classes


def test_change_the_head_and_keep_the_result(tmp_path: Path) -> None:
    network = models.load("builtin:resnet20-cifar10")
    network.set_head(nn.Sequential(nn.Dropout(0.5), nn.Linear(network.out_channels, 3)))
    spec, names = models.variant("resnet20").input, ["a", "b", "c"]
    models.write(
        models.from_network(network.eval(), name="mine", input=spec, labels=names),
        tmp_path / "mine.safetensors",
    )
    images = torch.rand(2, 3, 32, 32)
    again = models.load(tmp_path / "mine.safetensors")
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_images_of_one_channel_are_built_for_and_kept(tmp_path: Path) -> None:
    network = models.build("resnet20", in_channels=1).eval()
    spec = InputSpec(size=28, resize=28, channels="grey", mean=(0.5,), std=(0.5,))
    models.write(
        models.from_network(network, name="grey", input=spec, labels=["x"] * 10),
        tmp_path / "grey.safetensors",
    )
    again = models.load(tmp_path / "grey.safetensors")
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_dilate_instead_of_striding() -> None:
    network = models.build("resnet18", num_classes=0, dilation=(2, 3)).eval()
    with torch.no_grad():
        assert network.maps(torch.rand(1, 3, 64, 96)).shape == (1, 512, 8, 12)


def test_look_pretrained_weights_up() -> None:
    rows = {(row.variant, row.weights) for row in torchvision_weights.WEIGHTS}
    assert ("resnet50", "IMAGENET1K_V2") in rows
    with pytest.raises(models.BundleError, match=r"\Atorchvision:resnt50: .*did you mean resnet50"):
        models.load("torchvision:resnt50")


def test_list_networks_by_pattern_and_family() -> None:
    everything = models.names()
    assert isinstance(everything, list)
    assert models.names("resnet1??_small") == ["resnet101_small", "resnet152_small"]
    assert models.names("*resnet50*", family="preact") == [
        "preact_resnet50",
        "preact_wide_resnet50_2",
        "preact_resnet50_small",
    ]
    assert models.names("ResNet5*") == models.names("resnet5*") != []
    assert models.names("vgg*") == []
    families = [set(models.names(family=name)) for name in ("imagenet", "cifar", "small")]
    assert set.union(*families) == set(everything)
    assert sum(map(len, families)) == len(everything)
    with pytest.raises(ValueError, match="no family is called 'wied'; did you mean wide"):
        models.names(family="wied")


@pytest.mark.parametrize("spec", ["random:resnet20", "builtin:resnet20-cifar10", "FILE", "FOLDER"])
def test_every_spec_gives_a_network_in_evaluation_mode(spec: str, tmp_path: Path) -> None:
    models.write(models.read("random:resnet20"), tmp_path / "x.safetensors")
    path = {"FILE": tmp_path / "x.safetensors", "FOLDER": tmp_path}.get(spec, spec)
    network = models.load(path)
    assert isinstance(network, models.ResNet)
    assert not network.training


def test_it_needs_nothing_of_the_service() -> None:
    code = (
        "import sys, models; models.load('builtin:resnet20-cifar10'); "
        "sys.exit(any(name.split('.')[0] == 'service' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


USER = """
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from models import Architecture, Bundle, Classifier, InputSpec, ResNet

network = models.build("resnet20", num_classes=10, shortcut="A")
reveal_type(network)
reveal_type(models.load("resnet20.safetensors", allow=["mine:Block"]))
network.set_head(nn.Linear(network.out_channels, 3))
images: Tensor = torch.rand(2, 3, 32, 32)
reveal_type(network.features(images))
spec = InputSpec(size=(24, 32), resize=32, mean=(0.5,) * 3, std=(0.5,) * 3)
bundle = models.from_network(network, name="mine", input=spec, labels=["a", "b", "c"])
reveal_type(bundle)
models.write(bundle, Path("mine.safetensors"))
reveal_type(models.read(Path("mine.safetensors")).labels)
reveal_type(models.count_macs(network, (24, 32)))
reveal_type(models.names("resnet*", family="preact"))
reveal_type(Classifier(network, spec, 1.5)(images))
reveal_type(models.variant("resnet20").architecture)
def backbone(of: Architecture) -> ResNet:
    return ResNet(of)
def made(of: Bundle) -> Classifier:
    return of.classifier()
"""
REVEALED = [
    "models.resnet.ResNet",
    "models.resnet.ResNet",
    "torch._tensor.Tensor",
    "models.bundle.Bundle",
    "tuple[str, ...]",
    "int",
    "list[str]",
    "torch._tensor.Tensor",
    "models.architecture.Architecture",
]
WRONG = """
import models

models.biuld("resnet20")
models.load(3)
models.from_network(models.build("resnet20"), name="x", labels=["a"])
models.names(family=3)
models.count_macs(models.build("resnet20"), "32")
"""


def test_users_files_are_type_checked_against_the_public_names(tmp_path: Path) -> None:
    """Outside of this project. What mypy finds out about torch takes it half a minute; it keeps
    that for the next run of the tests."""
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    done = subprocess.run(
        [*command, f"--cache-dir={CACHE}-mypy", "--no-pretty", "right.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("wrong.py:")]
    right = [line for line in lines if line not in wrong]
    assert [line for line in right if ": error: " in line] == []
    revealed = [line.partition('Revealed type is "')[2].rstrip('"') for line in right]
    assert [text.replace("builtins.", "") for text in revealed] == REVEALED
    numbers = [int(line.split(":")[1]) for line in wrong if ": error: " in line]
    assert numbers == [4, 5, 6, 7, 8]
