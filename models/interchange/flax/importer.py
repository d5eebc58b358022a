"""Imports ResNets of Flax, linen and NNX, with names like those of its ImageNet example."""

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
from models.interchange.flax.network import is_module, network_of
from models.interchange.flax.pytree import Tree, read_tree, weights_file
from models.interchange.imported import (
    BODY,
    NORMALISATION,
    Imported,
    Said,
    float_tensor,
    is_numbers,
    natural,
)
from models.interchange.linear import Affine, head_tensors
from models.preprocess import CIFAR, IMAGENET

Leaves = Mapping[str, NDArray[Any]]
"""The arrays of one module: its parameters, and `mean` and `var` of a norm."""

# The example crops before it resizes.
EXAMPLE = replace(IMAGENET, crop="before_resize", interpolation="bicubic")
PROJECTION = re.compile(r"proj|shortcut|downsample|skip")
LEAVES = {"kernel", "bias", "scale", "mean", "var"}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
HEADLESS = "it has no head: its answers are features"
# The kernels of a block's convolutions.
BLOCKS = ([3, 3], [1, 3, 1])


def read(path: Path, said: Said) -> Imported:
    """The weights in a file or an Orbax folder, under our names.

    Names hardly matter: a convolution and a norm at the top are the stem, dense layers the head,
    with ReLUs between, and every module with convolutions is a block. A stage begins where a block
    widens. Padding is that of the example: SAME, except in the stem.

    Raises:
        BundleError: it cannot be read, or is not such a ResNet.
    """
    file = weights_file(path)
    tree = read_tree(file)
    try:
        top = network_of(tree, said.key)
        tensors, notes = _tensors(top)
        architecture = infer_architecture(tensors, padding="same")
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    imagenet = architecture.stem == "imagenet"
    example = imagenet and "conv_init" in top
    # The recipe of the example is likely, but a network of one's own may have as many classes.
    likely = example and architecture.num_classes == 1000
    if imagenet and not example and "stem_padding" not in said.numerics:
        notes.append(
            "the stem's convolution is taken to pad 3 pixels on each side; with Flax's default, "
            "SAME, give --set stem_padding=same"
        )
    structure = set(BODY) if example else set()
    return Imported(
        layout="Flax ImageNet example" if example else "Flax modules",
        tensors=tensors,
        architecture=replace(architecture, pool_padding="same") if imagenet else architecture,
        spec=EXAMPLE if example else IMAGENET if imagenet else CIFAR,
        said=frozenset(structure),
        asked=frozenset() if likely else NORMALISATION,
        notes=tuple(notes),
        file=file if file.is_file() else None,
    )


def _tensors(top: Tree) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict, and notes; raises BundleError for anything that is not part of a ResNet."""
    convs, norms, dense, rest = _sorted_modules(top, "")
    blocks: dict[str, Tree] = {}
    for name, child in _parts(rest, ""):
        if _sorted_modules(child, f"{name}/")[0]:
            blocks[name] = child
        else:
            # Modules within modules, as a head in a `Sequential`.
            _, inner_norms, inner_dense, _ = _sorted_modules(child, f"{name}/")
            norms |= {f"{name}/{key}": value for key, value in inner_norms.items()}
            dense |= {f"{name}/{key}": value for key, value in inner_dense.items()}
    if not convs:
        _take_stem(blocks, convs, norms)
    for kind, modules in (("convolution", convs), ("BatchNorm", norms)):
        if len(modules) != 1:
            shown = f": {', '.join(modules)}" if modules else ""
            raise BundleError(
                f"has {len(modules)} modules that are a {kind} outside its blocks{shown}; "
                "a ResNet has one, in a stem"
            )
    (stem,), (norm,) = convs.values(), norms.values()
    tensors = {**_convolution("stem.conv", stem), **_norm("stem.norm", norm)}
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
    return tensors | _head(dense, channels), [] if dense else [HEADLESS]


def _take_stem(blocks: dict[str, Tree], convs: dict[str, Leaves], norms: dict[str, Leaves]) -> None:
    """Moves the one part with a single convolution, a stem in a module of its own, from the
    blocks to the modules of the network."""
    single = [name for name, node in blocks.items() if len(_sorted_modules(node, "")[0]) == 1]
    if len(single) == 1:
        inner_convs, inner_norms, _, _ = _sorted_modules(blocks.pop(single[0]), f"{single[0]}/")
        convs |= inner_convs
        norms |= inner_norms


def _head(dense: Mapping[str, Leaves], features: int) -> dict[str, Tensor]:
    """The tensors of the dense layers, each of which takes what the one before gives."""
    left, order = dict(dense), []
    inputs = features
    while left:
        name = next((n for n, leaves in left.items() if len(leaves["kernel"]) == inputs), None)
        if name is None:
            taken = ", ".join(f"{n} takes {len(leaves['kernel'])}" for n, leaves in left.items())
            raise BundleError(f"no Dense layer takes {inputs} features: {taken}")
        order.append(left.pop(name))
        inputs = order[-1]["kernel"].shape[1]
    return head_tensors(list(map(_linear, order)))


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
        if not is_module(child):
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


def _parts(children: Mapping[str, Tree], where: str) -> Iterator[tuple[str, Tree]]:
    """All parts that have modules of their own, at any depth; nothing within those that have
    convolutions."""
    for name, child in children.items():
        convs, norms, dense, rest = _sorted_modules(child, f"{where}{name}/")
        if convs or norms or dense:
            yield where + name, child
        if not convs:
            yield from _parts(rest, f"{where}{name}/")


def _block(name: str, node: Tree, channels: int) -> dict[str, Tensor]:
    """The tensors of one block with `channels` input channels, without the block's prefix."""
    convs, norms, dense, rest = _sorted_modules(node, f"{name}/")
    inner = _projection(rest, f"{name}/")
    if dense or inner is None:
        strange = ", ".join([*dense, *rest])
        raise BundleError(
            f"{name} holds {strange}: not a plain residual block (squeeze-and-excitation?)"
        )
    convs |= inner[0]
    norms |= inner[1]
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


def _projection(
    rest: Mapping[str, Tree], where: str
) -> tuple[dict[str, Leaves], dict[str, Leaves]] | None:
    """A shortcut's convolution and norm in a module of its own, as in NNX, by names that say so;
    None if something else is there."""
    found = list(_parts(rest, where))
    if not found:
        return {}, {}
    if len(found) > 1:
        return None
    convs, norms, dense, inner = _sorted_modules(found[0][1], f"{found[0][0]}/")
    kernels = [leaves["kernel"].shape[:2] for leaves in convs.values()]
    if kernels != [(1, 1)] or len(norms) > 1 or dense or any(_parts(inner, "")):
        return None
    return {"projection": next(iter(convs.values()))}, dict(
        zip(["projection"], norms.values(), strict=False)
    )


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


def _linear(leaves: Leaves) -> Affine:
    kernel = leaves["kernel"]
    return Affine(kernel.T, leaves.get("bias", np.zeros(kernel.shape[1])))
