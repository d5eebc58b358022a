"""The files that people have, case by case: equal logits, or the refusal in its exact words.

The network is torchvision's, with few blocks. A case makes from it what a training program saves.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.bundle import WeightsMismatch
from models.preprocess import IMAGENET
from tests.support import libraries, reference
from tests.support.checkpoints import (
    LEFT,
    WITHOUT,
    changed,
    converted,
    network,
    notes,
    refusal,
    renamed,
    state,
    under,
)

ORDERED = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
PREFIXES = (
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.module.",
    "model.",
    "net.",
    "backbone.",
    "encoder.",
    "timm_model.",
    "resnet.",
    "0.",
    "0.model.",
    "model.resnet.",
    "module.encoder_q.",
    "module.attacker.model.",
    "a_name_of_ones_own.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", ["", "state_dict"])
def test_a_prefix_is_found_whatever_it_is(tmp_path: Path, prefix: str, wrapper: str) -> None:
    content: Any = under(prefix)
    made = converted({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "r.pth")
    assert libraries.difference(made.network(), network(), 64) == 0
    assert notes(made) == []


# What a file holds, what the user says, and the notes that he gets.
EMA = "took the averaged weights {}; --{} {} takes the others"
PUBLISHED: dict[str, tuple[Callable[[], Any], dict[str, Any], list[str]]] = {
    **{
        f"wrapper {name}": (
            functools.partial(lambda name: {name: state(), "epoch": 1}, name),
            {},
            [],
        )
        for name in (
            *("state_dict", "model_state_dict", "model", "net", "params", "model_state", "weights"),
            *("module", "network", "ema", "model_ema", "state_dict_ema", "ema_state_dict"),
            *("student", "teacher", "a name of one's own"),
        )
    },
    "wrappers in one another": (lambda: {"checkpoint": {"model": {"weights": state()}}}, {}, []),
    "an optimiser beside": (
        lambda: {"model": state(), "optimizer": {"state": {0: {"exp_avg": state()}}}},
        {},
        [],
    ),
    "the same twice": (lambda: {"model": state(), "state_dict": dict(state())}, {}, []),
    "timm's EMA": (
        lambda: {"state_dict": changed(), "state_dict_ema": state()},
        {},
        [EMA.format("state_dict_ema", "key", "state_dict")],
    ),
    "timm's EMA, not wanted": (
        lambda: {"state_dict": state(), "state_dict_ema": changed()},
        {"key": "state_dict"},
        [],
    ),
    "torchvision's EMA": (
        lambda: {
            "model": changed(),
            "model_ema": {"n_averaged": torch.tensor(9), **under("module.")},
        },
        {},
        [EMA.format("model_ema", "key", "model"), f"{LEFT}n_averaged"],
    ),
    "EMA within the ema": (
        lambda: {"model": changed(), "ema": {"decay": 0.99, "module": state()}},
        {},
        [EMA.format("ema.module", "key", "model")],
    ),
    "EMA without statistics": (
        lambda: {"model": state(), "ema": {k: v for k, v in changed().items() if "run" not in k}},
        {},
        ["took model: the averaged weights ema lack the statistics of the norms"],
    ),
    "EMA under a prefix": (
        lambda: {**under("model.", changed()), **under("ema_model.module.")},
        {},
        [
            EMA.format("ema_model.module.", "prefix", "model."),
            f"{LEFT}model ({len(state())} tensors)",
        ],
    ),
    "SWA": (
        lambda: {"n_averaged": torch.tensor(5), **under("module.")},
        {},
        [f"{LEFT}n_averaged"],
    ),
    "a key": (lambda: {"student": state(), "teacher": changed()}, {"key": "student"}, []),
    "a key with dots": (
        lambda: {"nets": {"a": state(), "b": changed()}},
        {"key": "nets.a"},
        [],
    ),
    "MoCo": (
        lambda: {
            "state_dict": {
                **under("module.encoder_q."),
                **under("module.encoder_k.", changed()),
                "module.queue": torch.ones(8, 9),
                "module.queue_ptr": torch.ones(1),
            }
        },
        {"prefix": "module.encoder_q"},
        [
            f"{LEFT}module.encoder_k ({len(state())} tensors), module.queue, module.queue_ptr",
        ],
    ),
    "a network and its teacher": (
        lambda: {**state(), **under("teacher.", changed())},
        {"prefix": ""},
        [f"{LEFT}teacher ({len(state())} tensors)"],
    ),
    "MadryLab's two names of one": (
        lambda: {**under("module.model."), **under("module.attacker.model.")},
        {},
        [f"{LEFT}module.attacker ({len(state())} tensors)"],
    ),
    "a loss with weights": (
        lambda: {**under("model."), "criterion.weight": torch.ones(7), "loss_fn.a": torch.ones(2)},
        {},
        [f"{LEFT}criterion, loss_fn"],
    ),
    "mmpretrain": (
        lambda: {"meta": {}, "state_dict": renamed(state(), fc="head.fc", other="backbone.")},
        {},
        [],
    ),
    "Lightning with its own head": (
        lambda: renamed(state(), fc="classifier", other="model.backbone."),
        {},
        [],
    ),
    "modules in order": (lambda: renamed(state(), **ORDERED, fc="9"), {}, []),
    "modules in order, with a head behind": (
        lambda: renamed(state(), **{k: f"0.{v}" for k, v in ORDERED.items()}, fc="2"),
        {},
        [],
    ),
    "a head called classifier": (lambda: renamed(state(), fc="classifier"), {}, []),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_network_is_found_wherever_it_is(tmp_path: Path, case: str) -> None:
    content, options, expected = PUBLISHED[case]
    made = converted(content(), tmp_path / "r.pth", **options)
    assert libraries.difference(made.network(), network(), 64) == 0
    assert notes(made) == expected


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "two encoders": (
        lambda: {**under("encoder_q."), **under("encoder_k.", changed())},
        {},
        "holds 2 networks, under the prefixes encoder_q., encoder_k.; choose one with --prefix "
        "encoder_q.",
    ),
    "two models of an attacker": (
        lambda: {**under("module.model."), **under("module.attacker.model.", changed())},
        {},
        "holds 2 networks, under the prefixes module.model., module.attacker.model.; choose one "
        "with --prefix module.model.",
    ),
    "a network and its teacher": (
        lambda: {**state(), **under("teacher.", changed())},
        {},
        'holds 2 networks, under the prefixes "", teacher.; choose one with --prefix ""',
    ),
    "a prefix of none": (
        lambda: under("model."),
        {"prefix": "net"},
        "no network is under the prefix net.; prefixes of networks: model.; its first tensors: "
        "model.conv1.weight, model.bn1.weight, model.bn1.bias",
    ),
    "student and teacher": (
        lambda: {"student": state(), "teacher": changed()},
        {},
        "holds several state dicts: student, teacher; choose one with --key, as in --key teacher",
    ),
    "an unknown key": (
        lambda: {"student": state(), "nested": {"teacher": changed()}, "epoch": 3},
        {"key": "ema"},
        "no entry 'ema' holds tensors; entries that do: student, nested.teacher",
    ),
    "a key of a plain state dict": (
        state,
        {"key": "ema"},
        "no entry 'ema' holds tensors; entries that do: none; the file itself is a state dict",
    ),
    "two heads": (
        lambda: {**under("backbone."), "classifier.weight": torch.ones(3, 7)},
        {},
        "has two heads, backbone.fc and classifier, and does not say which one answers; delete "
        f"the other one's tensors, or {WITHOUT}",
    ),
    "a module before the head": (
        lambda: {
            **renamed(state(), fc="head", other="backbone."),
            "bottleneck.weight": torch.ones(512),
        },
        {},
        "its head head stands beside the network, and bottleneck.weight may stand between them; "
        f"{WITHOUT}",
    ),
    "pools of average and maximum": (
        lambda: {**state(), "fc.weight": torch.ones(7, 1024)},
        {},
        "its head takes 1024 values, twice the 512 features: those of an average pool and of a "
        f"maximum pool, as in fastai; the networks here only average; {WITHOUT}",
    ),
    "a head of other features": (
        lambda: {**state(), "fc.weight": torch.ones(7, 100)},
        {},
        f"its head's head takes 100 values, and the network gives 512 features; {WITHOUT}",
    ),
    "a module of its own": (
        lambda: {**state(), "cbam.weight": torch.ones(3)},
        {},
        "has cbam.weight, which is no part of a ResNet; if the answer does not depend on it, "
        "delete it from the state dict: del state['cbam.weight']",
    ),
    "regular weights beside a number": (
        lambda: {**state(), "epoch": 3},
        {},
        "holds 'epoch', which is not a tensor",
    ),
    "quantised": (
        lambda: {**state(), "fc._packed_params.dtype": torch.qint8},
        {},
        "has quantised weights, which no network here has; convert the float network that was "
        "quantised",
    ),
    "a small stem": (
        lambda: {**state(), "conv1.weight": torch.ones(64, 3, 3, 3)},
        {},
        "has a stem for small images, which no torchvision network has; use --from cifar",
    ),
    "a stem of 5x5": (
        lambda: {**state(), "conv1.weight": torch.ones(64, 3, 5, 5)},
        {},
        "a stem of 5x5 is not a ResNet's: 7x7 or 3x3",
    ),
    "option A": (
        lambda: {name: v for name, v in state().items() if "downsample" not in name},
        {},
        "option A, but its layout does not say on which side it pads; give --set "
        "shortcut_padding=both or --set shortcut_padding=end",
    ),
    "two channels": (
        lambda: {**state(), "conv1.weight": torch.ones(64, 2, 7, 7)},
        {},
        "its images have 2 channels; supported are 1, 3 and 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_refused_with_what_to_do(tmp_path: Path, case: str) -> None:
    content, options, expected = REFUSED[case]
    assert refusal(content(), tmp_path / "r.pth", **options) == expected


@pytest.mark.parametrize(("channels", "kind"), [(1, "grey"), (4, "rgba")])
@torch.inference_mode()
def test_networks_of_one_and_four_channels(tmp_path: Path, channels: int, kind: str) -> None:
    theirs, path = network(channels), tmp_path / "r.pth"
    asks = "its layout (torchvision) does not say how images were normalised; give --mean"
    assert refusal(theirs.state_dict(), path).startswith(asks)
    values = tuple(0.1 * number for number in range(1, channels + 1))
    made = converted(theirs.state_dict(), path, mean=values, std=values)
    assert (made.input.channels, made.input.mean) == (kind, values)
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = theirs(images)
    torch.testing.assert_close(made.network()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize(
    ("network_prefix", "mean", "std"),
    [
        ("1.", "0.mean", "0.std"),
        ("", "mean", "std"),
        ("module.model.", "module.normalizer.new_mean", "module.normalizer.new_std"),
        ("net.", "normalize.image_mean", "normalize.image_std"),
        ("backbone.", "data_preprocessor.mean", "data_preprocessor.std"),
    ],
)
def test_a_normalisation_in_the_file_is_the_networks(
    tmp_path: Path, network_prefix: str, mean: str, std: str, scale: int
) -> None:
    values = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]])[:, None, :, None, None]
    tensors = {**under(network_prefix), mean: values[0] * scale, std: values[1] * scale}
    made = converted(tensors, tmp_path / "r.pth")
    assert made.input.mean == pytest.approx((0.4, 0.5, 0.6))
    assert made.input.std == pytest.approx((0.2, 0.25, 0.3))
    assert notes(made) == [
        f"the file has a normalisation ({mean} and {std}): mean and std are its, unless you or a "
        "config say others"
    ]
    assert not {"mean", "std"} & made.provenance["assumed"].keys()
    assert libraries.difference(made.network(), network(), 64) == 0


def test_a_normalisation_that_makes_no_sense_is_left(tmp_path: Path) -> None:
    tensors = {**under("1."), "0.mean": torch.tensor([-1.0, 2, 3]), "0.std": torch.ones(3)}
    made = converted(tensors, tmp_path / "r.pth")
    assert made.input == IMAGENET
    assert notes(made) == [f"{LEFT}0 (2 tensors)"]


def test_what_the_user_says_of_the_normalisation_wins(tmp_path: Path) -> None:
    tensors = {**state(), "mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.ones(3)}
    made = converted(tensors, tmp_path / "r.pth", mean=IMAGENET.mean, std=IMAGENET.std)
    assert made.input == IMAGENET


def test_what_torchvisions_names_leave_open_is_listed(tmp_path: Path) -> None:
    made = converted(state(), tmp_path / "r.pth")
    assert made.provenance["assumed"] == {
        "size": 224,
        "resize": 256,
        "crop": "center",
        "interpolation": "bilinear",
        "channels": "rgb",
        "mean": list(IMAGENET.mean),
        "std": list(IMAGENET.std),
        "labels": "class 0 to class 6",
        "outputs": "exclusive",
        "stem_stride": 2,
        "pool": "max",
        "antialias": "none",
        "dilation": [],
    }
    message = refusal(state(), tmp_path / "r.pth", strict=True)
    assert message.startswith("neither the file nor an option says what --strict asks for; give it")


@pytest.mark.parametrize(
    ("changes", "numerics"),
    [
        ({"replace_stride_with_dilation": [False, False, True]}, {"dilation": [3]}),
        ({"replace_stride_with_dilation": [False, True, True]}, {"dilation": [2, 3]}),
    ],
)
def test_dilation_is_what_the_user_says(
    tmp_path: Path, changes: dict[str, Any], numerics: dict[str, Any]
) -> None:
    resnet = libraries.import_torchvision().models.resnet
    made = resnet.ResNet(resnet.Bottleneck, [1, 1, 2, 2], num_classes=7, **changes)
    theirs = libraries.randomised(made, 64)
    ours = converted(theirs.state_dict(), tmp_path / "r.pth", numerics=numerics)
    assert libraries.difference(ours.network(), theirs, 64) <= 1
    assert "dilation" not in ours.provenance["assumed"]


@pytest.mark.parametrize(
    ("format", "stem", "pool", "numerics"),
    [
        ("cifar", (3, 1, 1), nn.MaxPool2d(3, 2, 1), {"pool": "max"}),
        ("cifar", (3, 2, 1), nn.MaxPool2d(3, 2, 1), {"pool": "max", "stem_stride": 2}),
        ("cifar", (3, 1, 1), nn.Identity(), {}),
        ("torchvision", (7, 2, 3), nn.Identity(), {"pool": "none"}),
        ("torchvision", (7, 1, 3), nn.MaxPool2d(3, 2, 1), {"stem_stride": 1}),
    ],
    ids=["3x3 with a pool", "3x3 stride 2", "3x3", "7x7 without a pool", "7x7 stride 1"],
)
def test_stems_that_names_do_not_reveal(
    tmp_path: Path,
    format: str,
    stem: tuple[int, int, int],
    pool: nn.Module,
    numerics: dict[str, Any],
) -> None:
    theirs: Any = copy.deepcopy(network())
    theirs.conv1 = nn.Conv2d(3, 64, *stem, bias=False)
    theirs.maxpool = pool
    libraries.randomised(theirs, 64)
    options = {"mean": IMAGENET.mean, "std": IMAGENET.std, "numerics": numerics}
    ours = converted(theirs.state_dict(), tmp_path / "r.pth", format, **options)
    assert libraries.difference(ours.network(), theirs, 64) <= 1
    open_fields = {"pool", "stem_stride"} - numerics.keys()
    assert open_fields <= ours.provenance["assumed"].keys()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("style", ["akamaster", "chenyaofo", "kuangliu"])
def test_cifar_networks_are_found_behind_prefixes_and_with_other_heads(
    tmp_path: Path, style: reference.Style, wrapped: bool
) -> None:
    blocks = (1, 1, 1, 1) if style == "kuangliu" else (1, 2, 1)
    theirs: Any = reference.Network(style, reference.BasicBlock, blocks, 4, 10)
    libraries.randomised(theirs, 32)
    name = "fc" if style == "chenyaofo" else "linear"
    old = getattr(theirs, name)
    setattr(theirs, name, nn.Sequential(nn.Dropout(), old))
    tensors = theirs.eval().state_dict()
    if wrapped:
        tensors = {"model_ema": under("_orig_mod.net.", tensors), "model": under("net.", tensors)}
    made = converted(tensors, tmp_path / "r.pth", "cifar")
    assert libraries.difference(made.network(), theirs, 32) <= 1
    assert made.provenance["layout"].startswith(f"names as in {style}/")


def test_option_a_is_padded_as_the_user_says(tmp_path: Path) -> None:
    theirs = reference.Network("akamaster", reference.BasicBlock, (1, 1, 1), 4, 10)
    libraries.randomised(theirs, 32)
    tensors = renamed(theirs.state_dict(), linear="fc")
    path, values = tmp_path / "r.pth", {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert "give --set shortcut_padding=both" in refusal(tensors, path, "cifar", **values)
    padded = {"shortcut_padding": "both"}
    made = converted(tensors, path, "cifar", numerics=padded, **values)
    assert libraries.difference(made.network(), theirs, 32) <= 1


def test_tensors_inside_the_network_are_never_left(tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch):
        converted({**under("net."), "net.layer1.0.extra": torch.ones(2)}, tmp_path / "r.pth")
