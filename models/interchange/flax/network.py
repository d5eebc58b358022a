"""Finds the modules of one network in a tree of arrays, whichever part of Flax wrote it.

Flax's linen keeps `params` and `batch_stats` apart, in trees of the same names. NNX keeps the
statistics of a norm beside its scale, and may put each array into a variable's `value`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.bundle import BundleError
from models.interchange.flax.pytree import Tree

VALUES = ("value", "raw_value")
# What optimisers and random generators keep; no module of a network is called so.
OTHER_STATE = re.compile(r"opt(imi[sz]er)?(_state)?|tx|rngs?|metrics|step|hyper_?params")
ALONE = (
    "holds params without batch_stats, the running means and variances of BatchNorm; save both: "
    "flax.serialization.to_bytes({'params': state.params, 'batch_stats': state.batch_stats}). "
    "(A network of GroupNorm or LayerNorm has none, and is not read)"
)


def network_of(tree: Tree, key: str | None = None) -> Tree:
    """The network's modules by name, each with its parameters and its statistics.

    `key`: the path in the tree, with "/" or "." between names, of the part that has them.

    Raises:
        BundleError: the tree holds no network, only a part of one, or several.
    """
    if key is not None:
        tree = _entry(tree, key)
    tree = _plain(tree)
    top = _linen(tree)
    if top is None:
        top = _nnx(tree)
    if top is None:
        if any(_every_module(tree)):
            raise BundleError(ALONE)
        raise BundleError("holds no params: is this a Flax checkpoint?")
    while len(top) == 1:
        (only,) = top.values()
        if not isinstance(only, dict) or is_module(only):
            break
        top = only
    return top


def is_module(node: Any) -> bool:
    return isinstance(node, dict) and any(isinstance(v, np.ndarray) for v in node.values())


def _entry(tree: Tree, key: str) -> Tree:
    node: Any = tree
    for name in re.split(r"[/.]", key):
        if not isinstance(node, dict) or name not in node:
            names = ", ".join(map(str, node)) if isinstance(node, dict) else "an array"
            raise BundleError(f"has no entry {key!r}: {name!r} is not among {names}")
        node = node[name]
    if not isinstance(node, dict):
        raise BundleError(f"its entry {key!r} is no tree of arrays")
    return node


def _plain(node: Tree) -> dict[str, Any]:
    """The tree without variables around its arrays, and without random generators."""
    plain: dict[str, Any] = {}
    for name, child in node.items():
        if isinstance(child, dict):
            value = next((child[v] for v in VALUES if isinstance(child.get(v), np.ndarray)), None)
            if value is not None:
                plain[name] = value
            elif name != "rngs":
                plain[name] = _plain(child)
        else:
            plain[name] = child
    return plain


def _linen(tree: Tree) -> Tree | None:
    """The highest `params`, merged with the `batch_stats` beside it; None if there are none."""
    level = [tree]
    while level:
        for node in level:
            params, stats = node.get("params"), node.get("batch_stats")
            if not isinstance(params, dict):
                continue
            # The `params` of a training state may contain all variables of the network.
            if not isinstance(stats, dict) and {"params", "batch_stats"} <= params.keys():
                params, stats = params["params"], params["batch_stats"]
            if isinstance(stats, dict) and isinstance(params, dict):
                return _merged(params, stats)
            if not isinstance(params, dict) or not _has_statistics(params):
                raise BundleError(ALONE)
            return params
        level = [v for node in level for v in node.values() if isinstance(v, dict)]
    return None


def _merged(params: Tree, stats: Tree) -> dict[str, Any]:
    merged = dict(params)
    for name, value in stats.items():
        if isinstance(value, dict):
            below = merged.get(name, {})
            merged[name] = _merged(below if isinstance(below, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _nnx(tree: Tree) -> Tree | None:
    """The highest part with modules, if norms in it have their statistics; else None."""
    node = tree
    while not any(map(is_module, node.values())):
        parts = {
            name: child
            for name, child in node.items()
            if isinstance(child, dict) and not OTHER_STATE.fullmatch(name)
        }
        parts = {name: child for name, child in parts.items() if _has_statistics(child)}
        whole = [name for name, child in parts.items() if _has_stem(child)]
        if len(whole) > 1:
            raise BundleError(
                f"holds several networks, {', '.join(whole)}: give --key and one of them"
            )
        if len(parts) != 1:
            return node if parts else None
        (node,) = parts.values()
    return node if _has_statistics(node) else None


def _has_stem(node: Tree) -> bool:
    """Whether a convolution in it may be the first one, which sees images."""
    kernels = [module["kernel"] for module in _every_module(node) if "kernel" in module]
    return any(k.ndim == 4 and k.shape[0] > 1 and k.shape[2] in (1, 3, 4) for k in kernels)


def _has_statistics(node: Tree) -> bool:
    return any({"mean", "var"} <= module.keys() for module in _every_module(node))


def _every_module(node: Tree) -> Iterator[Tree]:
    for child in node.values():
        if is_module(child):
            yield child
        elif isinstance(child, dict):
            yield from _every_module(child)
