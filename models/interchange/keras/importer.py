"""Imports Keras's ResNets: `keras.applications`, and networks like its CIFAR-10 example."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.architecture import Architecture
from models.bundle import BundleError
from models.interchange.architecture import infer_architecture
from models.interchange.imported import (
    NORMALISATION,
    Imported,
    Said,
    float_tensor,
    is_numbers,
    natural,
)
from models.interchange.keras.file import Arrays, KerasFile, read_keras
from models.preprocess import CIFAR, IMAGENET

Layers = Mapping[str, Arrays]

# Caffe subtracts the means of blue, green and red, without scaling. Here in RGB order.
CAFFE = replace(
    IMAGENET, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)
HALF = replace(IMAGENET, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
RAW = replace(CIFAR, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))

EPS_APPLICATIONS, EPS_DEFAULT = 1.001e-5, 1e-3
V1: dict[str, Any] = {"stride_at": "1x1"}
V2: dict[str, Any] = {"stride_block": "last", "pool_padding": "zero"}

STAGE = re.compile(r"conv(\d)_block(\d+)_(preact|\d)_(conv|bn)")
TOP = {"conv1_conv": "stem.conv", "conv1_bn": "stem.norm", "post_bn": "norm"}
ADDITION = re.compile(r"(tf\S*[._])?add(v2)?(_|$)")
BEFORE_2019 = re.compile(r"res\d[a-z]+\d*_branch")
LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The layers of plain ResNets; their settings are checked.
CLASSES = {
    *("InputLayer", "Conv2D", "BatchNormalization", "Activation", "ReLU", "Add", "ZeroPadding2D"),
    *("MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "Flatten", "Dense", "Dropout"),
    "Softmax",
}
ACTIVATIONS = {"relu", "linear", "softmax"}


def read(path: Path, said: Said) -> Imported:
    """The weights in a Keras file, under our names.

    The networks of `keras.applications` are recognised by the names of their layers. Others are
    read by the order of their layers: basic blocks with a 3x3 stem and SAME padding, activated
    after each addition.

    Raises:
        BundleError: it cannot be read, or is neither.
    """
    file = read_keras(path)
    try:
        _check_classes(file)
        layers = {name: arrays for name, arrays in file.layers.items() if arrays}
        _check_arrays(layers)
        return _application(file, layers) if "conv1_conv" in layers else _small(file, layers)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    except (KeyError, TypeError) as error:
        reason = type(error).__name__
        raise BundleError(f"{path}: its description of the model is damaged ({reason})") from None


def _check_classes(file: KerasFile) -> None:
    """Refuses unsupported layers, if the file has their classes."""
    for name, config in file.configs.items():
        kind, activation = config["class_name"], str(config.get("activation") or "linear")
        if kind == "TFOpLambda" and ADDITION.match(name):
            continue
        if kind not in CLASSES:
            raise BundleError(f"layer {name} is a {kind}: no plain ResNet has one")
        if activation not in ACTIVATIONS:
            raise BundleError(f"layer {name} activates by {activation}, not ReLU")
        if kind == "Conv2D" and activation != "linear":
            raise BundleError(f"layer {name} activates what it gives: no normalisation follows it")
        if kind == "ReLU" and any(map(config.get, ("max_value", "negative_slope", "threshold"))):
            raise BundleError(f"layer {name} is not a plain ReLU")
        for key in ("groups", "dilation_rate"):
            if kind == "Conv2D" and config.get(key, 1) not in (1, [1, 1]):
                raise BundleError(f"layer {name} has {key} {config[key]}: not a plain ResNet's")


def _check_arrays(layers: Layers) -> None:
    for name, arrays in layers.items():
        if strange := sorted(arrays.keys() - LEAVES.keys()):
            raise BundleError(
                f"layer {name} holds {', '.join(strange)}: not a layer of a plain ResNet"
            )
        if ("gamma" in arrays or "beta" in arrays) and "moving_mean" not in arrays:
            raise BundleError(
                f"layer {name} has no moving statistics: GroupNorm or LayerNorm, not BatchNorm"
            )
        for key, value in arrays.items():
            if not is_numbers(value, None if key == "kernel" else 1):
                raise BundleError(f"layer {name} has a {key} that is not a list of numbers")
        if "kernel" in arrays and arrays["kernel"].ndim not in (2, 4):
            raise BundleError(f"layer {name} has a kernel of {arrays['kernel'].ndim} dimensions")


def _eps(file: KerasFile, default: float) -> float:
    values = {
        config["epsilon"]
        for config in file.configs.values()
        if config["class_name"] == "BatchNormalization"
    }
    if len(values) > 1:
        shown = ", ".join(map(str, sorted(values)))
        raise BundleError(f"its normalisations have different epsilons: {shown}")
    return values.pop() if values else default


def _application(file: KerasFile, layers: Layers) -> Imported:
    tensors = _head(layers)
    preact = any("preact" in name for name in layers)
    for name, arrays in layers.items():
        if _is_dense(arrays):
            continue
        tensors |= _tensors(_application_name(name, preact), arrays)
    if not preact and "stem.conv.weight" in tensors:
        # Its input is in BGR order.
        tensors["stem.conv.weight"] = tensors["stem.conv.weight"].flip(1)
    eps = _eps(file, EPS_APPLICATIONS)
    architecture = infer_architecture(tensors, eps=eps, **(V2 if preact else V1))
    spec = HALF if preact else CAFFE
    known = architecture.num_classes == 1000
    return Imported(
        layout=f"keras.applications ResNet v{2 if preact else 1}",
        tensors=tensors,
        architecture=architecture,
        spec=spec,
        asked=frozenset() if known else NORMALISATION,
    )


def _application_name(name: str, preact: bool) -> str:
    if name in TOP:
        return TOP[name]
    match = STAGE.fullmatch(name)
    if match is None:
        raise BundleError(f"layer {name} is not part of any keras.applications ResNet")
    stage, block, number, kind = match.groups()
    prefix = f"stages.{int(stage) - 2}.{int(block) - 1}"
    if number == "0":
        return f"{prefix}.shortcut.{kind}"
    if kind == "bn" and preact:
        # The first norm precedes the first convolution.
        number = "1" if number == "preact" else str(int(number) + 1)
    return f"{prefix}.{kind}{number}"


@dataclass
class _Block:
    """The layer names of a basic block under construction, and its channels."""

    main: list[str] = field(default_factory=list)
    shortcut: str | None = None
    channels: int = 0
    width: int = 0


def _small(file: KerasFile, layers: Layers) -> Imported:
    """A network recognised by the order of its layers: norms follow their convolutions."""
    if old := next(filter(BEFORE_2019.match, layers), None):
        raise BundleError(f"has layers called {old}, as Keras before 2.3 had: its pooling differs")
    convs = _in_order(layers, "conv2d", lambda arrays: arrays.get("kernel", np.empty(0)).ndim == 4)
    norms = _in_order(layers, "batch_normalization", lambda arrays: "moving_mean" in arrays)
    tensors = _head(layers)
    if not convs:
        raise BundleError("holds no convolutions: is this a ResNet?")
    stem, *rest = convs
    rows, columns, _, width = layers[stem]["kernel"].shape
    if (rows, columns) != (3, 3):
        raise BundleError(
            f"has a stem of {rows}x{columns}, and not the names that keras.applications gives"
        )
    named = _stages(_blocks(layers, rest, width), width)
    _check_order(file)
    names = {stem: "stem.conv", **named}
    square = [name for name in convs if layers[name]["kernel"].shape[0] == 3]
    followed = convs if len(norms) == len(convs) else square
    if len(norms) != len(followed):
        raise BundleError(
            f"has {len(convs)} convolutions and {len(norms)} BatchNorms: which follows which is "
            "unknown"
        )
    for conv, norm in zip(followed, norms, strict=True):
        if len(layers[norm]["moving_mean"]) != layers[conv]["kernel"].shape[3]:
            raise BundleError(f"layer {norm} does not follow {conv}: their channels differ")
        names[norm] = _norm_name(names[conv])
    for name in (*convs, *norms):
        tensors |= _tensors(names[name], layers[name])
    _check_small(file, names)
    eps = _eps(file, EPS_DEFAULT)
    architecture = infer_architecture(tensors, eps=eps, padding="same")
    if architecture.shortcut == "A":
        raise BundleError("widens without a convolution: on which side it pads is unknown")
    tiny = _is_mlperf_tiny(architecture)
    return Imported(
        layout="MLPerf Tiny ResNet-8" if tiny else "Keras layers in order",
        tensors=tensors,
        architecture=architecture,
        spec=RAW if tiny else CIFAR,
        asked=frozenset() if tiny else NORMALISATION,
    )


def _check_order(file: KerasFile) -> None:
    """Refuses pre-activation networks, which have a norm after the last addition."""
    order = list(file.layers)
    added = [i for i, name in enumerate(order) if ADDITION.match(name)]
    if not added:
        raise BundleError(
            "does not list its additions, so that it may activate before or after them: "
            "save the whole model (.keras or .h5)"
        )
    if any("moving_mean" in file.layers[name] for name in order[added[-1] :]):
        raise BundleError("normalises after its last addition: a pre-activation network")


def _in_order(layers: Layers, kind: str, chosen: Callable[[Arrays], bool]) -> list[str]:
    """Names in the order of Keras's numbers, or else of the file."""
    names = [name for name, arrays in layers.items() if chosen(arrays)]
    if all(re.fullmatch(rf"{kind}(_\d+)?", name) for name in names):
        names.sort(key=natural)
    return names


def _blocks(layers: Layers, convs: list[str], channels: int) -> list[_Block]:
    """Blocks of two 3x3 convolutions; a 1x1 convolution is the shortcut of the block it fits."""
    blocks: list[_Block] = []
    opened = _Block()
    for name in convs:
        rows, columns, seen, width = layers[name]["kernel"].shape
        if (rows, columns) == (1, 1):
            last = blocks[-1] if blocks and not opened.main else None
            if last and last.shortcut is None and (last.channels, last.width) == (seen, width):
                last.shortcut = name
            elif opened.shortcut is None and seen == channels:
                opened.shortcut = name
            else:
                raise BundleError(f"layer {name} does not fit as a basic block's shortcut")
            continue
        if (rows, columns) != (3, 3):
            raise BundleError(
                f"layer {name} is a {rows}x{columns} convolution: not part of a basic block"
            )
        expected = opened.width if opened.main else channels
        if seen != expected:
            raise BundleError(
                f"layer {name} sees {seen} of {expected} channels: grouped convolutions, or blocks "
                "out of order"
            )
        opened.main.append(name)
        opened.width = width
        if len(opened.main) == 2:
            opened.channels, channels = channels, width
            blocks.append(opened)
            opened = _Block()
    if opened.main or opened.shortcut:
        raise BundleError("its convolutions are not two for each block")
    return blocks


def _stages(blocks: list[_Block], channels: int) -> dict[str, str]:
    """Our names of the blocks' convolutions; a stage begins where a block widens."""
    names: dict[str, str] = {}
    stage, index = -1, 0
    for block in blocks:
        widened = block.width != channels
        if block.shortcut and not widened:
            raise BundleError(
                f"layer {block.shortcut} projects without widening: where it strides is unknown"
            )
        stage, index = (stage + 1, 0) if widened or stage < 0 else (stage, index + 1)
        channels = block.width
        prefix = f"stages.{stage}.{index}"
        names |= {conv: f"{prefix}.conv{number}" for number, conv in enumerate(block.main, 1)}
        if block.shortcut:
            names[block.shortcut] = f"{prefix}.shortcut.conv"
    return names


def _norm_name(conv: str) -> str:
    if conv == "stem.conv":
        return "stem.norm"
    return re.sub(r"conv(\d?)$", r"bn\1", conv)


def _check_small(file: KerasFile, names: Mapping[str, str]) -> None:
    """Refuses unsupported strides, padding and pooling, if the file has them."""
    for name, config in file.configs.items():
        kind, ours = config["class_name"], names.get(name, "")
        if kind in ("MaxPooling2D", "ZeroPadding2D"):
            raise BundleError(f"layer {name} is a {kind}: not part of a ResNet for small images")
        if kind == "Conv2D":
            strided = re.fullmatch(r"stages\.[1-9]\d*\.0\.(conv1|shortcut\.conv)", ours)
            expected = [2, 2] if strided else [1, 1]
            if list(config["strides"]) != expected:
                raise BundleError(f"layer {name} strides by {config['strides']}, not {expected}")
            if config["padding"] != "same" and not ours.endswith("shortcut.conv"):
                raise BundleError(f"layer {name} has padding {config['padding']}, not same")


def _is_mlperf_tiny(architecture: Architecture) -> bool:
    return (
        architecture.blocks == (1, 1, 1)
        and architecture.planes == (16, 32, 64)
        and architecture.num_classes == 10
        and not architecture.shortcut_norm
        and len(architecture.biases) == 4
    )


def _is_dense(arrays: Arrays) -> bool:
    return "kernel" in arrays and arrays["kernel"].ndim == 2


def _head(layers: Layers) -> dict[str, Tensor]:
    names = [name for name, arrays in layers.items() if _is_dense(arrays)]
    if len(names) != 1:
        shown = f" ({', '.join(names)})" if names else ""
        raise BundleError(f"has {len(names)} dense layers{shown}: a ResNet has one, its head")
    kernel = layers[names[0]]["kernel"]
    bias = layers[names[0]].get("bias", np.zeros(kernel.shape[1]))
    return {"head.weight": float_tensor(kernel.T), "head.bias": float_tensor(bias)}


def _tensors(name: str, arrays: Arrays) -> dict[str, Tensor]:
    """The tensors of a convolution or a norm; a norm may lack a scale or an offset."""
    if "moving_mean" in arrays:
        mean = arrays["moving_mean"]
        arrays = {"gamma": np.ones_like(mean), "beta": np.zeros_like(mean), **arrays}
    elif "kernel" in arrays:
        # From [H, W, in, out].
        arrays = {**arrays, "kernel": arrays["kernel"].transpose(3, 2, 0, 1)}
    return {f"{name}.{LEAVES[key]}": float_tensor(value) for key, value in arrays.items()}
