"""Recognises the residual network in an ONNX graph by following its data flow from the output.

A block is two branches that start at one value and meet in a sum. The steps on them determine the
fields of an `Architecture`. Finally our network of that architecture is compared with the graph,
and any difference is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from math import prod
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from models.architecture import Architecture, PreactShortcut, PreactStem
from models.bundle import BundleError
from models.interchange.architecture import infer_architecture
from models.interchange.onnx.graph import Array, Graph, Step, misfit
from models.preprocess import PerChannel
from models.resnet import ConvShortcut, PaddedShortcut, on_meta


@dataclass(frozen=True, slots=True)
class Unit:
    """A convolution, and the norm that follows it, if any."""

    conv: Step
    norm: Step | None


@dataclass(frozen=True, slots=True)
class Block:
    """Two branches from `entry` to the sum `label`, in the order of the data.

    `before`: the steps between the previous sum and `entry`; for the first block, the stem.
    """

    label: str
    entry: str
    before: tuple[Step, ...]
    residual: tuple[Step, ...]
    shortcut: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """`softmax`: the graph ends in a softmax, which is left out. For the rest see `Imported`."""

    architecture: Architecture
    tensors: dict[str, Tensor]
    mean: PerChannel | None
    std: PerChannel | None
    size: int | None
    softmax: bool


def find(graph: Graph) -> Found:
    """The network that `graph` computes.

    Raises:
        BundleError: it is not a plain ResNet; the message names the first node that does not fit.
    """
    return _Network(graph).find()


class _Network:
    def __init__(self, graph: Graph) -> None:
        self.steps = graph.steps
        self.graph = graph

    def find(self) -> Found:
        softmax, head, features = self._head()
        preact, final, value = self._end(features)
        blocks = self._blocks(value, preact)
        front, conv, rest = _parted(blocks[0].before)
        mean, std, input_norm, size = self._front(front)
        blocks[0] = replace(blocks[0], before=rest)

        rules = get_args(PreactShortcut) if preact else ("projected",)
        differences: list[tuple[str, str]] = []
        for rule, stem in product(rules, _stems(preact, conv, blocks[0])):
            layers = _Layers(self._eps())
            if input_norm:
                layers.norm("input_norm", input_norm)
            numerics = _assemble(layers, stem, conv, blocks, preact=preact)
            if final:
                layers.norm("norm", final)
            layers.put("head.weight", head[0])
            layers.put("head.bias", head[1])
            tensors = layers.finish()
            numerics |= {"preact": preact, "final_norm": final is not None or not preact}
            architecture = infer_architecture(tensors, **numerics, preact_shortcut=rule)
            misfits = list(_differences(architecture, stem, blocks))
            if not misfits:
                return Found(architecture, tensors, mean, std, size, softmax)
            differences += misfits
        raise misfit(*differences[0])

    # From the end to the stem.

    def _source(self, step: Step) -> Step:
        return self.steps[step.sources[0]]

    def _chain(self, value: str) -> list[str]:
        """The values from `value` back to the last sum, or to the images."""
        chain = [value]
        while self.steps[chain[-1]].kind not in ("add", "input"):
            chain.append(self.steps[chain[-1]].sources[0])
        return chain

    def _forward(self, values: Sequence[str]) -> tuple[Step, ...]:
        return tuple(self.steps[value] for value in reversed(values))

    def _head(self) -> tuple[bool, tuple[Array, Array], str]:
        """Whether there is a softmax, the head's weight and bias, and the features to pool."""
        step = self.steps[self.graph.output]
        softmax = step.kind == "softmax"
        if softmax:
            step = self._source(step)
        while step.kind == "flatten":
            step = self._source(step)
        if step.kind == "linear":
            head = (step.settings["weight"], step.settings["bias"])
        elif step.kind == "conv" and step.settings["weight"].shape[2:] == (1, 1):
            weight, bias = step.settings["weight"][:, :, 0, 0], step.settings["bias"]
            head = (weight, np.zeros(len(weight), np.float32) if bias is None else bias)
        elif step.kind == "mean":
            raise misfit(step.label, "ends in pooled features: the graph has no head")
        else:
            raise misfit(step.label, "is where a ResNet has its linear head")
        step = self._source(step)
        while step.kind == "flatten":
            step = self._source(step)
        if step.kind != "mean":
            raise misfit(step.label, "is where a ResNet has its global average pooling")
        return softmax, head, step.sources[0]

    def _end(self, features: str) -> tuple[bool, Step | None, str]:
        """Whether blocks are pre-activation blocks, the final norm, and the last sum."""
        values = self._chain(features)
        kinds = [self.steps[value].kind for value in values]
        if kinds[-1] != "add":
            raise misfit(self.steps[features].label, "there is no residual block before it")
        for preact, ending in ((False, ["relu"]), (True, ["relu", "norm"]), (True, [])):
            if kinds[:-1] == ending:
                final = self.steps[values[1]] if len(ending) == 2 else None
                return preact, final, values[-1]
        raise misfit(self.steps[features].label, "does not end a residual network")

    def _blocks(self, value: str, preact: bool) -> list[Block]:
        """All blocks in the order of the data; the last one ends in the sum `value`."""
        blocks: list[Block] = []
        between = ([], ["norm", "relu"]) if preact else (["relu"],)
        while True:
            blocks.append(self._block(value))
            value = self._chain(blocks[-1].entry)[-1]
            if self.steps[value].kind == "input":
                return blocks[::-1]
            before = blocks[-1].before
            if [step.kind for step in before] not in between:
                label = before[-1].label if before else self.steps[value].label
                raise misfit(label, "does not fit between residual blocks")

    def _block(self, value: str) -> Block:
        label = self.steps[value].label
        left, right = (self._chain(source) for source in self.steps[value].sources)
        others = set(right)
        entry = next((name for name in left if name in others), None)
        if entry is None:
            raise misfit(label, "adds branches that do not start at one value")
        branches = [self._forward(chain[: chain.index(entry)]) for chain in (left, right)]
        branches.sort(key=_convolutions)
        shortcut, residual = branches
        if _convolutions(shortcut) > 1 or _convolutions(residual) not in (2, 3):
            raise misfit(
                label,
                f"adds branches of {_convolutions(residual)} and {_convolutions(shortcut)} "
                "convolutions; a residual block has two or three and a shortcut of at most one",
            )
        before = self._forward(self._chain(entry)[:-1])
        return Block(label, entry, before, residual, shortcut)

    def _front(
        self, steps: Sequence[Step]
    ) -> tuple[PerChannel | None, PerChannel | None, Step | None, int | None]:
        """Mean, std and a norm of the images before the stem; and the images' size."""
        scale, shift = np.ones(3), np.zeros(3)
        norm: Step | None = None
        transposed = any(step.kind == "transpose" for step in steps)
        channels = 3 if transposed else 1
        images = self.steps[self.graph.input].shape
        for step in steps:
            if norm is not None or step.kind not in ("affine", "transpose", "norm"):
                raise misfit(step.label, "does not fit before the stem")
            if step.kind == "norm":
                norm = step
            elif step.kind == "transpose":
                channels = 1
            else:
                if step.settings["axis"] not in (None, channels):
                    raise misfit(step.label, "normalises something other than channels")
                scale = scale * step.settings["scale"]
                shift = shift * step.settings["scale"] + step.settings["shift"]
        sides = images[1:3] if transposed else images[2:]
        if sides[0] != sides[1]:
            label = self.steps[self.graph.input].label
            raise misfit(label, f"its images are {sides[0]}x{sides[1]}, not square")
        size = sides[0] if sides[0] > 0 else None
        if not self.graph.pixels and all(step.kind != "affine" for step in steps):
            return None, None, norm, size
        if len(scale) != 3 or not (scale > 0).all():
            raise misfit(steps[0].label, "normalises images in an unsupported way")
        mean, std = -shift / scale, 1 / scale
        # Values in [0, 1] have no mean or deviation this large.
        if self.graph.pixels or max(*np.abs(mean), *std) > 2:
            mean, std = mean / 255, std / 255
        return _rgb(mean), _rgb(std), norm, size

    def _eps(self) -> float:
        """The most common epsilon of norms; the variances of other norms absorb the difference."""
        counts = Counter(s.settings["eps"] for s in self.steps.values() if s.kind == "norm")
        return counts.most_common(1)[0][0] if counts else 1e-5


def _convolutions(steps: Sequence[Step]) -> int:
    return sum(step.kind == "conv" for step in steps)


def _rgb(values: Array) -> PerChannel:
    # The digits that float32 holds.
    red, green, blue = (float(f"{value:.7g}") for value in values)
    return red, green, blue


def _parted(steps: Sequence[Step]) -> tuple[list[Step], Step, tuple[Step, ...]]:
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
        if step.kind not in ("norm", "relu", "pool"):
            raise misfit(step.label, "does not fit in a stem")
    kernel = steps[index].settings["weight"].shape[-1]
    stride, pools = steps[index].settings["stride"], any(step.kind == "pool" for step in rest)
    if (kernel, stride, pools) not in ((7, 2, True), (3, 1, False)):
        raise misfit(
            steps[index].label,
            f"a stem of {kernel}x{kernel} in steps of {stride} with{'' if pools else 'out'} "
            "pooling; a ResNet's is 7x7 in steps of 2 with, or 3x3 without",
        )
    return list(steps[:index]), steps[index], rest


def _units(steps: Sequence[Step]) -> list[Unit]:
    """Convolutions with their norms, with a ReLU between two units."""
    units: list[Unit] = []
    rest = list(steps)
    while rest:
        conv = rest.pop(0)
        if conv.kind != "conv":
            raise misfit(conv.label, "is where a residual branch has a convolution")
        norm = rest.pop(0) if rest and rest[0].kind == "norm" else None
        units.append(Unit(conv, norm))
        if rest:
            relu = rest.pop(0)
            if relu.kind != "relu" or not rest:
                raise misfit(relu.label, "is where a residual branch has a ReLU and a convolution")
    return units


class _Layers:
    """Collects our network's tensors layer by layer. A norm that was folded into a convolution
    becomes one that only adds the bias."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.tensors: dict[str, Tensor] = {}
        self.paddings: dict[str, set[str]] = {}
        self.biased: dict[str, list[str]] = {}

    def put(self, name: str, value: Array) -> None:
        # A copy: constants of a file are read-only, and transposed ones are not contiguous.
        self.tensors[name] = torch.from_numpy(np.array(value, np.float32, order="C"))

    def norm(self, name: str, step: Step | None, bias: Array | None = None, width: int = 0) -> None:
        """A norm that absorbs `bias` of the layer before; without `step`, of `width` channels."""
        if step is None:
            ones, zeros = np.ones(width), np.zeros(width)
            values = {"weight": ones, "bias": zeros if bias is None else bias, "mean": zeros}
            var = ones - self.eps
        else:
            values = dict(step.settings)
            var = values["var"]
            if values["eps"] != self.eps:
                var = var.astype(np.float64) + (values["eps"] - self.eps)
            if bias is not None:
                values["mean"] = values["mean"].astype(np.float64) - bias
        self.put(f"{name}.weight", values["weight"])
        self.put(f"{name}.bias", values["bias"])
        self.put(f"{name}.running_mean", values["mean"])
        self.put(f"{name}.running_var", var)

    def convolution(self, name: str, role: str, step: Step, *, bias: bool) -> None:
        """`role`: the name in `Architecture.biases`; `bias`: no norm absorbs the bias."""
        self.put(f"{name}.weight", step.settings["weight"])
        if step.settings["weight"].shape[-1] > 1 and step.settings["stride"] > 1:
            where = "stem" if role == "stem" else "blocks"
            allowed = set(step.settings["paddings"])
            self.paddings[where] = self.paddings.get(where, allowed) & allowed
            if not self.paddings[where]:
                raise misfit(step.label, "is padded differently from the convolutions before it")
        if bias:
            self.biased.setdefault(role, []).append(name)
            if step.settings["bias"] is not None:
                self.put(f"{name}.bias", step.settings["bias"])

    def normed(self, conv: str, norm: str, role: str, unit: Unit) -> None:
        """A convolution and the norm that follows it."""
        self.convolution(conv, role, unit.conv, bias=False)
        width = len(unit.conv.settings["weight"])
        self.norm(norm, unit.norm, unit.conv.settings["bias"], width)

    def finish(self) -> dict[str, Tensor]:
        """All tensors; if one convolution of a role has a bias, all of that role get one."""
        for names in self.biased.values():
            if any(f"{name}.bias" in self.tensors for name in names):
                for name in names:
                    width = len(self.tensors[f"{name}.weight"])
                    self.tensors.setdefault(f"{name}.bias", torch.zeros(width))
        return self.tensors

    def padding(self, where: str) -> str:
        allowed = self.paddings.get(where, {"symmetric"})
        return "symmetric" if "symmetric" in allowed else "same"


@dataclass(frozen=True, slots=True)
class Stem:
    """An interpretation of the steps between the first convolution and the first block.

    `normed`, `first`: norm and ReLU of the stem and of the first block, or (); a ReLU alone had
        its norm folded into the convolution before it.
    `activated`: whether the first shortcut sees the output of `first`; None if it makes no
        difference.
    """

    name: PreactStem
    normed: tuple[Step, ...]
    pool: Step | None
    first: tuple[Step, ...]
    activated: bool | None


def _stems(preact: bool, conv: Step, block: Block) -> list[Stem]:
    """All interpretations of the stem; a small stem before a pre-activation block has two."""
    entrance = takewhile(lambda step: preact and step.kind != "conv", block.residual)
    steps = (*block.before, *entrance)
    layout = re.fullmatch("(n?r)?(p)?(n?r)?", "".join(step.kind[0] for step in steps))
    stems: list[Stem] = []
    if layout is not None:
        norm, pool, first = (steps[slice(*layout.span(group))] for group in (1, 2, 3))
        one_pool = pool[0] if pool else None
        if preact:
            stems = _preact_stems(norm, one_pool, first, len(block.before))
        elif norm and not first:
            stems = [Stem("bare", norm, one_pool, (), None)]
    if not stems:
        raise misfit(
            (steps or (conv,))[-1].label, "does not fit between a stem and its first block"
        )
    return stems


def _preact_stems(
    norm: tuple[Step, ...], pool: Step | None, first: tuple[Step, ...], entry: int
) -> list[Stem]:
    """The interpretations before a pre-activation block; its branches start after `entry` steps."""
    end = len(norm) + (pool is not None) + len(first)
    if first:
        activated = {end: True, end - len(first): False}.get(entry)
        if activated is None:
            return []
        return [Stem("activated" if norm else "bare", norm, pool, first, activated)]
    stems: list[Stem] = []
    if norm and not pool and entry in (0, end):  # The norm may be the block's own.
        stems.append(Stem("bare", (), None, norm, entry > 0))
    if norm and entry == end:
        stems.append(Stem("activated_once", norm, pool, (), None))
    return stems


def _stride(steps: Sequence[Step]) -> int:
    return prod(step.settings["stride"] for step in steps if step.kind == "conv")


def _places(blocks: Sequence[Block]) -> tuple[str, list[tuple[int, int]]]:
    """`stride_block`, and the stage and the index in it of every block."""
    strided, widened = [], []
    for index, block in enumerate(blocks):
        first, *_, last = [step for step in block.residual if step.kind == "conv"]
        if _stride(block.residual) > 1:
            strided.append(index)
        if len(last.settings["weight"]) != first.settings["weight"].shape[1]:
            widened.append(index)
    for which, starts in (("first", strided), ("last", [index + 1 for index in strided])):
        possible = 0 not in starts and len(blocks) not in starts
        if possible and set(widened) <= {0, *starts}:
            bounds = [0, *starts, len(blocks)]
            return which, [
                (stage, index - bounds[stage])
                for stage in range(len(bounds) - 1)
                for index in range(bounds[stage], bounds[stage + 1])
            ]
    index = next((place for place in widened if place not in (0, *strided)), [*strided, 0][0])
    raise misfit(blocks[index].label, "strides or widens where no stage of a ResNet begins or ends")


def _residual(block: Block) -> list[Unit]:
    """The units of the residual branch, from the first convolution on."""
    count = next(i for i, step in enumerate(block.residual) if step.kind == "conv")
    return _units(block.residual[count:])


def _entrance(index: int, block: Block, stem: Stem) -> tuple[Step, ...]:
    """The norm and the ReLU before a pre-activation block's first convolution."""
    if index == 0:
        return stem.first
    count = next(i for i, step in enumerate(block.residual) if step.kind == "conv")
    if count and block.before:
        raise misfit(block.residual[0].label, "a second norm before a pre-activation block")
    entrance = block.residual[:count] or block.before
    if [step.kind for step in entrance] not in (["norm", "relu"], ["relu"]):
        label = (entrance or block.residual)[0].label
        raise misfit(label, "is where a pre-activation block has a norm and a ReLU")
    return entrance


def _norm_of(steps: Sequence[Step]) -> Step | None:
    return steps[0] if steps and steps[0].kind == "norm" else None


def _assemble(
    layers: _Layers, stem: Stem, conv: Step, blocks: Sequence[Block], *, preact: bool
) -> dict[str, Any]:
    """Adds everything between the images and the final norm to `layers`; returns the fields of
    `Architecture` that tensors do not determine."""
    bias = None
    if stem.normed:
        layers.normed("stem.conv", "stem.norm", "stem", Unit(conv, _norm_of(stem.normed)))
    else:
        # The first block's norm absorbs the bias, unless something else sees it too.
        taken = stem.activated is True and stem.pool is None
        layers.convolution("stem.conv", "stem", conv, bias=not taken)
        bias = conv.settings["bias"] if taken else None
    stride_block, places = _places(blocks)
    depth = len(_residual(blocks[0]))
    for index, ((stage, place), block) in enumerate(zip(places, blocks, strict=True)):
        name, units = f"stages.{stage}.{place}", _residual(block)
        if len(units) != depth:
            raise misfit(block.label, f"ends a block of {len(units)} convolutions, not {depth}")
        if preact:
            entrance = _entrance(index, block, stem)
            if entrance:
                channels = units[0].conv.settings["weight"].shape[1]
                taken_in = bias if index == 0 else None
                layers.norm(f"{name}.bn1", _norm_of(entrance), taken_in, channels)
        elif block.residual[0].kind != "conv":
            raise misfit(block.residual[0].label, "is where a residual branch has a convolution")
        _branch(layers, name, units, preact=preact)
        _shortcut(layers, name, block, preact=preact)
    widened = [step.settings["pads"] for b in blocks for step in b.shortcut if step.kind == "widen"]
    strides = {_residual(block)[0].conv.settings["stride"] for block in blocks}
    return {
        "stride_block": stride_block,
        "stride_at": "1x1" if depth == 3 and strides != {1} else "3x3",
        "shortcut_padding": "end" if any(b != (b + a) // 2 for b, a in widened) else "both",
        "padding": layers.padding("blocks"),
        "stem_padding": layers.padding("stem"),
        "pool_padding": stem.pool.settings["paddings"][0] if stem.pool else "symmetric",
        "preact_stem": stem.name,
        "eps": layers.eps,
    }


def _branch(layers: _Layers, name: str, units: Sequence[Unit], *, preact: bool) -> None:
    *inner, last = units
    for number, unit in enumerate(inner, 1):
        norm = f"{name}.bn{number + preact}"
        layers.normed(f"{name}.conv{number}", norm, f"conv{number}", unit)
    role = f"conv{len(units)}"
    if not preact:
        layers.normed(f"{name}.{role}", f"{name}.bn{len(units)}", role, last)
    elif last.norm:
        raise misfit(last.norm.label, "a norm at the end of a pre-activation block")
    else:
        layers.convolution(f"{name}.{role}", role, last.conv, bias=True)


def _shortcut(layers: _Layers, name: str, block: Block, *, preact: bool) -> None:
    kinds = [step.kind for step in block.shortcut]
    conv = f"{name}.shortcut.conv"
    if kinds[:1] == ["conv"]:
        (unit,) = _units(block.shortcut)
        if not preact:
            layers.normed(conv, f"{name}.shortcut.bn", "shortcut", unit)
        elif unit.norm:
            raise misfit(unit.norm.label, "a norm on the shortcut of a pre-activation block")
        else:
            layers.convolution(conv, "shortcut", unit.conv, bias=True)
    elif sorted(kinds) not in ([], ["subsample"], ["widen"], ["subsample", "widen"]):
        odd = next(step for step in block.shortcut if step.kind not in ("subsample", "widen"))
        raise misfit(odd.label, "does not fit on a shortcut")


def _differences(
    architecture: Architecture, stem: Stem, blocks: Sequence[Block]
) -> Iterator[tuple[str, str]]:
    """The nodes where our network of this architecture differs, and how."""
    network = on_meta(architecture)
    modules = [cast("Any", block) for stage in network.stages for block in cast("Any", stage)]
    for index, (module, block) in enumerate(zip(modules, blocks, strict=True)):
        for number, unit in enumerate(_residual(block), 1):
            ours = getattr(module, f"conv{number}").stride[0]
            if unit.conv.settings["stride"] != ours:
                yield unit.conv.label, f"strides by {unit.conv.settings['stride']}, not {ours}"
        if not _equal(module.shortcut, block.shortcut):
            yield (
                block.label,
                f"its shortcut is not of option {architecture.shortcut}, as others are",
            )
        if architecture.preact:
            activated = stem.activated if index == 0 else bool(block.before)
            if activated not in (None, module.shortcut_activated):
                seen = "what is activated" if activated else "what is not yet activated"
                yield block.label, f"its shortcut sees {seen}, unlike others of its kind"


def _equal(module: nn.Module, steps: Sequence[Step]) -> bool:
    """Whether our shortcut computes the same as these steps."""
    if isinstance(module, ConvShortcut):
        settings = steps[0].settings if steps and steps[0].kind == "conv" else {}
        return bool(settings) and settings["stride"] == module.conv.stride[0]
    strides, pads = [1, 1], [0, 0]
    for step in steps:
        if step.kind == "subsample":
            strides = list(step.settings["strides"])
        elif step.kind == "widen":
            pads = list(step.settings["pads"])
        else:
            return False
    if isinstance(module, PaddedShortcut):
        return strides == [module.stride] * 2 and pads == list(module.padding[4:])
    return strides == [1, 1] and pads == [0, 0]
