"""Checkpoints that torch 0.1 wrote, which are tar archives; read without executing code.

The archive has three members of pickles and binary data. `storages`: their count, and for each its
key, device and type, its length as int64, and its values; then the views of other storages.
`tensors`: their count, and for each its key, storage and type, then its dimensions, sizes, strides
and offset. `pickle`: the saved object, where a tensor is the key of one of those.
"""

from __future__ import annotations

import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from models.interchange.pytorch.pickles import SAVE, Refused

MEMBERS = {"storages", "tensors", "pickle"}
KINDS = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
}
MOST_DIMENSIONS = 16


class Parameter:
    """A parameter as torch 0.1 pickled it: around its tensor, or with it in its state."""

    def __init__(self, data: Any = None, *_: Any) -> None:
        self.data = data

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            self.data = state[0]


class Reader(pickle.Unpickler):
    """Makes ordered dictionaries and `Parameter`, and nothing else."""

    def __init__(self, file: IO[bytes], tensors: dict[str, Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin-1")
        self.tensors = tensors or {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch.nn.parameter", "Parameter"):
            return Parameter
        for suffix in ("Storage", "Tensor"):
            if module in ("torch", "torch.cuda") and name.removesuffix(suffix) in KINDS:
                return KINDS[name.removesuffix(suffix)]  # A text: it cannot be called.
        raise Refused(
            f"its pickle asks for {module}.{name}, and nothing in a file is executed; save the "
            f"weights alone: {SAVE}"
        )

    def persistent_load(self, saved: Any) -> Any:
        return self.tensors[str(saved)]


def members(path: Path) -> list[str]:
    """The names in a tar archive, in order; [] if the file is none."""
    try:
        with tarfile.open(path, "r:") as archive:
            return archive.getnames()
    except (tarfile.TarError, OSError):
        return []


def read(path: Path) -> Any:
    """What the archive holds, as CPU tensors.

    Raises:
        Refused: it asks for anything else than tensors.
        Exception: any, where the file is damaged.
    """
    with tarfile.open(path, "r:") as archive:

        def member(name: str) -> IO[bytes]:
            return cast("IO[bytes]", archive.extractfile(name))

        with member("storages") as file:
            storages = _storages(file)
        with member("tensors") as file:
            tensors = _tensors(file, storages)
        with member("pickle") as file:
            return _plain(Reader(file, tensors).load())


def _plain(value: Any) -> Any:
    if isinstance(value, Parameter):
        return value.data
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _storages(file: IO[bytes]) -> dict[str, Tensor]:
    storages: dict[str, Tensor] = {}
    for _ in range(Reader(file).load()):
        key, _device, kind = Reader(file).load()
        (count,) = struct.unpack("<q", file.read(8))
        dtype = np.dtype(kind)
        content = file.read(count * dtype.itemsize)
        storages[str(key)] = torch.from_numpy(np.frombuffer(content, dtype, count).copy())
    for target, root, offset, count in Reader(file).load():
        storages[str(target)] = storages[str(root)][offset : offset + count]
    return storages


def _tensors(file: IO[bytes], storages: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for _ in range(Reader(file).load()):
        key, storage, _kind = Reader(file).load()
        (dimensions,) = struct.unpack("<i4x", file.read(8))
        if not 0 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{dimensions} dimensions")
        form = f"<{dimensions}q"
        size = struct.unpack(form, file.read(8 * dimensions))
        stride = struct.unpack(form, file.read(8 * dimensions))
        (offset,) = struct.unpack("<q", file.read(8))
        # Raises if it would reach beyond the storage.
        tensors[str(key)] = storages[str(storage)].as_strided(size, stride, offset).clone()
    return tensors
