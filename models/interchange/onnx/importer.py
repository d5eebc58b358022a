"""Imports ONNX files: the model zoo's ResNets, and exports of networks like ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import BundleError, name_from
from models.interchange.extras import INSTALL
from models.interchange.imported import NORMALISATION, Imported, Said
from models.interchange.onnx import blocks
from models.interchange.onnx.graph import Reader
from models.preprocess import CIFAR, IMAGENET, InputSpec, PerChannel

MISSING = f"the package onnx is not installed: {INSTALL}"
# Protobuf's tags of the fields of a `ModelProto` after the first.
KEYS = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")
# The names of MXNet's Gluon, from which the model zoo's ResNets were exported.
GLUON = re.compile(r"resnetv\d+_dense\d+_fwd")
ZOO = replace(IMAGENET, crop="center_floor")


def read(path: Path, said: Said) -> Imported:
    """The network in an `.onnx` file, recognised by what its graph computes.

    External data is only read from the file's folder, and nothing is executed.

    Raises:
        BundleError: it cannot be read, or is not a plain ResNet; the message names the first node
            that does not fit.
    """
    try:
        model = _model(path)
        found = blocks.find(Reader(model).read(model.graph))
        described = {entry.key: entry.value for entry in model.metadata_props}
        name, labels, own, rest = _described(described, found.architecture.num_classes)
    except ImportError:
        raise BundleError(f"{path}: {MISSING}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    # Damage may raise any error.
    except Exception as error:  # noqa: BLE001
        raise BundleError(f"{path}: a damaged ONNX file ({type(error).__name__})") from None
    zoo = any(GLUON.fullmatch(output.name) for output in model.graph.output)
    layout = "ONNX model zoo" if zoo else "ONNX graph"
    if own and found.size not in (None, own.size):
        own = None  # The graph was changed, but its metadata was not.
    spec = own or _sized(ZOO if zoo else IMAGENET, found)
    mean, std = found.mean, found.std
    if own and (mean is None or std is None or _close(own, mean, std)):
        mean, std = own.mean, own.std
    elif zoo and mean is None:
        mean, std = ZOO.mean, ZOO.std
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Imported(
        layout=f"{layout}, without its softmax" if found.softmax else layout,
        tensors=found.tensors,
        architecture=found.architecture,
        spec=replace(spec, mean=mean, std=std) if mean and std else spec,
        asked=frozenset() if mean and std else NORMALISATION,
        name=name,
        labels=labels,
        provenance={"producer": producer} if producer else {},
        **rest,
    )


def begins(start: bytes) -> bool:
    """Whether a file may be ONNX: it begins with its IR version, followed by another field."""
    return (
        start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in KEYS and start[8:9] != b"{"
    )


def _model(path: Path) -> Any:
    """The file's `ModelProto`, with its external data and without functions."""
    import onnx
    from onnx import inliner

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    # Damage may raise any error.
    except Exception as error:  # noqa: BLE001
        raise BundleError(f"not an ONNX file ({type(error).__name__})") from None
    if not model.graph.node:
        raise BundleError("not an ONNX file: it holds no graph")
    _external(model, path.parent)
    if model.functions:
        model = inliner.inline_local_functions(model)
    return model


def _external(model: Any, folder: Path) -> None:
    """Reads tensors from external files, which must be in the same folder."""
    from onnx import TensorProto, external_data_helper

    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = (folder / where).resolve()
        if not where or not file.is_relative_to(folder.resolve()):
            raise BundleError(f"its external data {where!r} lies outside of its folder")
        if not file.is_file():
            raise BundleError(f"its external data {where} is missing")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        # Damaged offsets fail in many ways.
        except Exception as error:  # noqa: BLE001
            raise BundleError(
                f"its external data {where} cannot be read ({type(error).__name__})"
            ) from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    for tensor in _tensors_of_nodes(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BundleError("a constant within its graph lies in another file")


def _tensors_of_nodes(model: Any) -> Iterator[Any]:
    """The tensors in the nodes' attributes."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            for attribute in node.attribute:
                yield attribute.t
                yield from attribute.tensors


def _described(
    described: Mapping[str, str], classes: int
) -> tuple[str | None, tuple[str, ...] | None, InputSpec | None, dict[str, Any]]:
    """Name, labels, input specification and the rest of the metadata of our exports."""
    try:
        values = {key: json.loads(value) for key, value in described.items() if key in DESCRIBED}
        labels = values.pop("labels", None)
        rest: dict[str, Any] = {
            key: values.pop(key) for key in ("temperature", "card") if key in values
        }
        spec = InputSpec(**values) if "mean" in values and "size" in values else None
    except (ValueError, TypeError, RecursionError):
        return None, None, None, {}  # Metadata of another program.
    recorded = described.get("name", "")
    name = recorded if spec and recorded == name_from(recorded) else None
    fits = isinstance(labels, list) and len(labels) == classes
    ours = fits and spec is not None
    return name, (tuple(map(str, labels)) if fits else None), spec, (rest if ours else {})


def _sized(spec: InputSpec, found: blocks.Found) -> InputSpec:
    """`spec`, or CIFAR's for a small stem, at the size that the graph fixes."""
    if found.architecture.stem == "small":
        spec = CIFAR
    size = found.size or spec.height
    return replace(spec, size=size, resize=round(size * spec.box[0] / spec.height))


def _close(spec: InputSpec, mean: PerChannel, std: PerChannel) -> bool:
    """Whether a graph's normalisation equals that of its metadata, up to rounding."""
    return np.allclose(spec.mean, mean, atol=1e-6) and np.allclose(spec.std, std, rtol=1e-6)


DESCRIBED = {"labels", "temperature", "card", *(field.name for field in fields(InputSpec))}
