"""Recognises what a graph computes before its first residual block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from models.architecture import PreactStem
from models.bundle import BundleError
from models.interchange.onnx.graph import OPEN, Array, Graph, Step, misfit
from models.preprocess import PerChannel, Sides

LETTERS = {"norm": "n", "relu": "r", "pool": "p", "average": "a", "blur": "b"}


@dataclass(frozen=True, slots=True)
class Front:
    """What a graph does to its images before the stem, with channels in the order of its input.

    `mean`, `std`: None where the graph does not normalise; of values in [0, 1].
    `norm`: a norm with learnt statistics. `order`: for each channel that the stem sees, which of
    the input it is. `size`: of the images, if the graph fixes it.
    """

    mean: PerChannel | None
    std: PerChannel | None
    norm: Step | None
    order: tuple[int, ...]
    size: Sides | None

    @property
    def reorders(self) -> bool:
        return self.order != tuple(range(len(self.order)))

    def unordered(self, weight: Array) -> Array:
        """A stem's weight [O, C, h, w] for channels in the order of the input."""
        return weight[:, np.argsort(self.order)]


def read_front(graph: Graph, steps: Sequence[Step], count: int) -> Front:
    """What `steps`, those before the stem's convolution of `count` channels, do.

    Raises:
        BundleError: something else than a normalisation or another order of the channels.
    """
    order = list(range(count))
    channels = graph.steps[graph.input].shape[1]
    scale, shift = np.ones(count), np.zeros(count)
    norm: Step | None = None
    for step in steps:
        if norm is not None or step.kind not in ("affine", "channels", "norm"):
            raise misfit(step.label, "does not fit before the stem")
        if step.kind == "channels":
            chosen = step.settings["order"]
            if sorted(chosen) != list(range(count)) or channels not in (OPEN, count):
                raise misfit(step.label, "repeats or drops channels of the images")
            order = [order[index] for index in chosen]
        elif step.kind == "norm":
            back = np.argsort(order)
            arrays = {k: v[back] for k, v in step.settings.items() if isinstance(v, np.ndarray)}
            norm = replace(step, settings={**step.settings, **arrays})
        else:
            factor, addend = (_broadcast(step, name, count) for name in ("scale", "shift"))
            scale[order] = scale[order] * factor
            shift[order] = shift[order] * factor + addend
    size = _size(graph.steps[graph.input].shape[2:])
    mean, std = _normalisation(graph, steps, scale, shift)
    return Front(mean, std, norm, tuple(order), size)


def _broadcast(step: Step, name: str, count: int) -> Array:
    values = np.asarray(step.settings[name], np.float64)
    if values.size not in (1, count):
        raise misfit(step.label, "normalises something other than channels")
    return np.broadcast_to(values.reshape(-1), count)


def _size(sides: Sequence[int]) -> Sides | None:
    height, width = sides
    if min(height, width) <= 0:
        return None
    return height if height == width else (height, width)


def _normalisation(
    graph: Graph, steps: Sequence[Step], scale: Array, shift: Array
) -> tuple[PerChannel | None, PerChannel | None]:
    if not graph.pixels and all(step.kind != "affine" for step in steps):
        return None, None
    if not (scale > 0).all():
        raise misfit(steps[0].label, "normalises images in an unsupported way")
    mean, std = -shift / scale, 1 / scale
    # Values in [0, 1] have no mean or deviation this large.
    if graph.pixels or max(*np.abs(mean), *std) > 2:
        mean, std = mean / 255, std / 255
    return _digits(mean), _digits(std)


def _digits(values: Array) -> PerChannel:
    """With the digits that float32 holds."""
    return tuple(float(f"{value:.7g}") + 0.0 for value in values)  # No zero is negative.


def parted(steps: Sequence[Step]) -> tuple[list[Step], Step, tuple[Step, ...]]:
    """The steps before the stem's convolution, the convolution, and the steps after it."""
    index = next((i for i, step in enumerate(steps) if step.kind == "conv"), None)
    if index is None:
        raise BundleError("the first residual block has no stem before it")
    rest = tuple(steps[index + 1 :])
    for step in rest:
        if step.kind == "conv":
            raise misfit(
                step.label, "a second convolution in the stem (a deep stem, as in ResNet-C and D)"
            )
        if step.kind not in LETTERS:
            raise misfit(step.label, "does not fit in a stem")
    kernel = steps[index].settings["weight"].shape[-1]
    stride = steps[index].settings["stride"]
    if kernel not in (3, 7) or stride not in (1, 2):
        raise misfit(
            steps[index].label,
            f"a stem of {kernel}x{kernel} in steps of {stride}; a ResNet's is 7x7 or 3x3, in "
            "steps of 1 or 2",
        )
    if steps[index].settings["dilation"] != 1:
        raise misfit(steps[index].label, "a dilated stem, which no ResNet has")
    return list(steps[:index]), steps[index], rest


@dataclass(frozen=True, slots=True)
class Stem:
    """An interpretation of the steps between the first convolution and the first block.

    `normed`, `first`: norm and ReLU of the stem and of the first block, or (); a ReLU alone had
        its norm folded into the convolution before it.
    `pool`: what pools, or (). `activated`: whether the first shortcut sees the output of `first`;
        None if it makes no difference.
    """

    name: PreactStem
    normed: tuple[Step, ...]
    pool: tuple[Step, ...]
    first: tuple[Step, ...]
    activated: bool | None

    def described(self, conv: Step) -> dict[str, Any]:
        """The fields of `Architecture` that tell how this stem subsamples."""
        small = conv.settings["weight"].shape[-1] == 3
        stride = conv.settings["stride"]
        padding = "symmetric"
        if self.pool and self.pool[0].kind == "pool" and self.pool[0].settings["stride"] == 2:
            padding = self.pool[0].settings["paddings"][0]
        pool = "max" if self.pool else "none"
        return {
            "stem_stride": 0 if stride == (1 if small else 2) else stride,
            "pool": "usual" if bool(self.pool) != small else pool,
            "pool_padding": padding,
            "preact_stem": self.name,
        }


def interpretations(
    preact: bool, conv: Step, before: Sequence[Step], residual: Sequence[Step]
) -> list[Stem]:
    """All interpretations of the stem; a small stem before a pre-activation block has two.

    `before`, `residual`: the steps between the stem's convolution and the first block's branches,
    and those of its residual branch.
    """
    entrance = takewhile(lambda step: preact and step.kind != "conv", residual)
    steps = (*before, *entrance)
    letters = "".join(LETTERS.get(step.kind, "?") for step in steps)
    layout = re.fullmatch("(n?r)?(p?b|a|p)?(n?r)?", letters)
    stems: list[Stem] = []
    if layout is not None:
        norm, pool, first = (steps[slice(*layout.span(group))] for group in (1, 2, 3))
        if preact:
            stems = _preact_stems(norm, pool, first, len(before))
        elif norm and not first:
            stems = [Stem("bare", norm, pool, (), None)]
    if not stems:
        raise misfit(
            (steps or (conv,))[-1].label, "does not fit between a stem and its first block"
        )
    return stems


def _preact_stems(
    norm: tuple[Step, ...], pool: tuple[Step, ...], first: tuple[Step, ...], entry: int
) -> list[Stem]:
    """The interpretations before a pre-activation block; its branches start after `entry` steps."""
    end = len(norm) + len(pool) + len(first)
    if first:
        activated = {end: True, end - len(first): False}.get(entry)
        if activated is None:
            return []
        return [Stem("activated" if norm else "bare", norm, pool, first, activated)]
    stems: list[Stem] = []
    if norm and not pool and entry in (0, end):  # The norm may be the block's own.
        stems.append(Stem("bare", (), (), norm, entry > 0))
    if norm and entry == end:
        stems.append(Stem("activated_once", norm, pool, (), None))
    return stems
