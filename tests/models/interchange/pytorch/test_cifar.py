"""Public CIFAR weights give what their own repositories' networks give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import labels
from models.bundle import BundleError, WeightsMismatch
from models.classifier import Classifier
from models.data import datasets
from models.evaluation.evaluate import batches, evaluate, inference
from models.interchange import convert
from models.interchange.pytorch import cifar
from models.preprocess import CIFAR, IMAGENET
from tests.support import libraries, reference, rounding, tiny
from tests.support.said import said
from tests.support.shared import SHARED, needs_shared

OWNERS = {"akamaster", "chenyaofo", "kuangliu", "weiaicunzai"}
CHENYAOFO_STD = (0.2023, 0.1994, 0.2010)


def network(style: reference.Style, *, block: Any = reference.BasicBlock) -> reference.Network:
    blocks = (1, 2, 1, 1) if style == "kuangliu" else (2, 1, 2)
    return tiny.randomised(reference.Network(style, block, blocks, 4, 10)).eval()


def saved(tmp_path: Path, tensors: Any) -> Path:
    path = tmp_path / "weights.best.th"
    torch.save(tensors, path)
    return path


def converted(path: Path, **options: Any) -> Any:
    return convert.convert("cifar", path, said(**options))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize("form", ["plain", "wrapped", "without counters"])
@pytest.mark.parametrize(
    ("style", "block", "layout", "shortcut"),
    [
        ("akamaster", reference.BasicBlock, "names as in akamaster/pytorch_resnet_cifar10", "A"),
        ("chenyaofo", reference.BasicBlock, "names as in chenyaofo/pytorch-cifar-models", "B"),
        ("kuangliu", reference.BasicBlock, "names as in kuangliu/pytorch-cifar", "B"),
        ("kuangliu", reference.Bottleneck, "names as in kuangliu/pytorch-cifar", "B"),
    ],
)
def test_each_layout_is_recognised_and_gives_equal_logits(
    tmp_path: Path, style: Any, block: Any, layout: str, shortcut: str, form: str
) -> None:
    theirs = network(style, block=block)
    tensors: Any = theirs.state_dict()
    if form == "wrapped":
        parallel = {f"module.{name}": value for name, value in tensors.items()}
        tensors = {"state_dict": parallel, "best_prec1": 91.7, "epoch": 199}
    elif form == "without counters":
        tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    path = saved(tmp_path, tensors)

    bundle = converted(path)
    images = torch.randn(3, 3, 32, 32)
    rounding.assert_near(bundle.network()(images), theirs(images), bundle.tensors)
    assert bundle.architecture.shortcut == shortcut
    akamaster = style == "akamaster"
    assert bundle.input == replace(
        CIFAR,
        mean=IMAGENET.mean if akamaster else CIFAR.mean,
        std=IMAGENET.std if akamaster else CHENYAOFO_STD,
    )
    assert bundle.name == "weights"
    assert bundle.labels == labels.read("cifar10")
    assumed = bundle.provenance.pop("assumed")
    assert assumed["mean"] == list(bundle.input.mean)
    assert assumed["labels"] == "cifar10"
    assert bundle.provenance == {
        "source": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": "cifar",
        "layout": layout,
    }


def test_option_a_padded_at_the_end_would_give_other_logits(tmp_path: Path) -> None:
    theirs = network("akamaster")
    bundle = converted(saved(tmp_path, theirs.state_dict()))
    assert bundle.architecture.shortcut_padding == "both"
    images = torch.randn(3, 3, 32, 32)
    naive = replace(bundle, architecture=replace(bundle.architecture, shortcut_padding="end"))
    difference: Tensor = (naive.network()(images) - theirs(images)).abs().max()
    assert difference > 0.1


def test_what_the_caller_says_wins_over_the_layout(tmp_path: Path) -> None:
    path = saved(tmp_path, network("akamaster").state_dict())
    own = tmp_path / "own.txt"
    own.write_text("\n".join(f"label {i}" for i in range(10)))
    bundle = converted(
        path, name="mine", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), labels=str(own)
    )
    assert bundle.name == "mine"
    assert (bundle.input.mean, bundle.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert bundle.labels[9] == "label 9"


def torchvision_named(tmp_path: Path) -> Path:
    """A four-stage network with the head called fc: nothing says how it was trained."""
    theirs = tiny.randomised(
        reference.Network("chenyaofo", reference.BasicBlock, (1, 1, 1, 1), 4, 10)
    )
    return saved(tmp_path, theirs.state_dict())


def test_plain_torchvision_names_need_a_normalisation(tmp_path: Path) -> None:
    path = torchvision_named(tmp_path)
    expected = (
        f"{path}: its layout (torchvision names) does not say how images were normalised; "
        "give --mean r,g,b and --std r,g,b"
    )
    assert refusal(lambda: converted(path)) == expected
    assert refusal(lambda: converted(path, mean=CIFAR.mean)) == expected
    assert refusal(lambda: converted(path, std=CIFAR.std)) == expected
    assert converted(path, mean=CIFAR.mean, std=CIFAR.std).input == CIFAR


def test_an_unknown_layout_shows_what_the_file_holds(tmp_path: Path) -> None:
    path = saved(tmp_path, {"body.0.weight": torch.ones(2), "body.0.bias": torch.ones(2)})
    assert refusal(lambda: converted(path)) == (
        f"{path}: none of the known CIFAR layouts; its first tensors: body.0.weight, body.0.bias"
    )


def test_an_unknown_format_offers_the_known_ones(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    assert refusal(lambda: convert.convert("caffe", path)) == (
        f"no format is called 'caffe'; use one of {', '.join(convert.FORMATS)}"
    )


def test_another_variant_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    nameless = saved(tmp_path, network("akamaster").state_dict())
    assert refusal(lambda: converted(nameless, variant="resnet20")) == (
        f"{nameless}: holds a network that has no name, not resnet20"
    )
    theirs = reference.Network("akamaster", reference.BasicBlock, (3, 3, 3), 16, 10)
    path = saved(tmp_path, theirs.state_dict())
    assert converted(path, variant="resnet20").variant == "resnet20"
    assert refusal(lambda: converted(path, variant="resnet32")) == (
        f"{path}: holds resnet20, not resnet32"
    )


def test_missing_and_surplus_tensors_are_listed(tmp_path: Path) -> None:
    tensors = network("akamaster").state_dict()
    del tensors["layer2.0.bn2.weight"]
    tensors["layer3.1.conv2.weight"] = torch.ones(16, 16, 1, 1)
    tensors["layer3.1.extra"] = torch.ones(2)
    path = saved(tmp_path, tensors)
    with pytest.raises(WeightsMismatch, match=r"\A[^\n]+\Z") as caught:
        converted(path)
    assert caught.value.difference == [
        "- stages.1.0.bn2.weight [8]",
        "- stages.2.1.conv2.weight [16, 16, 3, 3]",
        "+ stages.2.1.conv2.weight [16, 16, 1, 1]",
        "+ stages.2.1.extra [2]",
    ]
    assert str(caught.value).startswith(f"{path}: weights do not fit a ResNet: 3 tensors differ")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("conv1.weight", "no tensor stem.conv.weight found"),
        ("layer1", "no residual stages found|none of the known CIFAR layouts"),
        ("layer2", "no residual stages found"),
    ],
)
def test_a_network_without_a_needed_part_is_refused(
    tmp_path: Path, gone: str, message: str
) -> None:
    tensors = {k: v for k, v in network("akamaster").state_dict().items() if not k.startswith(gone)}
    path = saved(tmp_path, tensors)
    with pytest.raises(BundleError, match=message):
        converted(path)


MORE: dict[str, list[torch.nn.Module]] = {
    "names as in kuangliu/pytorch-cifar": [
        reference.PreActNetwork(4, 10, bottleneck=False),
        reference.PreActNetwork(4, 10, bottleneck=True),
    ],
    "weiaicunzai/pytorch-cifar100": [
        reference.WeiaicunzaiNetwork("post", 100),
        reference.WeiaicunzaiNetwork("post", 100, deep=True),
    ],
    "weiaicunzai/pytorch-cifar100 (pre-activation)": [
        reference.WeiaicunzaiNetwork("pre", 100),
        reference.WeiaicunzaiNetwork("pre", 100, deep=True),
    ],
    "weiaicunzai/pytorch-cifar100 (wide)": [reference.WeiaicunzaiNetwork("wide", 100)],
    "xternalz/WideResNet-pytorch": [
        reference.XternalzNetwork(1, 10),
        reference.XternalzNetwork(3, 100),
    ],
}


@pytest.mark.parametrize("form", ["plain", "wrapped"])
@pytest.mark.parametrize(
    ("layout", "theirs"), [(name, theirs) for name, rows in MORE.items() for theirs in rows]
)
def test_more_layouts_give_equal_logits(
    tmp_path: Path, layout: str, theirs: torch.nn.Module, form: str
) -> None:
    libraries.randomised(theirs, 32)
    state: Any = theirs.state_dict()
    if form == "wrapped":
        state = {"net": {f"module.{name}": value for name, value in state.items()}, "acc": 95.2}
    made = converted(saved(tmp_path, state))
    assert made.provenance["layout"] == layout
    assert libraries.difference(made.network(), theirs, 32) <= 1
    assert made.input.mean != IMAGENET.mean


@pytest.mark.parametrize("widen", [1, 3])
def test_parameters_of_a_function_give_equal_logits(tmp_path: Path, widen: int) -> None:
    theirs = libraries.randomised(reference.XternalzNetwork(widen, 10), 32)
    state = {name: value.requires_grad_() for name, value in theirs.as_szagoruyko().items()}
    made = converted(saved(tmp_path, {"params": state, "epoch": 200, "optimizer": {}}))
    assert made.provenance["layout"] == "szagoruyko/wide-residual-networks"
    assert libraries.difference(made.network(), theirs, 32) <= 1
    assert made.input.mean == (125.3 / 255, 123.0 / 255, 113.9 / 255)


def test_labels_of_another_count_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, network("akamaster").state_dict())
    assert "100 labels do not fit 10 classes" in refusal(lambda: converted(path, labels="cifar100"))


@needs_shared
def test_every_published_layout_of_these_repositories_is_known(tmp_path: Path) -> None:
    text = (SHARED / "reference" / "layouts.json").read_text("utf-8")
    published = json.loads(text)["layouts"]["state_dict_layouts"]
    # The largest only repeat the others.
    without = {f"{kind}{d}" for kind in ("ResNet", "PreActResNet") for d in (101, 152)}
    without |= {f"{kind}{d}" for kind in ("resnet", "preactresnet") for d in (101, 152)}
    found = {}
    for name, layout in published.items():
        owner, _, model = name.partition("/")
        if owner in OWNERS and model not in without:
            # One zero, whatever the shape: names and shapes are all that counts.
            zeros = {
                key: torch.zeros((), dtype=torch.float if shape else torch.int64).expand(shape)
                for key, shape in layout["keys"]
            }
            bundle = converted(saved(tmp_path, zeros))
            found[name] = (bundle.variant, bundle.architecture.shortcut)
    assert found == {
        **{f"akamaster/resnet{d}": (f"resnet{d}", "A") for d in (20, 32, 44, 56, 110)},
        **{f"chenyaofo/cifar10_resnet{d}": (f"resnet{d}", "B") for d in (20, 32, 44, 56)},
        **{f"kuangliu/ResNet{d}": (f"resnet{d}_small", "B") for d in (18, 34, 50)},
        **{f"kuangliu/PreActResNet{d}": (f"preact_resnet{d}_small", "B") for d in (18, 34, 50)},
        **{f"weiaicunzai/resnet{d}": (f"resnet{d}_small", "B") for d in (18, 34, 50)},
        **{f"weiaicunzai/preactresnet{d}": (f"preact_resnet{d}_small", "B") for d in (18, 34, 50)},
        "weiaicunzai/wideresnet-40-10": ("preact_wide_resnet40_10", "B"),
    }


@needs_shared
@pytest.mark.parametrize(
    ("file", "variant", "right"),
    [
        ("resnet20-12fca82f.th", "resnet20", 182),
        ("resnet56-4bfd9763.th", "resnet56", 188),
        ("chenyaofo_cifar10_resnet20.pth", "resnet20", 185),
    ],
)
def test_published_weights_are_right_as_often_as_published(
    file: str, variant: str, right: int
) -> None:
    bundle = converted(SHARED / "weights" / file, variant=variant)
    images = datasets.read(SHARED / "data" / "cifar10-lossless-sample.tar", bundle.input)
    data = images.relabelled(bundle.labels)
    classifier = Classifier(bundle.network(), bundle.input)
    assert ("assumed" in bundle.provenance) == file.startswith("chenyaofo")
    measured = evaluate(inference(classifier), batches(data, 50))
    assert (measured.top1, measured.images) == (right / 200, 200)
    assert measured.top5 > 0.98


def test_an_imagenet_stem_is_given_imagenet_sized_images(tmp_path: Path) -> None:
    tensors = torch.load(torchvision_named(tmp_path), weights_only=True)
    tensors["conv1.weight"] = torch.ones(4, 3, 7, 7)
    path = saved(tmp_path, tensors)
    try:
        bundle = converted(path, mean=IMAGENET.mean, std=IMAGENET.std)
    except BundleError:
        return
    assert bundle.input.size == 224


@pytest.mark.parametrize("style", ["akamaster", "chenyaofo", "kuangliu"])
def test_a_layout_of_cifar10_says_nothing_of_other_data(tmp_path: Path, style: Any) -> None:
    theirs = reference.Network(style, reference.BasicBlock, network(style).stages * (1,), 4, 100)
    path = saved(tmp_path, theirs.state_dict())
    try:
        bundle = converted(path)
    except BundleError as error:
        assert "--mean" in str(error)  # noqa: PT017
    else:
        assert bundle.input.mean != CIFAR.mean
        assert bundle.input.mean != IMAGENET.mean


def test_option_a_of_an_unknown_repository_is_not_guessed(tmp_path: Path) -> None:
    tensors = network("akamaster").state_dict()
    renamed = {name.replace("linear.", "fc."): value for name, value in tensors.items()}
    refusal(lambda: converted(saved(tmp_path, renamed), mean=CIFAR.mean, std=CIFAR.std))


def test_tensors_of_no_dimensions_are_refused(tmp_path: Path) -> None:
    tensors = network("akamaster").state_dict()
    tensors["layer1.0.conv2.weight"] = torch.tensor(1.0)
    refusal(lambda: cifar.read(saved(tmp_path, tensors)))
