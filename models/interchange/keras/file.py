"""Reads Keras's weight and model files (`.h5`, `.weights.h5`, `.keras`) without running code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError
from models.interchange import extras
from models.interchange.imported import natural
from models.interchange.keras.foreign import refuse_archive, refuse_foreign

Arrays = Mapping[str, NDArray[Any]]
"""The arrays of a layer: `kernel`, `bias`, `gamma`, `beta`, `moving_mean`, `moving_variance`; and
`mean`, `variance`, `count` of a normalisation of images."""

NORM = ("gamma", "beta", "moving_mean", "moving_variance")
STATISTICS = ("mean", "variance", "count")
# The name of a model's list of layers in Keras 3, and in Keras 2.13 to 2.15.
LAYER_LISTS = ("layers", "_layer_checkpoint_dependencies")
COUNTED = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}


@dataclass(frozen=True)
class KerasFile:
    """`layers`: the layers in the file's order, with their arrays, if any.
    `model`: class and settings of the model, if the file contains the whole of it.
    `names`: of all layers, also of those without arrays, as far as the file has them."""

    layers: dict[str, Arrays]
    model: Mapping[str, Any] | None
    names: list[str]


def read_keras(path: Path) -> KerasFile:
    """The content of a file written by Keras 2 or 3.

    Raises:
        BundleError: it is not such a file or is damaged, or the library to read it is missing.
    """
    try:
        refuse_foreign(path)
        h5py = extras.load("h5py")
        config, source = None, path.open("rb")
        with source:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    refuse_archive(archive.namelist())
                    config = json.loads(archive.read("config.json"))
                    weights: Any = io.BytesIO(archive.read("model.weights.h5"))
            else:
                weights = path
        with h5py.File(weights, "r") as file:
            return _read(file, config)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        reason = error.strerror or "not an HDF5 file, or a damaged one"
        raise BundleError(f"{path}: {reason}") from None
    # Damage may raise any error.
    except Exception:  # noqa: BLE001
        raise BundleError(f"{path}: not a Keras file, or damaged; save the model again") from None


def _read(file: Any, config: Any) -> KerasFile:
    if "model_config" in file.attrs:
        config = json.loads(file.attrs["model_config"])
    if config and "layers" not in config["config"]:
        raise BundleError(
            f"a model of a class of its own ({config['class_name']}), whose structure is code that "
            "the file does not have: build the network from Sequential or "
            "keras.Model(inputs, outputs)"
        )
    weights = file.get("model_weights", file)
    if _texts(weights, "layer_names"):
        layers: dict[str, Arrays] = {}
        for name, found in _legacy_layers(weights, _models(config)):
            if layers.get(name) and found:
                raise BundleError(f"has two layers called {name}, in models within models")
            layers[name] = layers.get(name) or found
        return KerasFile(layers, config, list(layers))
    every = [entry for name in LAYER_LISTS if name in file for entry in _layers(file[name])]
    stored = [entry for entry in every if entry.arrays]
    if not stored:
        raise BundleError("not Keras weights: it lists no layers")
    named = all(entry.name for entry in stored)
    arrays = {entry.name if named else entry.key: entry.arrays for entry in stored}
    if len(arrays) < len(stored):
        raise BundleError("holds models within models, and not the names of their layers")
    names = [entry.name or entry.key for entry in every]
    if not config:
        return KerasFile(arrays, config, names)
    configs = dict(_configs(config))
    keys = {} if named else _counted(configs)
    return KerasFile(
        {name: arrays.get(keys.get(name, name), {}) for name in configs}, config, names
    )


def _texts(group: Any, name: str) -> list[str]:
    """A list of names; lists too long for HDF5 are split into numbered ones."""
    values = list(group.attrs.get(name, ()))
    for index in range(len(group.attrs)):
        values += list(group.attrs.get(f"{name}{index}", ()))
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _models(config: Any) -> set[str]:
    """The names of the models within a model."""
    every = config["config"]["layers"] if config else []
    return {layer["config"]["name"] for layer in every if "layers" in layer["config"]}


def _legacy_layers(group: Any, models: set[str]) -> Iterator[tuple[str, Arrays]]:
    for name in _texts(group, "layer_names"):
        arrays: dict[str, dict[str, NDArray[Any]]] = {name: {}}
        weights = {
            weight: weight.split(":")[0].split("/")
            for weight in _texts(group[name], "weight_names")
        }
        kinds = [parts[-1] for parts in weights.values()]
        # A nested model keeps all of its layers in one group.
        nested = name in models or len(set(kinds)) < len(kinds)
        for weight, parts in weights.items():
            layer = parts[-2] if nested and len(parts) > 1 else name
            arrays.setdefault(layer, {})[parts[-1]] = np.asarray(group[name][weight])
        yield from arrays.items()


@dataclass(frozen=True)
class _Stored:
    """A layer of Keras 3. `key`: its class and a number; `name`: its own, in later versions."""

    key: str
    name: str
    arrays: Arrays


def _layers(group: Any) -> Iterator[_Stored]:
    for key in sorted(group, key=natural):
        child = group[key]
        variables = child.get("vars", None)
        arrays = [np.asarray(variables[str(index)]) for index in range(len(variables or ()))]
        yield _Stored(key, str(variables and variables.attrs.get("name", "")), _named(arrays))
        for name in LAYER_LISTS:
            if name in child:
                yield from _layers(child[name])


def _named(arrays: list[NDArray[Any]]) -> Arrays:
    """Names numbered arrays by the order in which Keras creates them."""
    dimensions = [array.ndim for array in arrays]
    if len(arrays) == len(STATISTICS) and dimensions[2] == 0:
        return dict(zip(STATISTICS, arrays, strict=True))
    if not arrays:
        return {}
    if dimensions == [1, 1, 1, 1]:
        return dict(zip(NORM, arrays, strict=True))
    if dimensions[0] in (2, 4) and dimensions[1:] in ([], [1]):
        return dict(zip(("kernel", "bias"), arrays, strict=False))
    return {f"variable {index}": array for index, array in enumerate(arrays)}


def _configs(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for layer in node["config"]["layers"]:
        if "layers" in layer["config"]:
            yield from _configs(layer)
        else:
            config = layer["config"]
            yield config["name"], {**config, "class_name": layer["class_name"]}


def _counted(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The keys of layers in files without their names: Keras numbers each class."""
    counts: dict[str, int] = {}
    keys = {}
    for name, config in configs.items():
        if stored := COUNTED.get(config["class_name"]):
            count = counts.get(stored, 0)
            counts[stored] = count + 1
            keys[name] = f"{stored}_{count}" if count else stored
    return keys
