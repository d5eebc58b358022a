"""Recognises the residual network in a Keras model's graph by following its data flow.

A block is two branches that start at one value and meet in a sum. The layers on them determine
our names of the layers, and the fields of an `Architecture`. Finally our network of that
architecture is compared with the graph, and any difference is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast, get_args

from models.architecture import Architecture, PreactShortcut
from models.bundle import BundleError
from models.interchange.architecture import places, stem_fields
from models.interchange.keras.graph import KerasGraph, KerasLayer
from models.layers import ConvShortcut, PaddedShortcut
from models.resnet import on_meta

KERNELS = {2: (3, 3), 3: (1, 3, 1)}


@dataclass(frozen=True, slots=True)
class LayerStep:
    """A layer of a kind that blocks consist of: conv, norm, relu, pool or subsample.

    `padding` of a conv or a pool: "same", "symmetric", or "zero"; "" where it makes no difference.
    """

    kind: str
    node: KerasLayer
    stride: int = 1
    padding: str = ""

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True, slots=True)
class Branches:
    """Two branches that meet in the sum `label`, in the order of the data.

    `before`: the steps between the previous sum and the branches; for the first block, the stem.
    """

    label: str
    before: tuple[LayerStep, ...]
    residual: tuple[LayerStep, ...]
    shortcut: tuple[LayerStep, ...]


@dataclass(slots=True)
class Body:
    """`names`: our name of each layer with weights. `numerics`: fields of `Architecture` that
    tensors do not determine. `front`, `tail`: the layers before the stem and behind the maps.

    `blocks` and `activated` (whether the first block's input is activated, None where it makes no
    difference) are for `difference`.
    """

    names: dict[str, str]
    numerics: dict[str, Any]
    front: list[KerasLayer]
    tail: list[KerasLayer]
    blocks: list[Branches] = field(default_factory=list)
    activated: bool | None = False


def read_bodies(graph: KerasGraph) -> Iterator[Body]:
    """The ways to read the network; `difference` tells which of them is right.

    Raises:
        BundleError: it is not a plain ResNet; the message names the first layer that does not fit.
    """
    chain = graph.chain(graph.output)
    if not _is_sum(chain[-1]):
        raise BundleError("has no layer that adds a shortcut: is this a ResNet?")
    end, tail = chain[-1], chain[-2::-1]
    kinds = [_kind(node) for node in tail[:2]]
    preact = kinds[:1] != ["relu"]
    final = tail[0] if kinds == ["norm", "relu"] else None
    if not preact:
        tail = tail[1:]
    elif final is not None:
        tail = tail[2:]
    blocks, front = _blocks(graph, end, preact=preact)
    rules = get_args(PreactShortcut) if preact else ("projected",)
    for rule, stem in product(rules, _stems(blocks[0], preact=preact)):
        body = _named(blocks, stem, preact=preact)
        body.front, body.tail = front, tail
        body.numerics |= {"preact": preact, "final_norm": final is not None or not preact}
        body.numerics["preact_shortcut"] = rule
        if final is not None:
            body.names[final.name] = "norm"
        yield body


def difference(architecture: Architecture, body: Body) -> str:
    """The first layer where our network of this architecture differs, and how; else ""."""
    network = on_meta(architecture)
    modules = [cast("Any", block) for stage in network.stages for block in cast("Any", stage)]
    for index, (module, block) in enumerate(zip(modules, body.blocks, strict=True)):
        for number, step in enumerate(_convolutions(block.residual), 1):
            stride = getattr(module, f"conv{number}").stride[0]
            if step.stride != stride:
                return f"layer {step.name} strides by {step.stride}, not {stride}"
        if not _equal(module.shortcut, block.shortcut):
            return f"layer {block.label} adds a shortcut of another kind than other blocks"
        if architecture.preact:
            activated = body.activated if index == 0 else bool(block.before)
            if activated not in (None, module.shortcut_activated):
                seen = "what is activated" if activated else "what is not yet activated"
                return f"layer {block.label} adds a shortcut from {seen}, unlike other blocks"
    return ""


def _equal(module: Any, steps: Sequence[LayerStep]) -> bool:
    """Whether our shortcut computes what these steps do."""
    strides = [step.stride for step in steps if step.kind in ("conv", "subsample")]
    if isinstance(module, ConvShortcut):
        return [s.kind for s in steps][:1] == ["conv"] and strides == [module.conv.stride[0]]
    if isinstance(module, PaddedShortcut):
        return [step.kind for step in steps] == ["subsample"] and strides == [module.stride]
    return not steps


# From the end to the stem.


def _is_sum(node: KerasLayer) -> bool:
    return node.kind == "Add" and len(node.sources) == 2


def _kind(node: KerasLayer) -> str:
    kinds = {"Conv2D": "conv", "BatchNormalization": "norm", "ReLU": "relu"}
    if node.kind == "Activation" and node.activation == "relu":
        return "relu"
    return kinds.get(node.kind, node.kind)


def _blocks(
    graph: KerasGraph, end: KerasLayer, *, preact: bool
) -> tuple[list[Branches], list[KerasLayer]]:
    """All blocks in the order of the data, and the layers from the images to the stem."""
    blocks: list[Branches] = []
    between = ([], ["norm", "relu"]) if preact else (["relu"],)
    while True:
        left, right = (graph.chain(source) for source in end.sources)
        others = {node.name for node in right}
        entry = next((node for node in left if node.name in others), None)
        if entry is None:
            raise BundleError(f"layer {end.name} adds branches that do not start at one layer")
        branches = [_until(chain, entry) for chain in (left, right)]
        branches.sort(key=lambda nodes: sum(node.kind == "Conv2D" for node in nodes))
        shortcut, residual = (_steps(nodes) for nodes in branches)
        before = graph.chain(entry.name)
        # The front may add, too: a constant, which is no second source.
        start, nodes = before[-1], before[:-1][::-1]
        if not _is_sum(start):
            if start.kind != "InputLayer":
                raise BundleError(
                    f"layer {start.name} is a {start.kind} of {len(start.sources)} layers: no "
                    "plain ResNet has one"
                )
            front, stem = _parted([start, *nodes])
            blocks.append(_checked(Branches(end.name, _steps(stem), residual, shortcut)))
            return blocks[::-1], front
        block = _checked(Branches(end.name, _steps(nodes), residual, shortcut))
        if [step.kind for step in block.before] not in between:
            name = nodes[0].name if nodes else end.name
            raise BundleError(f"layer {name} does not fit between residual blocks")
        blocks.append(block)
        end = start


def _until(chain: Sequence[KerasLayer], entry: KerasLayer) -> list[KerasLayer]:
    names = [node.name for node in chain]
    return list(chain[: names.index(entry.name)])[::-1]


def _parted(nodes: Sequence[KerasLayer]) -> tuple[list[KerasLayer], list[KerasLayer]]:
    """The layers from the images to the stem, and those from the stem on."""
    index = next((i for i, node in enumerate(nodes) if node.kind == "Conv2D"), 0)
    if not index:
        raise BundleError("has no convolution before its first block: is this a ResNet?")
    if nodes[index - 1].kind == "ZeroPadding2D":
        index -= 1
    return list(nodes[:index]), list(nodes[index:])


def _checked(block: Branches) -> Branches:
    inside, beside = _convolutions(block.residual), _convolutions(block.shortcut)
    if len(beside) > 1 or len(inside) not in KERNELS:
        raise BundleError(
            f"layer {block.label} adds branches of {len(inside)} and {len(beside)} convolutions; "
            "a residual block has two or three and a shortcut of at most one"
        )
    return block


def _convolutions(steps: Sequence[LayerStep]) -> list[LayerStep]:
    return [step for step in steps if step.kind == "conv"]


# One branch.


def _steps(nodes: Sequence[KerasLayer]) -> tuple[LayerStep, ...]:
    """Layers as steps; a layer that pads is part of the one that follows."""
    steps: list[LayerStep] = []
    pad: KerasLayer | None = None
    for node in nodes:
        if node.kind == "ZeroPadding2D" and pad is None:
            pad = node
            continue
        kind = _kind(node)
        if kind == "conv":
            steps.append(_convolution(node, pad))
        elif kind in ("MaxPooling2D", "AveragePooling2D"):
            steps.append(_pool(node, pad, activated="relu" in [step.kind for step in steps[-1:]]))
        elif kind in ("norm", "relu") and pad is None:
            steps.append(LayerStep(kind, node))
        else:
            raise BundleError(f"layer {node.name} is a {node.kind}: no plain ResNet has one")
        pad = None
    if pad is not None:
        raise BundleError(f"layer {pad.name} pads what no convolution follows")
    return tuple(steps)


def _pads(pad: KerasLayer) -> Any:
    """How many pixels it adds, if that is the same number on all sides."""
    value = pad.config["padding"]
    flat = [side for part in value for side in (part if isinstance(part, list) else [part])]
    return flat[0] if len(set(flat)) == 1 else flat


def _convolution(node: KerasLayer, pad: KerasLayer | None) -> LayerStep:
    (height, width), strides = node.config["kernel_size"], list(node.config["strides"])
    if height != width or height % 2 == 0:
        raise BundleError(f"layer {node.name} is a {height}x{width} convolution: not a ResNet's")
    if strides[0] != strides[1] or strides[0] > 2:
        raise BundleError(f"layer {node.name} strides by {strides}, not 1 or 2")
    (stride, _), padding = strides, node.config["padding"]
    if padding == "same" and pad is None:
        return LayerStep("conv", node, stride, "same" if stride > 1 and height > 1 else "")
    added = 0 if pad is None else _pads(pad)
    if padding != "valid" or added != height // 2:
        raise BundleError(
            f"layer {node.name} has padding {padding}"
            f"{f' behind {added} pixels of {pad.name}' if pad else ''}, not {height // 2} pixels"
        )
    return LayerStep("conv", node, stride, "symmetric" if stride > 1 and height > 1 else "")


def _pool(node: KerasLayer, pad: KerasLayer | None, *, activated: bool) -> LayerStep:
    size, strides = list(node.config["pool_size"]), list(node.config["strides"] or ())
    if size == [1, 1] and strides in ([1, 1], [2, 2]) and pad is None:
        return LayerStep("subsample", node, strides[0])
    padding, added = node.config["padding"], 0 if pad is None else _pads(pad)
    if node.kind == "MaxPooling2D" and size == [3, 3] and strides == [2, 2]:
        if padding == "same" and pad is None:
            return LayerStep("pool", node, 2, "same")
        if padding == "valid" and added == 1:
            return LayerStep("pool", node, 2, "symmetric" if activated else "zero")
    raise BundleError(
        f"layer {node.name} pools {size} pixels in steps of {strides}, padding {padding} and "
        f"{added}: a ResNet's stem pools 3x3 in steps of 2 and pads 1"
    )


# The network.


@dataclass(frozen=True, slots=True)
class StemLayers:
    """`own`: the steps of the stem behind its convolution; `entrance`: the norm and the ReLU
    that the first pre-activation block begins with; `name`: see `Architecture.preact_stem`."""

    own: tuple[LayerStep, ...]
    entrance: tuple[LayerStep, ...]
    name: str
    activated: bool | None


def _stems(block: Branches, *, preact: bool) -> list[StemLayers]:
    """The ways to part the steps before the first block, and those it begins with."""
    rest = block.before[1:]
    kinds = [step.kind for step in rest]
    ways: tuple[list[str], ...] = (["norm", "relu"], ["norm", "relu", "pool"])
    stems: list[StemLayers] = []
    if not preact:
        if kinds in ways:
            stems = [StemLayers(rest, (), "bare", None)]
    else:
        begins = _entrance(block)
        for own in ([], ["pool"], *ways):
            left = rest[len(own) :]
            if kinds[: len(own)] != own or [s.kind for s in left] not in ([], ["norm", "relu"]):
                continue
            entrance, normed = left or begins, "norm" in own
            if (left and begins) or not (entrance or normed):
                continue
            name = ("activated" if entrance else "activated_once") if normed else "bare"
            # What was activated once is not changed by a second time.
            activated = bool(left) if entrance else None
            stems.append(StemLayers(rest[: len(own)], entrance, name, activated))
    if not stems:
        name = rest[0].name if rest else block.before[0].name
        raise BundleError(f"layer {name} does not fit behind a stem's convolution")
    return stems


def _entrance(block: Branches) -> tuple[LayerStep, ...]:
    """The steps of a residual branch before its first convolution."""
    index = next(i for i, step in enumerate(block.residual) if step.kind == "conv")
    return block.residual[:index]


def _named(blocks: list[Branches], stem: StemLayers, *, preact: bool) -> Body:
    conv = blocks[0].before[0]
    names = {conv.name: "stem.conv"}
    names |= {step.name: "stem.norm" for step in stem.own if step.kind == "norm"}
    stride_block, stride_stages, located = _places(blocks)
    depth = len(_convolutions(blocks[0].residual))
    for index, ((stage, place), block) in enumerate(zip(located, blocks, strict=True)):
        prefix = f"stages.{stage}.{place}"
        entrance = stem.entrance if index == 0 else (block.before if preact else ())
        begins = _entrance(block)
        if preact and index > 0:
            if bool(entrance) == bool(begins):
                raise BundleError(f"layer {block.label} ends a block that does not activate once")
            entrance = entrance or begins
        names |= {step.name: f"{prefix}.bn1" for step in entrance if step.kind == "norm"}
        residual = block.residual[len(begins) :]
        _check_branch(block, begins, residual, depth, preact=preact)
        number = {"conv": 0, "norm": int(preact)}
        for step in residual:
            if step.kind in number:
                number[step.kind] += 1
                role = "conv" if step.kind == "conv" else "bn"
                names[step.name] = f"{prefix}.{role}{number[step.kind]}"
        names |= _shortcut_names(block, prefix, preact=preact)
    first = {_convolutions(block.residual)[0].stride for block in blocks}
    pool = next((step for step in stem.own if step.kind == "pool"), None)
    every = [step for b in blocks for step in (*b.residual, *b.shortcut) if step.kind == "conv"]
    numerics: dict[str, Any] = {
        "stride_block": stride_block,
        "stride_stages": stride_stages,
        "stride_at": "1x1" if depth == 3 and first != {1} else "3x3",
        "padding": _padding(every),
        "stem_padding": _padding([conv]),
        **stem_fields(conv.node.config["kernel_size"][0], conv.stride, pools=pool is not None),
        "pool_padding": pool.padding if pool else "symmetric",
    }
    if preact:
        numerics["preact_stem"] = stem.name
    return Body(names, numerics, [], [], blocks, stem.activated)


def _check_branch(
    block: Branches,
    begins: Sequence[LayerStep],
    residual: Sequence[LayerStep],
    depth: int,
    *,
    preact: bool,
) -> None:
    """Raises BundleError unless it is convolutions with norms and ReLUs between."""
    if [step.kind for step in begins] not in ([], ["norm", "relu"]) or (begins and not preact):
        raise BundleError(f"layer {begins[0].name} is where a residual branch has a convolution")
    middle = ["conv", "norm", "relu"] * (depth - 1)
    wanted = [*middle, *(["conv"] if preact else ["conv", "norm"])]
    for step, kind in zip(residual, wanted, strict=False):
        if step.kind != kind:
            raise BundleError(f"layer {step.name} is where a residual branch has a {WORDS[kind]}")
    if len(residual) != len(wanted):
        raise BundleError(f"layer {block.label} ends a block of other layers than the first one")
    for step, side in zip(_convolutions(residual), KERNELS[depth], strict=True):
        if (found := list(step.node.config["kernel_size"])) != [side, side]:
            kind = "basic block" if depth == 2 else "bottleneck"
            raise BundleError(
                f"layer {step.name} is a {found[0]}x{found[1]} convolution: not part of a {kind}"
            )


WORDS = {"conv": "convolution", "norm": "BatchNormalization", "relu": "ReLU"}


def _shortcut_names(block: Branches, prefix: str, *, preact: bool) -> dict[str, str]:
    kinds = [step.kind for step in block.shortcut]
    allowed = ([], ["subsample"], ["conv"], *(() if preact else (["conv", "norm"],)))
    if kinds not in allowed:
        raise BundleError(f"layer {block.shortcut[0].name} does not fit on a shortcut")
    roles = {"conv": f"{prefix}.shortcut.conv", "norm": f"{prefix}.shortcut.bn"}
    return {step.name: roles[step.kind] for step in block.shortcut if step.kind in roles}


def _padding(convolutions: Sequence[LayerStep]) -> str:
    paddings = {step.padding for step in convolutions if step.padding}
    if len(paddings) > 1:
        raise BundleError("its strided convolutions are padded differently")
    return paddings.pop() if paddings else "symmetric"


def _places(blocks: Sequence[Branches]) -> tuple[str, str, list[tuple[int, int]]]:
    """Which block of a stage strides, whether all stages do, and each block's stage and index."""
    strided, widened = [], []
    channels = blocks[0].before[0].node.config["filters"]
    for index, block in enumerate(blocks):
        inner = _convolutions(block.residual)
        if any(step.stride > 1 for step in inner):
            strided.append(index)
        if inner[-1].node.config["filters"] != channels:
            widened.append(index)
        channels = inner[-1].node.config["filters"]
    every = "all" if 0 in strided else "later"
    for which, starts in (
        ("first", [index for index in strided if index > 0]),
        ("last", [index + 1 for index in strided]),
    ):
        if set(widened) <= {0, *starts} and len(blocks) not in starts:
            stages = every if which == "first" else "later"
            return which, stages, places(starts, len(blocks))
    index = next((place for place in widened if place not in (0, *strided)), [*strided, 0][0])
    raise BundleError(
        f"layer {blocks[index].label} strides or widens where no stage of a ResNet begins or ends"
    )
