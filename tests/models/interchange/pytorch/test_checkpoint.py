"""Checkpoints are read as data, or refused with one line."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from models.bundle import BundleError
from models.interchange.pytorch.checkpoint import read_checkpoint, weights_file
from models.interchange.pytorch.pickles import SAVE

PLAIN = OrderedDict(
    {"conv.weight": torch.arange(6.0).view(2, 3), "bn.num_batches_tracked": torch.tensor(7)}
)


def saved(tmp_path: Path, content: Any, *, zipped: bool = True) -> Path:
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    return read_checkpoint(path).tensors


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name])
        for name in ours
    )


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_from_both_of_torchs_file_formats(
    tmp_path: Path, zipped: bool
) -> None:
    assert equal(tensors(saved(tmp_path, PLAIN, zipped=zipped)), PLAIN)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_common_wrappers_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    content = {wrapper: PLAIN, "epoch": 200, "best_prec1": 91.7, "optimizer": {"state": {}}}
    assert equal(tensors(saved(tmp_path, content)), PLAIN)


def test_a_wrapper_in_a_wrapper_is_taken_off_too(tmp_path: Path) -> None:
    content = {"state_dict": {"net": PLAIN}, "epoch": 1}
    assert equal(tensors(saved(tmp_path, content)), PLAIN)


def test_lower_precision_becomes_float32_and_counters_stay(tmp_path: Path) -> None:
    low = {
        "half": torch.tensor([1.5]).half(),
        "bfloat": torch.tensor([2.5]).bfloat16(),
        "double": torch.tensor([3.5]).double(),
        "count": torch.tensor(3),
    }
    read = tensors(saved(tmp_path, low))
    expected = {"half": [1.5], "bfloat": [2.5], "double": [3.5]}
    assert {name: read[name].tolist() for name in expected} == expected
    assert all(read[name].dtype == torch.float32 for name in expected)
    assert read["count"].dtype == torch.int64


REMEDY = f"save the weights: {SAVE}"
NONE = "holds no state dict; its entries are"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], f"holds no state dict; {REMEDY}"),
        ({}, f"holds no state dict; {REMEDY}"),
        (
            {"state_dict": {}},
            f"{NONE} 'state_dict', and none holds tensors; {REMEDY}",
        ),
        (torch.ones(2), f"holds no state dict; {REMEDY}"),
        ({**PLAIN, "epoch": 3}, "holds 'epoch', which is not a tensor"),
        ({3: torch.ones(1)}, f"{NONE} 3, and none holds tensors; {REMEDY}"),
        (
            {"weight": [1.0, 2.0]},
            f"{NONE} 'weight', and none holds tensors; {REMEDY}",
        ),
    ],
    ids=str,
)
def test_what_holds_no_tensors_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    assert refusal(saved(tmp_path, content)) == message


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickled_object_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    made = tmp_path / "made"
    content = {**PLAIN, "evil": Runs(made)}
    path = saved(tmp_path, content, zipped=form == "zip")
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    asks = f"its pickle asks for {os.mkdir.__module__}.mkdir, and nothing in a file is executed; "
    if form == "pickle":
        asks = "a pickle that torch.save did not write, and nothing in a file is executed; "
    assert refusal(path).startswith(asks)
    assert refusal(path).endswith('torch.save(model.state_dict(), "weights.pth")')
    assert not made.exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    assert refusal(path) == "No such file or directory"
    path.mkdir()
    assert refusal(path) == "Is a directory"
    path.rmdir()
    for content in (b"\0" * 64, b"\xff\xd8\xff", b"hello world\n"):
        path.write_bytes(content)
        assert refusal(path).startswith("not a PyTorch checkpoint of plain tensors, or damaged; ")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("folder", [True, False])
def test_the_files_of_an_index_are_one_state_dict(tmp_path: Path, name: str, folder: bool) -> None:
    index = sharded(tmp_path, name)
    assert equal(tensors(weights_file(tmp_path) if folder else index), PLAIN)


def sharded(folder: Path, name: str) -> Path:
    stem, suffix = name.split(".")
    files = {}
    for number, (key, value) in enumerate(PLAIN.items(), 1):
        part = f"{stem}-0000{number}-of-00002.{suffix}"
        save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
        save({key: value}, folder / part)
        files[key] = part
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "an index without a weight_map"),
        (
            {"a": "none.bin"},
            "an index that names none.bin, which is not beside it; download it too",
        ),
        ({"a": "../x.bin"}, "an index that names '../x.bin', which is no file beside it"),
        ({"a": "/etc/x"}, "an index that names '/etc/x', which is no file beside it"),
        (
            {"a": "model.safetensors.index.json"},
            "an index that names 'model.safetensors.index.json', which is no file beside it",
        ),
        ({"bn.bias": "model-00001-of-00002.safetensors"}, "its parts lack bn.bias"),
    ],
    ids=str,
)
def test_an_index_of_other_files_is_refused(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    index = sharded(tmp_path, "model.safetensors")
    index.write_text(json.dumps({"weight_map": files}))
    assert refusal(index) == message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, PLAIN, zipped=zipped)
    whole = path.read_bytes()
    choose = random.Random(0)
    for offset in choose.sample(range(len(whole)), min(300, len(whole))):
        changed = bytes([whole[offset] ^ (1 << choose.randrange(8))])
        for content in (whole[:offset], whole[:offset] + changed + whole[offset + 1 :]):
            path.write_bytes(content)
            try:
                read_checkpoint(path)
            except BundleError:
                refusal(path)


def test_a_refusal_does_not_advise_to_run_the_file(tmp_path: Path) -> None:
    for content in ({"evil": Runs(tmp_path / "made")}, nn.Linear(2, 2)):
        message = refusal(saved(tmp_path, content))
        assert "weights_only" not in message
        assert "two options" not in message
        assert message.isprintable(), "no control characters"
