"""Recognises the residual network in an ONNX graph by following its data flow from the output.

A block is two branches that start at one value and meet in a sum. The steps on them determine the
fields of an `Architecture`. Finally our network of that architecture is compared with the graph,
and any difference is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, cast, get_args

from torch import Tensor, nn

from models.architecture import Antialias, Architecture, PreactShortcut
from models.interchange.architecture import infer_architecture, places
from models.interchange.linear import head_tensors
from models.interchange.onnx.graph import Graph, Step, misfit
from models.interchange.onnx.heads import Ending, read_head
from models.interchange.onnx.layers import Layers, Unit
from models.interchange.onnx.stems import Front, Stem, interpretations, parted, read_front
from models.layers import ConvShortcut, PaddedShortcut
from models.pooling import Blur
from models.resnet import on_meta

ANTIALIAS: dict[str, Antialias] = {"average": "average", "blur": "blur"}
KINDS: dict[type, str] = {nn.AvgPool2d: "average", Blur: "blur"}


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
    """`ending`: what makes probabilities of the logits, and is left out. For the rest see
    `Imported` and `Front`."""

    architecture: Architecture
    tensors: dict[str, Tensor]
    front: Front
    ending: Ending


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
        head = read_head(self.graph)
        preact, final, value = self._end(head.features)
        blocks = self._blocks(value, preact)
        before, conv, rest = parted(blocks[0].before)
        count = conv.settings["weight"].shape[1]
        front = read_front(self.graph, before, count)
        settings = {**conv.settings, "weight": front.unordered(conv.settings["weight"])}
        conv = replace(conv, settings=settings)
        blocks[0] = replace(blocks[0], before=rest)

        rules = get_args(PreactShortcut) if preact else ("projected",)
        differences: list[tuple[str, str]] = []
        stems = interpretations(preact, conv, rest, blocks[0].residual)
        for rule, stem in product(rules, stems):
            layers = Layers(self._eps())
            if front.norm:
                layers.norm("input_norm", front.norm)
            numerics = _assemble(layers, stem, conv, blocks, preact=preact)
            if final:
                layers.norm("norm", final)
            layers.tensors |= head_tensors(head.layers)
            numerics |= {"preact": preact, "preact_shortcut": rule}
            numerics["final_norm"] = final is not None or not preact
            tensors = layers.finish()
            architecture = infer_architecture(tensors, **numerics)
            misfits = list(_differences(architecture, stem, blocks))
            if not misfits:
                return Found(architecture, tensors, front, head.ending)
            differences += misfits
        raise misfit(*differences[0])

    # From the end to the stem.

    def _chain(self, value: str) -> list[str]:
        """The values from `value` back to the last sum, or to the images."""
        chain = [value]
        while self.steps[chain[-1]].kind not in ("add", "input"):
            chain.append(self.steps[chain[-1]].sources[0])
        return chain

    def _forward(self, values: Sequence[str]) -> tuple[Step, ...]:
        return tuple(self.steps[value] for value in reversed(values))

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

    def _eps(self) -> float:
        """The most common epsilon of norms; the variances of other norms absorb the difference."""
        counts = Counter(s.settings["eps"] for s in self.steps.values() if s.kind == "norm")
        return counts.most_common(1)[0][0] if counts else 1e-5


def _convolutions(steps: Sequence[Step]) -> int:
    return sum(step.kind == "conv" for step in steps)


def _units(steps: Sequence[Step]) -> list[Unit]:
    """Convolutions with their norms, with a ReLU between two units."""
    units: list[Unit] = []
    rest = list(steps)
    while rest:
        conv = rest.pop(0)
        if conv.kind != "conv":
            raise misfit(conv.label, "is where a residual branch has a convolution")
        norm = rest.pop(0) if rest and rest[0].kind == "norm" else None
        unit = Unit(conv, norm)
        if rest:
            relu = rest.pop(0)
            if relu.kind != "relu" or not rest:
                raise misfit(relu.label, "is where a residual branch has a ReLU and a convolution")
            if rest[0].kind in ANTIALIAS:
                unit = replace(unit, antialias=rest.pop(0))
        units.append(unit)
    return units


def _strides(steps: Sequence[Step]) -> bool:
    return bool(prod(step.settings.get("stride", 1) for step in steps) > 1)


Places = list[tuple[int, int]]


def _stages(blocks: Sequence[Block]) -> tuple[dict[str, Any], Places]:
    """The fields of `Architecture` that tell where blocks stride; and of every block its stage and
    its index in it."""
    strided, widened, dilates = [], [], False
    for index, block in enumerate(blocks):
        first, *_, last = convolutions = [step for step in block.residual if step.kind == "conv"]
        dilates |= any(step.settings["dilation"] > 1 for step in convolutions)
        if _strides(block.residual):
            strided.append(index)
        if len(last.settings["weight"]) != first.settings["weight"].shape[1]:
            widened.append(index)
    # A stage that does not stride widens and dilates.
    dilated = [index for index in widened if index not in (0, *strided)] if dilates else []
    ends = [0, *(index + 1 for index in strided), len(blocks)]
    starts = [0, *sorted({*strided, *dilated} - {0}), len(blocks)]
    first_way: dict[str, Any] = {
        "stride_block": "first",
        "stride_stages": "all" if 0 in strided else "later",
        "dilation": tuple(map(starts.index, dilated)),
    }
    last_way: dict[str, Any] = {"stride_block": "last"}
    ways = [(first_way, starts), (last_way, ends)]
    # One block that strides may be all of the first stage, which mostly does not.
    for fields, bounds in ways[::-1] if 0 in strided else ways:
        if len(set(bounds)) == len(bounds) and set(widened) <= set(bounds):
            return fields, places(bounds[1:-1], len(blocks))
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
    layers: Layers, stem: Stem, conv: Step, blocks: Sequence[Block], *, preact: bool
) -> dict[str, Any]:
    """Adds everything between the images and the final norm to `layers`; returns the fields of
    `Architecture` that tensors do not determine."""
    bias = None
    if stem.normed:
        layers.normed("stem.conv", "stem.norm", "stem", Unit(conv, _norm_of(stem.normed)))
    else:
        # The first block's norm absorbs the bias, unless something else sees it too.
        taken = stem.activated is True and not stem.pool
        layers.convolution("stem.conv", "stem", conv, bias=not taken)
        bias = conv.settings["bias"] if taken else None
    described, located = _stages(blocks)
    depth = len(_residual(blocks[0]))
    for index, ((stage, place), block) in enumerate(zip(located, blocks, strict=True)):
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
    if described.get("stride_stages") == "all":
        described |= _projections(blocks)
    return {
        **described,
        **stem.described(conv),
        "antialias": _antialias(stem, blocks),
        "stride_at": "1x1" if depth == 3 and strides != {1} else "3x3",
        "shortcut_padding": "end" if any(b != (b + a) // 2 for b, a in widened) else "both",
        "padding": layers.padding("blocks"),
        "stem_padding": layers.padding("stem"),
        "eps": layers.eps,
    }


def _projections(blocks: Sequence[Block]) -> dict[str, Any]:
    """The option of shortcuts that project in the first block too, because it strides."""
    convs = [[step for step in block.shortcut if step.kind == "conv"] for block in blocks]
    if all(convs) or not any(convs):
        return {}  # Tensors tell options A and C.
    return {"shortcut": "conv" if any(_kernel(each[0]) == 3 for each in convs if each) else "B"}


def _kernel(convolution: Step) -> int:
    return int(convolution.settings["weight"].shape[-1])


def _antialias(stem: Stem, blocks: Sequence[Block]) -> Antialias:
    for step in (*stem.pool, *(step for block in blocks for step in block.residual)):
        if step.kind in ANTIALIAS:
            return ANTIALIAS[step.kind]
    return "none"


def _branch(layers: Layers, name: str, units: Sequence[Unit], *, preact: bool) -> None:
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


def _shortcut(layers: Layers, name: str, block: Block, *, preact: bool) -> None:
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
    if stem.pool and not _pools_like(architecture, stem.pool):
        yield stem.pool[0].label, "pools the stem unlike the blocks behind it"
    for index, (module, block) in enumerate(zip(modules, blocks, strict=True)):
        yield from _differing_units(module, _residual(block))
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


def _pools_like(architecture: Architecture, pool: Sequence[Step]) -> bool:
    steps = [(step.kind, step.settings["stride"]) for step in pool]
    if architecture.antialias == "average":
        return steps == [("average", 2)]
    if architecture.antialias == "blur":
        return steps == [("pool", 1), ("blur", 2)]
    return steps == [("pool", 2)]


def _differing_units(module: Any, units: Sequence[Unit]) -> Iterator[tuple[str, str]]:
    for number, unit in enumerate(units, 1):
        ours: nn.Conv2d = getattr(module, f"conv{number}")
        stride, dilation = (unit.conv.settings[name] for name in ("stride", "dilation"))
        if stride != ours.stride[0]:
            yield unit.conv.label, f"strides by {stride}, not {ours.stride[0]}"
        if dilation != ours.dilation[0]:
            yield unit.conv.label, f"dilates by {dilation}, not {ours.dilation[0]}"
        inner = getattr(module, "antialias", nn.Identity()) if number == len(units) - 1 else None
        expected = KINDS.get(type(inner))
        if expected != (unit.antialias.kind if unit.antialias else None):
            label = (unit.antialias or unit.conv).label
            yield label, "subsamples unlike other blocks of the network"


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
