"""Reads JAX's trees of arrays: from Flax's msgpack files and Orbax's checkpoint folders, and from
flat `.safetensors` and `.npz` files whose names are the paths in the tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError
from models.bundle_header import METADATA_KEY
from models.interchange import extras
from models.interchange.flax.foreign import SAVE, refuse_foreign
from models.interchange.imported import natural
from models.interchange.signatures import ZIP

Tree = Mapping[str, Any]
"""From names to arrays, trees, and any other values of the file."""

# Flax's types beyond msgpack's own.
ARRAY, SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"
OCDBT = "manifest.ocdbt"
ZARR = {".zarray": "zarr", "zarr.json": "zarr3"}
# Only training reads this, and it may be twice as large as the weights.
TRAINING = re.compile(r"(^|\.)opt_state(\.|$)")
# What `flax.training.checkpoints` calls its files.
LEGACY = re.compile(r"(checkpoint|ckpt)_?(\d+)")
# The arrays of modules, at the end of a path.
LEAF = re.compile(r"(.*[./])?(kernel|scale)([./](raw_)?value)?")


def weights_file(path: Path) -> Path:
    """`path`, or the one file of `flax.training.checkpoints` in a folder.

    Raises:
        BundleError: there are several.
    """
    if not path.is_dir():
        return path
    found = [entry for entry in path.iterdir() if LEGACY.fullmatch(entry.name)]
    files = sorted((e.name for e in found if e.is_file()), key=natural)
    if len(files) > 1:
        shown = ", ".join(files)
        raise BundleError(f"{path}: the folder holds several checkpoints, name one: {shown}")
    return path / files[0] if files else path


def read_tree(path: Path) -> Tree:
    """The tree in a file or an Orbax folder; bfloat16 becomes float32.

    Raises:
        BundleError: it is none of them or is damaged, or the library to read it is missing.
    """
    try:
        tree = _read_orbax(path) if path.is_dir() else _read_file(path)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    # Damage may raise any error.
    except Exception:  # noqa: BLE001
        raise BundleError(f"{path}: not a Flax checkpoint, or damaged; {SAVE}") from None
    if not isinstance(tree, dict):
        raise BundleError(f"{path}: not a Flax checkpoint: it holds no tree of arrays")
    return tree


def _read_file(path: Path) -> Any:
    refuse_foreign(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        return _read_safetensors(path)
    return _read_npz(path) if start.startswith(ZIP) else _read_msgpack(path)


def _read_safetensors(path: Path) -> Tree:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        if METADATA_KEY in (file.metadata() or {}):
            raise BundleError("a bundle already: serve it as it is")
        names = list(file.keys())
        _check_flat(names)
        return _nested({name: file.get_tensor(name).float().numpy() for name in names})


def _read_npz(path: Path) -> Tree:
    with np.load(path, allow_pickle=False) as file:
        _check_flat(file.files)
        return _nested({name: file[name] for name in file.files})


def _check_flat(names: list[str]) -> None:
    """Refuses files whose names are no paths to the arrays of Flax's modules."""
    if not any(map(LEAF.fullmatch, names)):
        if any(name.endswith(".weight") for name in names):
            raise BundleError(
                "a state dict of PyTorch: use --from torchvision, timm, cifar, torch_resnet or "
                "huggingface"
            )
        shown = ", ".join(names[:3]) or "nothing"
        raise BundleError(f"its names ({shown}) are no paths of a Flax tree; {SAVE}")


def _nested(arrays: Mapping[str, NDArray[Any]]) -> Tree:
    """The tree of arrays by their paths, with "/" or else "." between names."""
    separator = "/" if any("/" in name for name in arrays) else "."
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *parents, leaf = name.split(separator)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise BundleError(f"{name} lies within an array")
        node[leaf] = value
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
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in read.items():
        value = np.asarray(array.result())
        arrays[name] = value.astype(np.float32) if value.dtype.name == "bfloat16" else value
    return _nested(arrays)


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
        if folders:
            raise BundleError(f"the folder holds several checkpoints, name one: {shown}")
        if (path / "saved_model.pb").is_file():
            raise BundleError(f"a TensorFlow SavedModel, not a Flax checkpoint; {SAVE}")
        raise BundleError("not an Orbax checkpoint: the folder holds none")
    return folders[0]
