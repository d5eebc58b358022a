"""Heads of any linear layers give equal logits; others are refused by what they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.bundle import Bundle
from tests.support import libraries
from tests.support.checkpoints import (
    FEATURES,
    LEFT,
    WITHOUT,
    converted,
    network,
    notes,
    refusal,
    state,
    with_head,
)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


HEADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: linear(FEATURES, 7), ()),
    "no bias": (lambda: linear(FEATURES, 7, bias=False), ()),
    "in a sequence": (lambda: head(linear(FEATURES, 7)), ()),
    "dropout": (lambda: head(nn.Dropout(), linear(FEATURES, 7)), ()),
    "flattened, with dropout": (
        lambda: head(nn.Flatten(), nn.Dropout(), linear(FEATURES, 7, bias=False)),
        (),
    ),
    # The features are means of what a ReLU gives.
    "a ReLU of the features": (lambda: head(nn.ReLU(), linear(FEATURES, 7)), ()),
    "two layers": (lambda: head(linear(FEATURES, 32), nn.ReLU(), linear(32, 7)), (32,)),
    "two layers with dropout": (
        lambda: head(
            nn.Dropout(),
            linear(FEATURES, 32, bias=False),
            nn.ReLU(),
            nn.Dropout(),
            linear(32, 7, bias=False),
        ),
        (32,),
    ),
    "three layers": (
        lambda: head(linear(FEATURES, 32), nn.ReLU(), linear(32, 16), nn.ReLU(), linear(16, 7)),
        (32, 16),
    ),
    "a norm in front": (lambda: head(nn.BatchNorm1d(FEATURES), linear(FEATURES, 7)), ()),
    "a norm in front, then dropout": (
        lambda: head(nn.BatchNorm1d(FEATURES), nn.Dropout(), linear(FEATURES, 7)),
        (),
    ),
    "a norm behind": (lambda: head(linear(FEATURES, 7), nn.BatchNorm1d(7)), ()),
    "a norm without weights": (
        lambda: head(linear(FEATURES, 7, bias=False), nn.BatchNorm1d(7, affine=False)),
        (),
    ),
    "a norm before the ReLU": (
        lambda: head(
            linear(FEATURES, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), linear(32, 7)
        ),
        (32,),
    ),
    "a norm behind the ReLU, as fastai's": (
        lambda: head(
            nn.BatchNorm1d(FEATURES),
            nn.Dropout(),
            linear(FEATURES, 32, bias=False),
            nn.ReLU(),
            nn.BatchNorm1d(32),
            nn.Dropout(),
            linear(32, 7, bias=False),
        ),
        (32,),
    ),
    "two linear layers without a ReLU": (
        lambda: head(linear(FEATURES, 32), linear(32, 7)),
        (),
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_every_head_of_linear_layers_gives_equal_logits(tmp_path: Path, case: str) -> None:
    make, hidden = HEADS[case]
    theirs = with_head(make())
    made = converted(theirs.state_dict(), tmp_path / "r.pth")
    assert libraries.difference(made.network(), theirs, 64) <= 1
    assert made.architecture.head == hidden
    # What the file does not reveal is listed.
    assert made.provenance["assumed"].get("head") == (list(hidden) or None)
    assert any("ReLU between them is assumed" in note for note in notes(made)) == bool(hidden)


@pytest.mark.parametrize("where", ["fc1 and fc2", "beside the network", "two heads in one"])
def test_layers_with_names_are_in_the_order_of_their_widths(tmp_path: Path, where: str) -> None:
    theirs = with_head(head(linear(FEATURES, 32), nn.ReLU(), linear(32, 7)))
    names = {
        "fc1 and fc2": ("fc1.", "fc2."),
        "beside the network": ("classifier.0.", "classifier.2."),
        "two heads in one": ("fc.", "classifier."),
    }[where]
    other = "backbone." if where == "beside the network" else ""
    tensors = {
        (other + name if not name.startswith("fc") else name)
        .replace("fc.0.", names[0])
        .replace("fc.2.", names[1]): value
        for name, value in theirs.state_dict().items()
    }
    made = converted(tensors, tmp_path / "r.pth")
    assert libraries.difference(made.network(), theirs, 64) <= 1
    assert made.architecture.head == (32,)


ODD_HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "layer norm": (
        lambda: head(nn.LayerNorm(FEATURES), linear(FEATURES, 7)),
        "its head's head.0 has a weight of [512]: it is no linear layer",
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(linear(FEATURES, 7)),
        "its head's head has a normalised weight (weight_norm)",
    ),
    "PReLU": (
        lambda: head(linear(FEATURES, 32), nn.PReLU(), linear(32, 7)),
        "its head's head.1 has a weight of [1]: it is no linear layer",
    ),
    "a norm at the end, apart": (
        lambda: head(linear(FEATURES, 7), nn.ReLU(), nn.BatchNorm1d(7)),
        "its head ends in a normalisation (head.2) that is not directly behind a linear layer",
    ),
}


@pytest.mark.parametrize("case", ODD_HEADS)
def test_another_head_is_refused_by_what_it_is(tmp_path: Path, case: str) -> None:
    make, expected = ODD_HEADS[case]
    content = with_head(make()).state_dict()
    assert refusal(content, tmp_path / "r.pth") == f"{expected}; {WITHOUT}"
    # The way that the message names.
    made = converted(content, tmp_path / "r.pth", numerics={"num_classes": 0})
    assert_features_equal(made, network())


@torch.inference_mode()
def assert_features_equal(made: Bundle, theirs: nn.Module) -> None:
    backbone: Any = copy.deepcopy(theirs)
    backbone.fc = nn.Identity()
    assert made.labels == ()
    assert made.architecture.num_classes == 0
    assert libraries.difference(made.network(), backbone, 64) <= 1


@pytest.mark.parametrize("said_so", [True, False])
def test_a_network_without_a_head_has_features(tmp_path: Path, said_so: bool) -> None:
    content = {name: v for name, v in state().items() if said_so or not name.startswith("fc.")}
    options: Any = {"numerics": {"num_classes": 0}} if said_so else {}
    made = converted(content, tmp_path / "r.pth", **options)
    assert_features_equal(made, network())
    assert notes(made) == ([f"{LEFT}fc (2 tensors)"] if said_so else [])
    assert "labels" not in made.provenance["assumed"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [(), (32,)])
@torch.inference_mode()
def test_one_logit_becomes_two_classes(tmp_path: Path, hidden: tuple[int, ...], bias: bool) -> None:
    first = [linear(FEATURES, 32), nn.ReLU()] if hidden else []
    last = linear(32 if hidden else FEATURES, 1, bias=bias)
    theirs = with_head(head(*first, last))
    (tmp_path / "l.txt").write_text("defect\n")
    made = converted(theirs.state_dict(), tmp_path / "r.pth", labels=str(tmp_path / "l.txt"))
    assert made.labels == ("not defect", "defect")
    assert any(note.endswith("--outputs independent keeps one label") for note in notes(made))
    assert made.architecture.head == hidden
    images = libraries.images(64)
    logits = made.network()(images)
    assert (logits[:, 0] == 0).all()
    torch.testing.assert_close(logits[:, 1:], theirs(images), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits.softmax(1)[:, 1:], theirs(images).sigmoid())
