"""Imports ONNX files: the model zoo's ResNets, and exports of networks like ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from models import labels as label_files
from models.architecture import Architecture
from models.bundle import BundleError
from models.classifier import Outputs
from models.extras import install
from models.interchange.imported import INPUT, NORMALISATION, NOTHING, STRUCTURE, Imported, Said
from models.interchange.onnx import blocks, reader
from models.interchange.signatures import NO_ONNX
from models.naming import name_from
from models.preprocess import BY_COUNT, CIFAR, IMAGENET, InputSpec, PerChannel

# The names of MXNet's Gluon, from which the model zoo's ResNets were exported.
GLUON = re.compile(r"resnetv\d+_dense\d+_fwd")
ZOO = replace(IMAGENET, crop="center_floor")


def read(path: Path, said: Said = NOTHING) -> Imported:
    """The network in an `.onnx` file, recognised by what its graph computes.

    External data is only read from the file's folder, and nothing is executed. Where a graph has
    several outputs, `said.key` is the name of the one to take.

    Raises:
        BundleError: it cannot be read, or is not a plain ResNet; the message names the first node
            that does not fit.
    """
    try:
        model = _model(path)
        described = {entry.key: entry.value for entry in model.metadata_props}
        _refuse_views(described)
        found = blocks.find(reader.read(model, said.key))
        own = _described(described, found.architecture)
    except ImportError:
        why = f"the package onnx is not installed: {install('interchange')}"
        raise BundleError(f"{path}: {why}") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from None
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    # Damage may raise any error.
    except Exception:  # noqa: BLE001
        raise BundleError(f"{path}: a damaged ONNX file; export it again") from None
    zoo = any(GLUON.fullmatch(output.name) for output in model.graph.output)
    layout = "ONNX model zoo" if zoo else "ONNX graph"
    spec, known = _input(found, own, zoo=zoo)
    if found.ending:
        layout += f", without its {found.ending}"
    if found.ending or zoo or own.spec:
        known |= {"outputs"}
    if own.spec and own.labels is not None:
        known |= {"labels"}
    if zoo and found.architecture.num_classes == len(label_files.read("imagenet1k")):
        known |= {"labels"}
    reversal = "the graph changes the order of its input's channels; the stem's weights do so now"
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Imported(
        layout=layout,
        tensors=found.tensors,
        architecture=found.architecture,
        spec=spec,
        said=known | frozenset(STRUCTURE),
        asked=NORMALISATION - known,
        notes=(reversal,) if found.front.reorders else (),
        name=own.name,
        labels=own.labels,
        outputs=_outputs(found, own),
        provenance={"producer": producer} if producer else {},
        **own.rest,
    )


def _outputs(found: blocks.Found, own: _Own) -> Outputs:
    if found.ending:
        return "independent" if found.ending == "sigmoid" else "exclusive"
    return own.outputs


def _input(found: blocks.Found, own: _Own, *, zoo: bool) -> tuple[InputSpec, frozenset[str]]:
    """How images are prepared, and which fields of it the file tells."""
    front = found.front
    mean, std = front.mean, front.std
    ours = own.spec
    if ours and front.size not in (None, ours.size):
        ours = None  # The graph was changed, but its metadata was not.
    if ours and (mean is None or std is None or _close(ours, mean, std)):
        return ours, frozenset(INPUT)
    if ours and mean and std:
        return replace(ours, mean=mean, std=std), frozenset(INPUT)
    if zoo and mean is None:
        return _sized(ZOO, found), frozenset(INPUT)
    spec = _sized(ZOO if zoo else IMAGENET, found)
    known = frozenset({"size"} if front.size else ())
    channels = BY_COUNT.get(found.architecture.in_channels)
    if not (mean and std and channels):
        return spec, known
    changes: dict[str, Any] = {"channels": channels, "mean": mean, "std": std}
    return replace(spec, **changes), known | NORMALISATION


def _refuse_views(described: Mapping[str, str]) -> None:
    if described.get("views") == '"mirrored"':
        raise BundleError(
            "its graph averages mirror images; export the bundle with --views plain, convert that "
            "file, and give --views mirrored again"
        )


def _model(path: Path) -> Any:
    """The file's `ModelProto`, with its external data and without functions."""
    import onnx
    from onnx import inliner

    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    # Damage may raise any error.
    except Exception:  # noqa: BLE001
        raise BundleError(NO_ONNX) from None
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
        except Exception:  # noqa: BLE001
            raise BundleError(f"its external data {where} is damaged; export it again") from None
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


@dataclass(frozen=True, slots=True)
class _Own:
    """What the metadata of our exports tells; nothing where another program wrote it."""

    spec: InputSpec | None = None
    name: str | None = None
    labels: tuple[str, ...] | None = None
    outputs: Outputs = "exclusive"
    rest: Mapping[str, Any] = field(default_factory=dict)


def _described(described: Mapping[str, str], architecture: Architecture) -> _Own:
    try:
        values = {key: json.loads(value) for key, value in described.items() if key in DESCRIBED}
        labels = values.pop("labels", None)
        outputs = values.pop("outputs", "exclusive")
        rest = {key: values.pop(key) for key in REST if key in values}
        rest["metrics"] = dict(rest.get("metrics", {}))
        spec = InputSpec(**values) if "mean" in values and "size" in values else None
    except (ValueError, TypeError, RecursionError):
        return _Own()  # Metadata of another program.
    fits = isinstance(labels, list) and len(labels) == architecture.num_classes
    named = tuple(map(str, labels)) if fits else None
    if not spec or spec.shape[2] != architecture.in_channels or outputs not in get_args(Outputs):
        return _Own(labels=named)
    recorded = described.get("name", "")
    name = recorded if recorded == name_from(recorded) else None
    return _Own(spec, name, named, outputs, rest if fits else {})


def _sized(spec: InputSpec, found: blocks.Found) -> InputSpec:
    """`spec`, or CIFAR's for a small stem, at the size that the graph fixes."""
    if found.architecture.stem == "small":
        spec = CIFAR
    size = found.front.size or spec.size
    sides = (size, size) if isinstance(size, int) else size
    high, wide = (round(side * spec.box[0] / spec.height) for side in sides)
    return replace(spec, size=size, resize=(high, wide))


def _close(spec: InputSpec, mean: PerChannel, std: PerChannel) -> bool:
    """Whether a graph's normalisation equals that of its metadata, up to rounding."""
    return np.allclose(spec.mean, mean, atol=1e-6) and np.allclose(spec.std, std, rtol=1e-6)


REST = ("temperature", "card", "metrics")
DESCRIBED = {"labels", "outputs", *REST, *(each.name for each in fields(InputSpec))}
