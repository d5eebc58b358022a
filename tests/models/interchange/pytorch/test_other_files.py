"""A file that is no checkpoint is named, with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.bundle import BundleError
from models.interchange.pytorch import other_files
from models.interchange.pytorch.checkpoint import read_checkpoint

UNPACK = "unpack it first, and convert the checkpoint in it"
STATE = {"conv.weight": torch.ones(2, 2)}


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    return buffer.getvalue()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def in_tar() -> bytes:
    buffer, content = io.BytesIO(), checkpoint()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("model.pth")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    jit: Any = torch.jit
    jit.save(jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def program() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), buffer)
    return buffer.getvalue()


CASES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty; download or save it again"),
    "cut off": (
        lambda: checkpoint()[:-40],
        "cut off; download or save it again",
    ),
    "web page": (
        lambda: b"\n<!DOCTYPE html><html><body>Log in</body></html>",
        "a web page, not a checkpoint; the download failed or asked to log in: download it again",
    ),
    "JSON": (
        lambda: b'{"architecture": "resnet18"}',
        "JSON, not a checkpoint; give the file that holds the weights",
    ),
    "Git LFS": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "a Git LFS pointer, not the file itself; run git lfs pull",
    ),
    "gzip": (lambda: gzip.compress(checkpoint()), f"compressed (gzip); {UNPACK}"),
    "tar.gz": (lambda: gzip.compress(in_tar()), f"compressed (gzip); {UNPACK}"),
    "bzip2": (lambda: bz2.compress(checkpoint()), f"compressed (bzip2); {UNPACK}"),
    "xz": (lambda: lzma.compress(checkpoint()), f"compressed (xz); {UNPACK}"),
    "tar": (in_tar, f"a tar archive (model.pth); {UNPACK}"),
    "zip": (
        lambda: zipped(**{"a.pth": checkpoint(), "b": b"", "c": b"", "d": b""}),
        f"a zip archive (a.pth, b, c, ...); {UNPACK}",
    ),
    "NumPy": (
        arrays,
        "NumPy arrays (.npz), not a PyTorch checkpoint; save the weights with "
        'torch.save(model.state_dict(), "weights.pth")',
    ),
    "Keras": (
        lambda: zipped(**{"config.json": b"{}", "model.weights.h5": b""}),
        "a Keras model, not a PyTorch checkpoint; use --from keras",
    ),
    "HDF5": (
        lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
        "an HDF5 file, not a PyTorch checkpoint; use --from keras",
    ),
    "TorchScript": (
        script,
        "TorchScript, and nothing in a file is executed; save its weights: "
        'torch.save(torch.jit.load("model.pth").state_dict(), "weights.pth")',
    ),
    "torch.export": (
        program,
        "a program of torch.export, not a state dict; save its weights: "
        'torch.save(dict(torch.export.load("model.pth").state_dict), "weights.pth")',
    ),
    "pickle": (
        lambda: pickle.dumps(STATE, 4),
        "a pickle that torch.save did not write, and nothing in a file is executed; save the "
        'weights: torch.save(model.state_dict(), "weights.pth")',
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", CASES)
def test_what_it_is_and_what_to_do(tmp_path: Path, case: str) -> None:
    content, expected = CASES[case]
    path = tmp_path / "model.pth"
    path.write_bytes(content())
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("program_file", [False, True], ids=["TorchScript", "torch.export"])
def test_the_line_of_code_in_a_refusal_saves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program_file: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("model.pt2" if program_file else "model.pth")
    path.write_bytes(program() if program_file else script())
    with pytest.raises(BundleError) as caught:
        read_checkpoint(path)
    exec(str(caught.value).partition("weights: ")[2], {"torch": torch})
    assert read_checkpoint(tmp_path / "weights.pth").tensors.keys() == {"weight", "bias"}


@pytest.mark.parametrize("zipped_file", [True, False])
def test_checkpoints_are_not_taken_for_something_else(tmp_path: Path, zipped_file: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped_file)
    assert other_files.described(path) is None
