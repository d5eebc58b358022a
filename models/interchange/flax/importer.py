"""Imports ResNets of Flax (linen), with names like those of its ImageNet example."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import BundleError
from models.interchange.architecture import infer_architecture
from models.interchange.flax.pytree import Tree, read_tree
from models.interchange.imported import (
    NORMALISATION,
    Imported,
    Said,
    float_tensor,
    is_numbers,
    natural,
)
from models.preprocess import CIFAR, IMAGENET

Leaves = Mapping[str, NDArray[Any]]
"""The arrays of one module: its parameters, and `mean` and `var` of a norm."""

# The example crops before it resizes.
EXAMPLE = replace(IMAGENET, crop="before_resize", interpolation="bicubic")
PROJECTION = re.compile(r"proj|shortcut|downsample|skip")
LEAVES = {"kernel", "bias", "scale", "mean", "var"}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# The kernels of a block's convolutions.
BLOCKS = ([3, 3], [1, 3, 1])


def read(path: Path, said: Said) -> Imported:
    """The weights in a msgpack file or an Orbax folder, under our names.

    Names hardly matter: a convolution, a norm and a dense layer at the top are the stem and the
    head, and every module with convolutions is a block. A stage begins where a block widens.
    Padding is that of the example: SAME, except in the stem.

    Raises:
        BundleError: it cannot be read, or is not such a ResNet.
    """
    tree = read_tree(path)
    try:
        top = _network(tree)
        tensors = _tensors(top)
        architecture = infer_architecture(tensors, padding="same")
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    imagenet = architecture.stem == "imagenet"
    example = imagenet and "conv_init" in top
    known = example and architecture.num_classes == 1000
    return Imported(
        layout="Flax ImageNet example" if example else "Flax modules",
        tensors=tensors,
        architecture=replace(architecture, pool_padding="same") if imagenet else architecture,
        spec=EXAMPLE if example else IMAGENET if imagenet else CIFAR,
        asked=frozenset() if known else NORMALISATION,
    )


def _network(tree: Tree) -> Tree:
    """The network's modules, with `batch_stats` merged into `params`."""
    level, holder = [tree], None
    while level and holder is None:
        holder = next((node for node in level if isinstance(node.get("params"), dict)), None)
        if holder is not None and not isinstance(holder.get("batch_stats"), dict):
            # The `params` of a training state may contain all variables of the network.
            inner = holder["params"]
            holder = inner if {"params", "batch_stats"} <= inner.keys() else holder
        level = [v for node in level for v in node.values() if isinstance(v, dict)]
    if holder is None:
        raise BundleError("holds no params: is this a Flax checkpoint?")
    if not isinstance(holder.get("batch_stats"), dict):
        raise BundleError(
            "holds no batch_stats: a network of GroupNorm or LayerNorm, or saved without them"
        )
    top = _merged(holder["params"], holder["batch_stats"])
    while len(top) == 1:
        (only,) = top.values()
        if not isinstance(only, dict) or _is_module(only):
            break
        top = only
    return top


def _merged(params: Tree, stats: Tree) -> dict[str, Any]:
    merged = dict(params)
    for name, value in stats.items():
        if isinstance(value, dict):
            below = merged.get(name, {})
            merged[name] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _is_module(node: Any) -> bool:
    return isinstance(node, dict) and any(isinstance(v, np.ndarray) for v in node.values())


def _tensors(top: Tree) -> dict[str, Tensor]:
    """The state dict; raises BundleError for anything that is not part of a ResNet."""
    convs, norms, dense, rest = _sorted_modules(top, "")
    for kind, modules, place in (
        ("convolution", convs, "a stem"),
        ("BatchNorm", norms, "a stem"),
        ("Dense layer", dense, "a head"),
    ):
        if len(modules) != 1:
            shown = f": {', '.join(modules)}" if modules else ""
            raise BundleError(
                f"has {len(modules)} modules that are a {kind} outside its blocks{shown}; "
                f"a ResNet has one, in {place}"
            )
    (stem,), (norm,), (head,) = convs.values(), norms.values(), dense.values()
    tensors = {
        **_convolution("stem.conv", stem),
        **_norm("stem.norm", norm),
        **_linear("head", head),
    }
    blocks = dict(_blocks(rest, ""))
    templates = sorted({re.sub(r"\d+", "#", name) for name in blocks})
    if len(templates) > 1:
        raise BundleError(f"blocks called {', '.join(templates)}: their order is unknown")
    channels, stage, index = stem["kernel"].shape[-1], -1, 0
    for name in sorted(blocks, key=natural):
        made = _block(name, blocks[name], channels)
        widened = _width(made) != channels
        first = stage < 0
        if not first and not widened and "shortcut.conv.weight" in made:
            raise BundleError(f"{name} projects without widening: where it strides is unknown")
        stage, index = (stage + 1, 0) if first or widened else (stage, index + 1)
        channels = _width(made)
        tensors |= {f"stages.{stage}.{index}.{key}": value for key, value in made.items()}
    return tensors


def _sorted_modules(
    node: Tree, where: str
) -> tuple[dict[str, Leaves], dict[str, Leaves], dict[str, Leaves], dict[str, Tree]]:
    """The convolutions, norms, dense layers and other modules of a node, in natural order."""
    convs: dict[str, Leaves] = {}
    norms: dict[str, Leaves] = {}
    dense: dict[str, Leaves] = {}
    rest: dict[str, Tree] = {}
    kinds = {0: norms, 2: dense, 4: convs}
    for name in sorted(node, key=natural):
        child = node[name]
        if not _is_module(child):
            if isinstance(child, dict):
                rest[name] = child
            continue
        if strange := sorted(child.keys() - LEAVES):
            raise BundleError(f"{where}{name} holds {', '.join(strange)}: not a module of a ResNet")
        for leaf, value in child.items():
            if not is_numbers(value, None if leaf == "kernel" else 1):
                raise BundleError(f"{where}{name} has a {leaf} that is not a list of numbers")
        dimensions = child["kernel"].ndim if "kernel" in child else 0
        if dimensions not in kinds:
            raise BundleError(f"{where}{name} has a kernel of {dimensions} dimensions")
        if not dimensions and not {"mean", "var"} <= child.keys():
            raise BundleError(
                f"{where}{name} has no running statistics: GroupNorm or LayerNorm, not BatchNorm"
            )
        kinds[dimensions][name] = child
    return convs, norms, dense, rest


def _blocks(children: Mapping[str, Tree], where: str) -> Iterator[tuple[str, Tree]]:
    """All modules with convolutions, at any depth."""
    for name, child in children.items():
        convs, _, _, rest = _sorted_modules(child, f"{where}{name}/")
        if convs:
            yield where + name, child
        else:
            yield from _blocks(rest, f"{where}{name}/")


def _block(name: str, node: Tree, channels: int) -> dict[str, Tensor]:
    """The tensors of one block with `channels` input channels, without the block's prefix."""
    convs, norms, dense, rest = _sorted_modules(node, f"{name}/")
    if dense or rest:
        strange = ", ".join([*dense, *rest])
        raise BundleError(
            f"{name} holds {strange}: not a plain residual block (squeeze-and-excitation?)"
        )
    projection = next((name for name in convs if PROJECTION.search(name)), None)
    main = [name for name in convs if name != projection]
    kernels = [convs[name]["kernel"].shape[0] for name in main]
    if projection is None and kernels[:-1] in BLOCKS and kernels[-1] == 1:
        projection = main.pop()
        del kernels[-1]
    if kernels not in BLOCKS:
        shown = ", ".join(f"{kernel}x{kernel}" for kernel in kernels)
        raise BundleError(f"{name} has convolutions of {shown}: not a residual block's")
    projection_norm = next((name for name in norms if PROJECTION.search(name)), None)
    main_norms = [name for name in norms if name != projection_norm]
    if projection and projection_norm is None and len(main_norms) == len(main) + 1:
        projection_norm = main_norms.pop()
    if len(main_norms) != len(main):
        raise BundleError(f"{name} has {len(main)} convolutions and {len(main_norms)} norms")
    tensors: dict[str, Tensor] = {}
    for number, (conv, norm) in enumerate(zip(main, main_norms, strict=True), 1):
        kernel = convs[conv]["kernel"]
        if kernel.shape[2] != channels:
            raise BundleError(
                f"{name}/{conv} sees {kernel.shape[2]} of {channels} channels: "
                "grouped convolutions, or blocks out of order"
            )
        if len(norms[norm]["mean"]) != kernel.shape[3]:
            raise BundleError(
                f"{name}/{norm} does not follow {conv}: pre-activation, or not a ResNet"
            )
        channels = kernel.shape[3]
        tensors |= _convolution(f"conv{number}", convs[conv]) | _norm(f"bn{number}", norms[norm])
    if projection:
        tensors |= _convolution("shortcut.conv", convs[projection])
    if projection_norm:
        tensors |= _norm("shortcut.bn", norms[projection_norm])
    return tensors


def _width(block: Mapping[str, Tensor]) -> int:
    return len(block.get("conv3.weight", block["conv2.weight"]))


def _convolution(name: str, leaves: Leaves) -> dict[str, Tensor]:
    """From [H, W, in, out] to [out, in, H, W]."""
    tensors = {f"{name}.weight": float_tensor(leaves["kernel"].transpose(3, 2, 0, 1))}
    if "bias" in leaves:
        tensors[f"{name}.bias"] = float_tensor(leaves["bias"])
    return tensors


def _norm(name: str, leaves: Leaves) -> dict[str, Tensor]:
    """The tensors of a norm, which may lack a scale or a bias."""
    mean = leaves["mean"]
    full = {"scale": np.ones_like(mean), "bias": np.zeros_like(mean), **leaves}
    return {f"{name}.{ours}": float_tensor(full[theirs]) for theirs, ours in NORM.items()}


def _linear(name: str, leaves: Leaves) -> dict[str, Tensor]:
    kernel = leaves["kernel"]
    bias = leaves.get("bias", np.zeros(kernel.shape[1]))
    return {f"{name}.weight": float_tensor(kernel.T), f"{name}.bias": float_tensor(bias)}
