"""Files that are no trees of arrays are named, with the way to make one."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from models import bundle
from models.bundle import BundleError
from models.interchange import convert
from tests.support import tiny

SAVE = 'write `open("weights.msgpack", "wb").write(flax.serialization.to_bytes(variables))`'


def refusal(path: Path) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.convert("flax", path)
    prefix, _, reason = str(caught.value).partition(": ")
    assert prefix == str(path)
    return reason


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"params": {"kernel": np.ones(3)}}, protocol))
    reason = refusal(path)
    assert reason.startswith("a pickle, which is code, and nothing in a file is executed")
    assert SAVE in reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file: Keras writes these; use --from keras"),
        (b"\x1f\x8b\x08" + bytes(8), "compressed by gzip: unpack it first"),
        (b'{"params": {}}', "text, not weights: name the file or the folder that holds the arrays"),
        (b"<!DOCTYPE html>", "text, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(8), "a zip file, cut off: download or save it again"),
        (b"\x93NUMPY\x01\x00" + bytes(8), "one array of NumPy"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    assert refusal(path).startswith(reason)


def test_what_is_no_flax_tree_is_named_with_the_way(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\xc1 no msgpack")
    assert SAVE in refusal(path)


def test_checkpoints_and_bundles_of_other_libraries_are_named(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth").startswith("a PyTorch checkpoint: use --from torchvision")
    arrays = {"conv1.weight": np.ones((2, 2), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "b.safetensors")
    assert refusal(tmp_path / "b.safetensors").startswith("a state dict of PyTorch")
    bundle.write(tiny.made_bundle(), tmp_path / "c.safetensors")
    assert refusal(tmp_path / "c.safetensors") == "a bundle already: serve it as it is"


def test_flat_files_without_paths_are_refused_with_the_way(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(file, np.ones(3), np.ones(4))
    reason = refusal(tmp_path / "a.npz")
    assert reason.startswith("its names (arr_0, arr_1) are no paths of a Flax tree")
    assert SAVE in reason


def test_objects_in_npz_files_are_not_unpickled(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        objects: Any = {"params/conv/kernel": np.array([{}], object)}
        np.savez(file, **objects)
    assert "not a Flax checkpoint, or damaged" in refusal(tmp_path / "a.npz")


def test_other_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.msgpack", b"\x80")
    assert refusal(path) == "a zip file: unpack it first"


def test_a_saved_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    assert refusal(tmp_path).startswith("a TensorFlow SavedModel, not a Flax checkpoint")
