"""Archives of torch 0.1. Today's torch still reads them, if it may execute: both must agree."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.bundle import BundleError
from models.interchange import convert
from models.interchange.pytorch.checkpoint import read_checkpoint
from tests.support import libraries

STORAGES: dict[torch.dtype, Any] = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.int64: torch.LongStorage,
}
TYPES: dict[torch.dtype, Any] = {
    torch.float32: torch.FloatTensor,
    torch.float64: torch.DoubleTensor,
    torch.int64: torch.LongTensor,
}


class ById(pickle.Pickler):
    """Writes tensors by their key, as torch 0.1 does."""

    def __init__(self, file: io.BytesIO, keys: dict[int, int]) -> None:
        super().__init__(file, protocol=2)
        self.keys = keys

    def persistent_id(self, value: Any) -> Any:
        return str(self.keys[id(value)]) if isinstance(value, Tensor) else None


def written(path: Path, state: dict[str, Any], **members: bytes) -> Path:
    """An archive as torch 0.1 writes it; `members` replace what is in it."""
    tensors = {id(value): value for value in state.values() if isinstance(value, Tensor)}
    keys = {each: 1000 + number for number, each in enumerate(tensors)}
    storages, views = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, protocol=2)
    pickle.dump(len(tensors), views, protocol=2)
    for each, value in tensors.items():
        key = keys[each]
        flat = value.untyped_storage()
        count = flat.nbytes() // value.element_size()
        pickle.dump((key + 5000, "cpu", STORAGES[value.dtype]), storages, protocol=2)
        raw: bytes = torch.empty(0, dtype=torch.uint8).set_(flat).numpy().tobytes()
        storages.write(struct.pack("<q", count) + raw)
        pickle.dump((key, key + 5000, TYPES[value.dtype]), views, protocol=2)
        sizes = struct.pack(f"<{value.ndim}q", *value.shape)
        strides = struct.pack(f"<{value.ndim}q", *value.stride())
        offset = struct.pack("<q", value.storage_offset())
        views.write(struct.pack("<i4x", value.ndim) + sizes + strides + offset)
    pickle.dump([], storages, protocol=2)
    content = io.BytesIO()
    ById(content, keys).dump(state)
    files = {
        "sys_info": pickle.dumps({"protocol_version": 1000}, protocol=2),
        "pickle": content.getvalue(),
        "tensors": views.getvalue(),
        "storages": storages.getvalue(),
    }
    with tarfile.open(path, "w") as archive:
        for name, body in (files | members).items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def state() -> OrderedDict[str, Any]:
    whole = torch.arange(24.0).view(4, 6)
    return OrderedDict(
        {
            "conv.weight": torch.randn(2, 3, 3, 3),
            "view": whole[1:3, ::2],
            "double": torch.ones(2, 2, dtype=torch.float64),
            "count": torch.tensor([7]),
        }
    )


def test_it_is_read_as_torch_itself_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "old.pth", state())
    theirs = torch.load(path, weights_only=False)  # Written above: it may be trusted.
    ours = read_checkpoint(path).tensors
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value.float() if value.is_floating_point() else value)


def test_an_old_network_gives_equal_logits(tmp_path: Path) -> None:
    resnet = libraries.import_torchvision().models.resnet
    theirs = libraries.randomised(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7), 64)
    old = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    made = convert.convert("torchvision", written(tmp_path / "resnet.pth", old))
    assert libraries.difference(made.network(), theirs, 64) == 0


class Runs:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("member", ["pickle", "tensors", "storages"])
def test_nothing_in_it_is_executed(tmp_path: Path, member: str) -> None:
    evil = pickle.dumps(Runs(tmp_path / "made"), protocol=2)
    path = written(tmp_path / "old.pth", state(), **{member: evil})
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == (
        f"{path}: its pickle asks for {os.mkdir.__module__}.mkdir, and nothing in a file is "
        'executed; save the weights alone: torch.save(model.state_dict(), "weights.pth")'
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("storages", b""),
        ("storages", pickle.dumps(3)),
        ("tensors", pickle.dumps(1) + pickle.dumps((1, 2, None))),
        ("tensors", pickle.dumps(1) + pickle.dumps((1, 6000, None)) + struct.pack("<i4x", 999)),
        (
            "tensors",
            pickle.dumps(1) + pickle.dumps((1, 6000, None)) + struct.pack("<i4x3q", 1, 9999, 1, 0),
        ),
        ("pickle", b"garbage"),
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, member: str, content: bytes) -> None:
    path = written(tmp_path / "old.pth", state(), **{member: content})
    with pytest.raises(BundleError, match="not a PyTorch checkpoint of plain tensors"):
        read_checkpoint(path)
