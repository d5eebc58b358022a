"""Values beside the weights are read as data; what could execute is named and refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.bundle import BundleError
from models.interchange.pytorch import pickles
from models.interchange.pytorch.checkpoint import read_checkpoint
from tests.support import libraries

SAVE = 'torch.save(model.state_dict(), "weights.pth")'
STATE = {"conv.weight": torch.arange(4.0).view(2, 2)}
BESIDE: dict[str, Any] = {
    "numpy scalar": np.float64(91.7),
    "numpy float32": np.float32(91.7),
    "numpy bool": np.bool_(True),
    "numpy array": np.arange(3),
    "numpy texts": np.array(["a", "bc"]),
    "numpy dtype": np.dtype("float32"),
    "datetime": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(seconds=3),
    "path": pathlib.PurePosixPath("a/b"),
    "own path": Path("a"),
    "namespace": types.SimpleNamespace(a=1),
    "arguments": argparse.Namespace(lr=0.1, out=Path("x")),
    "ordered": collections.OrderedDict(a=1),
    "default dictionary": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "queue": collections.deque([1, 2], maxlen=5),
    "counter": collections.Counter("aab"),
    "uuid": uuid.UUID(int=3),
    "decimal": decimal.Decimal("1.5"),
    "sets": ({1, 2}, frozenset([3])),
}


def saved(path: Path, content: Any, *, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", BESIDE)
def test_harmless_values_are_read(tmp_path: Path, case: str, zipped: bool) -> None:
    content = {"state_dict": STATE, "best": BESIDE[case]}
    read = read_checkpoint(saved(tmp_path / "r.pth", content, zipped=zipped)).tensors
    assert torch.equal(read["conv.weight"], STATE["conv.weight"])


def test_weights_in_a_default_dictionary_are_read(tmp_path: Path) -> None:
    state = collections.defaultdict(torch.Tensor, STATE)
    content: Any = collections.defaultdict(dict)
    content["model"] = state
    read = read_checkpoint(saved(tmp_path / "r.pth", content, zipped=True)).tensors
    assert torch.equal(read["conv.weight"], STATE["conv.weight"])


def test_nothing_that_may_be_asked_for_is_made() -> None:
    """What stands for a name takes any arguments and state, and does nothing with them."""
    assert set(pickles.STAND_INS.values()) == {pickles.Inert, pickles.PlainDict, pickles.PlainList}
    made = pickles.Inert(os.system, "x")
    made.__setstate__({"a": os.system})
    assert not vars(made)
    assert (pickles.PlainDict(os.system), pickles.PlainList([1])) == ({}, [])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_a_pickle_asks_for_is_named(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "r.pth", {**STATE, "x": fractions.Fraction(1, 2)}, zipped=zipped)
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: its pickle asks for fractions.Fraction, and nothing in a file is executed; save "
        f"the weights alone: {SAVE}"
    )


class Asks:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return self.value, ()


def test_of_many_names_the_first_are_shown(tmp_path: Path) -> None:
    asked = [Asks(each) for each in (os.getcwd, os.getpid, fractions.Fraction, os.getppid)]
    path = saved(tmp_path / "r.pth", {**STATE, "x": asked}, zipped=True)
    with pytest.raises(BundleError, match=r"asks for \w+\.getcwd, \w+\.getpid, fractions.Fraction"):
        read_checkpoint(path)
    with pytest.raises(BundleError, match="and 1 more, and nothing in a file is executed"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_whole_network_is_named_with_the_line_that_saves_its_weights(
    tmp_path: Path, inside: bool, zipped: bool
) -> None:
    network = libraries.import_torchvision().models.resnet18()
    content = {"model": network, "epoch": 3} if inside else network
    path = saved(tmp_path / "r.pth", content, zipped=zipped)
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: a whole network (torchvision.models.resnet.ResNet), not its weights, and nothing "
        f"in a file is executed; where the network is at hand, run {SAVE}"
    )


def test_a_network_of_torchs_own_modules_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.pth", nn.Linear(2, 2), zipped=True)
    with pytest.raises(
        BundleError, match=r"a whole network \(torch\.nn\.modules\.linear\.Linear\)"
    ):
        read_checkpoint(path)


def test_the_names_are_allowed_only_while_a_file_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.pth", {"state_dict": STATE, "x": Path("a")}, zipped=True)
    read_checkpoint(path)
    assert not set(map(str, torch.serialization.get_safe_globals())) & set(
        map(str, pickles.ALLOWED)
    )
