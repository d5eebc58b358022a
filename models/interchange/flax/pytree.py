"""Reads JAX's trees of arrays, from Flax's msgpack files and Orbax's checkpoint folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError
from models.interchange import extras

Tree = Mapping[str, Any]
"""From names to arrays, trees, and any other values of the file."""

# Flax's types beyond msgpack's own.
ARRAY, SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"
OCDBT = "manifest.ocdbt"
ZARR = {".zarray": "zarr", "zarr.json": "zarr3"}
# Only training reads this, and it may be twice as large as the weights.
TRAINING = re.compile(r"(^|\.)opt_state(\.|$)")


def read_tree(path: Path) -> Tree:
    """The tree in a msgpack file or an Orbax folder; bfloat16 becomes float32.

    Raises:
        BundleError: it is neither or is damaged, or the library to read it is missing.
    """
    try:
        tree = _read_orbax(path) if path.is_dir() else _read_msgpack(path)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    # Damage may raise any error.
    except Exception as error:  # noqa: BLE001
        raise BundleError(f"{path}: not a Flax checkpoint ({type(error).__name__})") from None
    if not isinstance(tree, dict):
        raise BundleError(f"{path}: not a Flax checkpoint: it holds no tree of arrays")
    return tree


def _read_msgpack(path: Path) -> Any:
    msgpack = extras.load("msgpack")

    def decoded(code: int, data: bytes) -> Any:
        if code not in (ARRAY, SCALAR):
            return None
        shape, dtype, buffer = msgpack.unpackb(data)
        return _array(shape, dtype, buffer)

    content = path.read_bytes()
    return _joined(msgpack.unpackb(content, ext_hook=decoded, strict_map_key=False))


def _array(shape: list[int], dtype: str, buffer: bytes) -> NDArray[Any]:
    if dtype == "bfloat16":
        # The upper half of a float32.
        upper = np.frombuffer(buffer, "<u2").astype(np.uint32)
        return (upper << 16).view(np.float32).reshape(shape)
    return np.frombuffer(buffer, np.dtype(dtype)).reshape(shape)


def _joined(tree: Any) -> Any:
    """`tree` with chunked arrays joined, and all names as strings."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED in tree:
        shape, chunks = (
            [tree[name][str(index)] for index in range(len(tree[name]))]
            for name in ("shape", "chunks")
        )
        return np.concatenate(chunks).reshape(shape)
    return {str(name): _joined(value) for name, value in tree.items()}


def _read_orbax(path: Path) -> Tree:
    """The arrays of an Orbax checkpoint, without scalars and without the optimizer's state."""
    folder = _orbax_folder(path)
    tensorstore = extras.load("tensorstore")
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    ocdbt = (folder / OCDBT).is_file()

    def store(name: str) -> dict[str, Any]:
        if ocdbt:
            return {"driver": "ocdbt", "base": base, "path": name}
        return {"driver": "file", "path": f"{base['path']}{name}"}

    listed = tensorstore.KvStore.open(store("")).result().list().result()
    drivers = {}
    for key in sorted(entry.decode() for entry in listed):
        name, _, end = key.rpartition("/")
        if end in ZARR and not TRAINING.search(name):
            drivers[name] = ZARR[end]
    opened = {
        name: tensorstore.open({"driver": driver, "kvstore": store(f"{name}/")}, read=True)
        for name, driver in drivers.items()
    }
    read = {name: array.result().read() for name, array in opened.items()}
    tree: dict[str, Any] = {}
    for name, array in read.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        value = np.asarray(array.result())
        node[leaf] = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    return tree


def _orbax_folder(path: Path) -> Path:
    """`path`, or the one checkpoint in it: a manager makes a folder for each step and item."""
    manifests = {
        manifest.parent
        for manifest in path.rglob(OCDBT)
        # What each process wrote, before it was joined.
        if not manifest.parent.name.startswith("ocdbt.process_")
    }
    plain = {file.parent.parent for end in ZARR for file in path.rglob(f"*/{end}") if not manifests}
    folders = sorted(manifests or plain)
    if path in folders:
        return path
    if len(folders) != 1:
        shown = ", ".join(str(folder.relative_to(path)) for folder in folders)
        reason = f"holds several checkpoints, name one: {shown}" if folders else "holds none"
        raise BundleError(f"not an Orbax checkpoint: the folder {reason}")
    return folders[0]
