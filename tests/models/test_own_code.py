from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from models import bundle, own_code
from models.blocks import BasicBlock
from models.bundle import BundleError
from models.resnet import ResNet
from tests.support import tiny
from tests.support.own_blocks import Cosine, Plain, Squeezed

MODULE = "tests.support.own_blocks"
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def own(block: type[nn.Module] | None = Squeezed, head: nn.Module | None = None) -> ResNet:
    """A tiny network of one's own code, in evaluation mode."""
    network = ResNet(tiny.ARCHITECTURE, block=block)  # type: ignore[arg-type]
    if head is not None:
        network.set_head(head)
    return tiny.randomised(network).eval()


def written(network: ResNet, path: Path, classes: int = 10) -> Path:
    names = [f"class {index}" for index in range(classes)]
    models.write(models.from_network(network, name="own", input=tiny.INPUT, labels=names), path)
    return path


@pytest.mark.parametrize("allow", [[f"{MODULE}:Squeezed", f"{MODULE}:Cosine"], [MODULE]])
def test_own_blocks_and_heads_compute_the_same_when_they_are_allowed(
    tmp_path: Path, allow: list[str]
) -> None:
    network = own(Squeezed, Cosine(8, 4))
    path = written(network, tmp_path / "own.safetensors", 4)
    state = torch.get_rng_state()
    loaded = models.load(path, allow=allow)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers go on"
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    found = models.read(path, allow=allow)
    assert (found.block, found.head) == (f"{MODULE}:Squeezed", f"{MODULE}:Cosine")
    assert found.variant is None
    again = written(found.network(), tmp_path / "again.safetensors", 4)
    assert again.read_bytes() == path.read_bytes()


def test_what_is_not_allowed_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('it ran')")
    made = bundle.read(written(own(), tmp_path / "x.safetensors"), allow=[MODULE])
    trapped = replace(made, block="trap:Block")
    sys.path.insert(0, str(tmp_path))
    try:
        for allow in ([], [MODULE], ["trap.sub"], ["tra"], ["trap:Other"], "xtrap:Blocks"):
            with pytest.raises(BundleError, match="only imported if you allow it: by --allow-code"):
                trapped.allowing(allow)
        assert "trap" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


def test_a_refusal_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    path = written(own(), tmp_path / "own.safetensors")
    for read in (models.load, models.read, bundle.read):
        with pytest.raises(BundleError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: its block is code, {MODULE}:Squeezed, which is only imported if you allow "
            f"it: by --allow-code {MODULE}:Squeezed, the setting allow_code, or in Python "
            f"allow=['{MODULE}:Squeezed']"
        )
    unread = bundle.read(path, allow=None)
    assert unread.own_code == (f"{MODULE}:Squeezed",)
    for use in (unread.network, unread.skeleton, unread.classifier):
        with pytest.raises(ValueError, match="only imported if you allow it"):
            use()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.at.all:Block", "cannot be imported (ModuleNotFoundError"),
        (f"{MODULE}:Missing", "cannot be imported (AttributeError"),
        (f"{MODULE}:BasicBlock", f"is not defined in {MODULE}"),
        (f"{MODULE}:torch.hub.load", f"is not defined in {MODULE}"),
        (f"{MODULE}:Cosine", "makes no network: TypeError"),
        (f"{MODULE}:Plain", "weights do not fit"),
    ],
)
def test_code_that_does_not_fit_is_refused_in_one_line(path: str, words: str) -> None:
    made = models.from_network(own(), name="x", input=tiny.INPUT, labels=["x"] * 10)
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as caught:
        replace(made, block=path, code=own_code.BUILT_IN).allowing([path])
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["block", "a:b:c", "a/b:C", "a:1", 3, "a:" + "b" * 200])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(BundleError, match="block must be an import path such as"):
        replace(tiny.made_bundle(), block=path, variant=None)


def test_a_class_that_cannot_be_imported_by_name_is_refused() -> None:
    class Local(BasicBlock):
        pass

    with pytest.raises(BundleError, match=r"Local cannot be imported: define the block as a class"):
        models.from_network(own(Local), name="x", input=tiny.INPUT, labels=["x"] * 10)


class Loud(Cosine):
    """Its scale is no tensor, so that the bundle would lose it."""


def test_a_head_that_other_arguments_made_is_refused() -> None:
    network = own(Plain, Loud(8, 10, scale=3.0))
    with pytest.raises(BundleError, match="computes something else than this one"):
        models.from_network(network, name="x", input=tiny.INPUT, labels=["x"] * 10)
    assert not network.training


class Maps(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, None, None]


def test_a_head_without_logits_is_refused() -> None:
    with pytest.raises(BundleError, match=r"to logits .* it gives \[2, 8, 1, 1\]"):
        models.from_network(own(None, Maps(8, 8)), name="x", input=tiny.INPUT, labels=["x"] * 8)


def test_the_built_in_block_given_by_hand_is_no_code_of_ones_own() -> None:
    made = models.from_network(own(BasicBlock), name="x", input=tiny.INPUT, labels=["x"] * 10)
    assert made.own_code == ()


def test_a_network_of_own_code_is_counted() -> None:
    network = own()
    assert models.count_macs(network, (8, 16)) == 2 * models.count_macs(network, 8) - 10 * 8 - (
        4 * 4 + 8 * 8
    )


def test_a_block_without_a_name_is_refused_for_that() -> None:
    network = ResNet(tiny.ARCHITECTURE, block=functools.partial(Squeezed))
    with pytest.raises(BundleError, match=r"functools:partial\(\) cannot be imported: define"):
        models.from_network(network, name="x", input=tiny.INPUT, labels=["x"] * 10)
