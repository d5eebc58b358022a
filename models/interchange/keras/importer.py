"""Imports Keras's ResNets: `keras.applications`, and networks of one's own, with their
preprocessing and their head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from models.architecture import Architecture
from models.bundle import BundleError
from models.interchange import normalisations
from models.interchange.architecture import infer_architecture
from models.interchange.imported import (
    BODY,
    NORMALISATION,
    STRUCTURE,
    Imported,
    Said,
    is_numbers,
)
from models.interchange.keras import alone
from models.interchange.keras.body import Body, difference, read_bodies
from models.interchange.keras.file import NORM, Arrays, KerasFile, read_keras
from models.interchange.keras.front import READERS, KerasFront, read_front
from models.interchange.keras.graph import KerasGraph, KerasLayer, read_graph
from models.interchange.keras.head import UNPOOLED, KerasHead, read_dense, read_head
from models.interchange.keras.tensors import LEAVES, even_out, fill_biases, layer_tensors
from models.preprocess import BY_COUNT, CIFAR, IMAGENET, InputSpec
from models.resnet import on_meta
from models.summary import map_sides

Layers = Mapping[str, Arrays]

# Caffe subtracts the means of blue, green and red, without scaling.
CAFFE = replace(
    IMAGENET,
    channels="bgr",
    mean=normalisations.CAFFE[0][::-1],
    std=normalisations.CAFFE[1],
)
HALF = replace(IMAGENET, mean=normalisations.HALF[0], std=normalisations.HALF[1])
RAW = replace(CIFAR, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))

EPS_APPLICATIONS, EPS_DEFAULT = 1.001e-5, 1e-3
V1: dict[str, Any] = {"stride_at": "1x1"}
V2: dict[str, Any] = {"stride_block": "last", "pool_padding": "zero"}

# The layers of plain ResNets; their settings are checked.
CLASSES = {
    *("InputLayer", "Conv2D", "BatchNormalization", "Activation", "ReLU", "Add", "ZeroPadding2D"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "Flatten", "Dense", "Softmax"),
    *("Reshape", "Mean"),
}
ACTIVATIONS = {"relu", "linear", "softmax", "sigmoid"}
# The names of layers that prepare images, in weights that come without their values.
PREPARES = re.compile(r"(rescaling|normalization|resizing|center_crop|lambda)(_\d+)?")
STATISTICS = {"mean", "variance", "count"}


@dataclass
class _Network:
    """What a file determines: see `Imported`. `numerics`: fields of `Architecture`."""

    tensors: dict[str, Tensor]
    numerics: dict[str, Any]
    head: KerasHead
    front: KerasFront | None = None
    said: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read(path: Path, said: Said) -> Imported:
    """The weights in a Keras file, under our names.

    Where the file describes its model, the network is recognised by its data flow. Weights alone
    are recognised by the names of `keras.applications`, or by their order; see `alone`.

    Raises:
        BundleError: it cannot be read, or is no plain ResNet; the message names the first layer
            that does not fit.
    """
    file = read_keras(path)
    try:
        layers = {name: arrays for name, arrays in file.layers.items() if arrays}
        network = _described(file, layers) if file.model else _alone(file, layers)
        return _imported(network, layers, file, said)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = type(error).__name__
        raise BundleError(f"{path}: its description of the model is damaged ({reason})") from None


def _imported(network: _Network, layers: Layers, file: KerasFile, said: Said) -> Imported:
    tensors, head, front = network.tensors, network.head, network.front
    architecture = _architecture(network)
    application = "conv1_conv" in layers
    v1 = (application and not architecture.preact) or any(map(alone.BEFORE_2019.match, layers))
    tiny = _is_mlperf_tiny(architecture) and not (front and front.fields.get("mean"))
    # What Keras publishes takes images as its recipe prepares them, if nothing says otherwise. A
    # network of one's own may have as many classes: it is assumed.
    prepared = bool(front and (front.fields.keys() & {"mean", "channels"} or front.norm))
    published = application and head.classes == 1000 and not (head.hidden or prepared)
    published &= not said.input.keys() & NORMALISATION
    published &= not any(map(PREPARES.fullmatch, file.names))
    spec = IMAGENET if architecture.stem == "imagenet" else RAW if tiny else CIFAR
    if application:
        spec = CAFFE if v1 and published else HALF if published else IMAGENET
    known = set(network.said)
    if tiny:
        known |= {"channels", "mean", "std"} | {"labels", "outputs"}
    asked = frozenset() if published or tiny else NORMALISATION | ({"channels"} if v1 else set())
    if front is not None:
        spec, known = _prepared(spec, front), known | front.said
        given = {name for name in asked if name in front.fields}
        # Whoever scales inside the model takes the channels as Keras decodes them.
        asked -= given | ({"channels"} if "mean" in front.fields else set())
    version = "v2" if architecture.preact else "v1"
    layout = f"keras.applications ResNet {version}" if application else "Keras layers in order"
    return Imported(
        layout="MLPerf Tiny ResNet-8" if tiny else layout,
        tensors=tensors,
        architecture=architecture,
        spec=spec,
        said=frozenset(known),
        asked=frozenset(asked),
        outputs=head.outputs or "exclusive",
        notes=tuple(network.notes),
    )


def _architecture(network: _Network) -> Architecture:
    """The architecture, from the tensors, which get the head's."""
    head = network.head
    network.tensors |= head.tensors()
    architecture = infer_architecture(network.tensors, **network.numerics)
    if architecture.shortcut == "A" and not architecture.preact:
        raise BundleError("widens without a convolution: on which side it pads is unknown")
    if head.layers and head.layers[0].inputs != architecture.out_channels:
        if head.pool == (1, 1):
            raise BundleError(f"its head {UNPOOLED}")
        raise BundleError(
            f"its head takes {head.layers[0].inputs} features of {architecture.out_channels}"
        )
    return architecture


def _prepared(spec: InputSpec, front: KerasFront) -> InputSpec:
    """`spec` as the layers in front of the network change it."""
    fields = dict(front.fields)
    if "mean" in fields:
        fields.setdefault("channels", BY_COUNT.get(front.channels, "rgb"))
    elif "channels" in fields:
        fields |= {"mean": spec.mean[::-1], "std": spec.std[::-1]}
    if front.channels not in BY_COUNT:
        raise BundleError(f"its images have {front.channels} channels; supported are 1, 3 and 4")
    if "size" in fields and "resize" not in fields:
        ratio = spec.box[0] / spec.height
        fields["resize"] = tuple(int(side * ratio) for side in fields["size"])
    return replace(spec, **fields)


# A file that describes its model.


def _described(file: KerasFile, layers: Layers) -> _Network:
    graph = read_graph(file.model or {})
    _check_classes(graph)
    used = {node.name: node for node in graph.needed()}
    layers = {n: _named(used[n], arrays) for n, arrays in layers.items() if n in used}
    _check_arrays(layers)
    bodies = list(read_bodies(graph))
    front, tail = bodies[0].front, bodies[0].tail
    for node in front:
        if node.kind not in (*READERS, "InputLayer"):
            raise BundleError(f"layer {node.name} is a {node.kind}: no plain ResNet has one")
    head = read_head(tail, layers)
    eps = _eps(graph.nodes[name] for name in bodies[0].names)
    first = ""
    for body in bodies:
        network = _network(body, layers, head, eps)
        reason = difference(_architecture(network), body)
        if not reason:
            break
        first = first or reason
    else:
        raise BundleError(first)
    stem = next(name for name, ours in body.names.items() if ours == "stem.conv")
    described = graph.nodes[stem].config
    network.front = read_front(
        front,
        layers,
        layers[stem]["kernel"].shape[2],
        first=described.get("data_format") == "channels_first",
    )
    if network.front.norm is not None:
        norm = network.front.norm
        tensors = layer_tensors("input_norm", layers[norm.name])
        tensors["input_norm.running_var"] += norm.config["epsilon"] - eps
        network.tensors |= tensors
    network.notes += [*network.front.notes, *head.notes]
    if head.pool is not None:
        _check_pool(head.pool, network)
    network.said |= {*STRUCTURE, *(("outputs",) if head.outputs else ())}
    return network


def _named(node: KerasLayer, arrays: Arrays) -> Arrays:
    """The arrays of a layer; those of a norm without scale or offset, which some files only
    number, by their names."""
    if node.kind != "BatchNormalization" or "variable 0" not in arrays:
        return arrays
    absent = {"gamma": node.config.get("scale"), "beta": node.config.get("center")}
    names = [name for name in NORM if absent.get(name, True)]
    return dict(zip(names, arrays.values(), strict=True))


def _network(body: Body, layers: Layers, head: KerasHead, eps: float) -> _Network:
    tensors: dict[str, Tensor] = {}
    for name, ours in body.names.items():
        if not layers.get(name):
            raise BundleError(f"layer {name} has no weights in the file")
        tensors |= layer_tensors(ours, layers[name])
    notes = even_out(tensors, preact=body.numerics["preact"])
    fill_biases(tensors)
    return _Network(tensors, {**body.numerics, "eps": eps}, head, notes=notes)


def _check_classes(graph: KerasGraph) -> None:
    """Refuses unsupported layers and settings."""
    for node in graph.needed():
        kind, name, config = node.kind, node.name, node.config
        if kind not in CLASSES and kind not in READERS:
            raise BundleError(f"layer {name} is a {kind}: no plain ResNet has one")
        if node.activation not in ACTIVATIONS:
            raise BundleError(f"layer {name} activates by {node.activation}, not ReLU")
        if (
            kind == "Conv2D"
            and node.activation != "linear"
            and list(config["kernel_size"]) != [1, 1]
        ):
            raise BundleError(f"layer {name} activates what it gives: no normalisation follows it")
        if kind == "ReLU" and any(map(config.get, ("max_value", "negative_slope", "threshold"))):
            raise BundleError(f"layer {name} is not a plain ReLU")
        for key in ("groups", "dilation_rate"):
            if kind == "Conv2D" and config.get(key, 1) not in (1, [1, 1]):
                raise BundleError(f"layer {name} has {key} {config[key]}: not a plain ResNet's")
        if kind == "BatchNormalization" and "axis" in config:
            _check_axis(node)
    formats = {
        str(node.config.get("data_format") or "channels_last")
        for node in graph.needed()
        if node.kind == "Conv2D"
    }
    if len(formats) > 1:
        raise BundleError("some of its layers are channels_first, others channels_last")


def _check_axis(node: KerasLayer) -> None:
    axis = node.config["axis"]
    axes = axis if isinstance(axis, list) else [axis]
    if axes not in ([-1], [1], [3]):
        raise BundleError(f"layer {node.name} normalises axis {axis}, not the channels")


def _eps(norms: Iterable[KerasLayer]) -> float:
    values = {node.config["epsilon"] for node in norms if node.kind == "BatchNormalization"}
    if len(values) > 1:
        shown = ", ".join(map(str, sorted(values)))
        raise BundleError(f"its normalisations have different epsilons: {shown}")
    return values.pop() if values else EPS_DEFAULT


def _check_pool(pool: tuple[int, int], network: _Network) -> None:
    """Refuses a pool that does not cover the maps."""
    front = network.front
    if front is None or front.sides is None:
        raise BundleError(f"pools {pool[0]}x{pool[1]} of maps whose size the file does not fix")
    sides = map_sides(on_meta(_architecture(network)), front.sides)
    if sides != pool:
        if pool == (1, 1):
            raise BundleError(f"its head {UNPOOLED}")
        raise BundleError(
            f"averages {pool[0]}x{pool[1]} pixels of maps of {sides[0]}x{sides[1]}: "
            "a ResNet averages all"
        )


# Weights alone.


def _alone(file: KerasFile, layers: Layers) -> _Network:
    for name, arrays in layers.items():
        if arrays.keys() <= STATISTICS:
            raise BundleError(
                f"layer {name} normalises images, and what precedes it is unknown: {alone.WHOLE}"
            )
    _check_arrays(layers)
    application = "conv1_conv" in layers
    names = (
        alone.application_names(layers)
        if application
        else alone.ordered_names(layers, list(file.layers))
    )
    tensors: dict[str, Tensor] = {}
    for name, ours in names.items():
        tensors |= layer_tensors(ours, layers[name])
    if application:
        preact = any("preact" in name for name in names)
        numerics = {"eps": EPS_APPLICATIONS, **(V2 if preact else V1)}
    else:
        numerics = {"eps": EPS_DEFAULT, "padding": "same"}
    dense = alone.dense_names(layers)
    head = read_dense(dense, layers)
    network = _Network(tensors, numerics, head)
    if application:
        network.said |= set(BODY)
    if not dense:
        network.notes.append("it has no head: its answers are features")
    return network


def _check_arrays(layers: Layers) -> None:
    for name, arrays in layers.items():
        if arrays.keys() <= STATISTICS:
            continue
        if strange := sorted(arrays.keys() - LEAVES.keys()):
            raise BundleError(
                f"layer {name} holds {', '.join(strange)}: not a layer of a plain ResNet"
            )
        if ("gamma" in arrays or "beta" in arrays) and "moving_mean" not in arrays:
            raise BundleError(
                f"layer {name} has no moving statistics: GroupNorm or LayerNorm, not BatchNorm"
            )
        _check_numbers(name, arrays)


def _check_numbers(name: str, arrays: Arrays) -> None:
    for key, value in arrays.items():
        if not is_numbers(value, None if key == "kernel" else 1):
            raise BundleError(f"layer {name} has a {key} that is not a list of numbers")
    if "kernel" in arrays and arrays["kernel"].ndim not in (2, 4):
        raise BundleError(f"layer {name} has a kernel of {arrays['kernel'].ndim} dimensions")


def _is_mlperf_tiny(architecture: Architecture) -> bool:
    return (
        architecture.blocks == (1, 1, 1)
        and architecture.planes == (16, 32, 64)
        and architecture.num_classes == 10
        and not architecture.shortcut_norm
        and len(architecture.biases) == 4
    )
