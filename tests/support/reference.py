"""CIFAR networks as public repositories write them, in a few lines each.

Only names, padding and the order of operations matter; widths and depths are tiny.
"""

from __future__ import annotations

import re
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

Style = Literal["akamaster", "chenyaofo", "kuangliu"]


class LambdaLayer(nn.Module):
    """akamaster's option A: new channels on both sides."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.planes // 4
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)


class Residual(nn.Module):
    """Adds the shortcut under the name that each repository gives it."""

    def add_shortcut(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        changes = stride != 1 or in_planes != planes
        layers = [nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)]
        self.downsample: nn.Module | None = None
        self.shortcut: nn.Module
        if style == "chenyaofo":
            self.downsample = nn.Sequential(*layers) if changes else None
        elif style == "kuangliu":
            self.shortcut = nn.Sequential(*layers) if changes else nn.Sequential()
        else:
            self.shortcut = LambdaLayer(planes) if changes else nn.Sequential()

    def skip(self, x: Tensor) -> Tensor:
        if hasattr(self, "shortcut"):
            return cast("Tensor", self.shortcut(x))
        return x if self.downsample is None else cast("Tensor", self.downsample(x))


class BasicBlock(Residual):
    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.add_shortcut(in_planes, planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.skip(x))


class Bottleneck(Residual):
    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.add_shortcut(in_planes, 4 * planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.skip(x))


class Network(nn.Module):
    """`width` wide in the stem; each of `blocks` is a stage, twice as wide as the one before."""

    def __init__(
        self,
        style: Style,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        channels = width
        for stage, count in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, planes, stride, style))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.classifier = "fc" if style == "chenyaofo" else "linear"
        self.add_module(self.classifier, nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        logits: Tensor = self.get_submodule(self.classifier)(out.mean((2, 3)))
        return logits


def _strides(stages: int, blocks: int) -> list[tuple[int, int, int]]:
    """Of each block its stage, its index and its stride."""
    return [
        (stage, index, 2 if stage > 0 and index == 0 else 1)
        for stage in range(stages)
        for index in range(blocks)
    ]


class PreActBlock(nn.Module):
    """kuangliu's pre-activation: the shortcut projects the activated input; `bottleneck` strides in
    its 3x3 convolution."""

    def __init__(self, in_planes: int, planes: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.out = planes * (4 if bottleneck else 1)
        self.bn1 = nn.BatchNorm2d(in_planes)
        if bottleneck:
            self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(planes)
            self.conv3 = nn.Conv2d(planes, self.out, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        if stride != 1 or in_planes != self.out:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, self.out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        if hasattr(self, "conv3"):
            out = self.conv3(F.relu(self.bn3(out)))
        return cast("Tensor", out + skip)


class PreActNetwork(nn.Module):
    """kuangliu's: neither a norm behind the stem nor one after the last block."""

    def __init__(self, width: int, classes: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = width
        for stage, index, stride in _strides(4, 2):
            block = PreActBlock(channels, width * 2**stage, stride, bottleneck=bottleneck)
            if index == 0:
                self.add_module(f"layer{stage + 1}", nn.Sequential())
            cast("nn.Sequential", self.get_submodule(f"layer{stage + 1}")).append(block)
            channels = block.out
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for stage in range(4):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        return cast("Tensor", self.linear(out.mean((2, 3))))


def _sequence(*layers: tuple[int, ...]) -> nn.Sequential:
    """Convolutions (in, out, kernel, stride), each behind a norm and an activation, with biases."""
    made = nn.Sequential()
    for inner, outer, kernel, stride in layers:
        made.append(nn.BatchNorm2d(inner)).append(nn.ReLU())
        made.append(nn.Conv2d(inner, outer, kernel, stride, kernel // 2))
    return made


class Weiaicunzai(nn.Module):
    """A block of weiaicunzai's: "post" activation, "pre" activation or "wide".

    The pre-activated shortcut projects the raw input, and a bottleneck strides at once.
    """

    def __init__(self, inner: int, planes: int, stride: int, kind: str, *, deep: bool) -> None:
        super().__init__()
        self.kind, self.out = kind, planes * (4 if deep else 1)
        bias = kind != "post"
        if kind == "post":
            sizes = [(inner, planes, 3, stride), (planes, planes, 3, 1)]
            if deep:
                sizes = [(inner, planes, 1, 1), (planes, planes, 3, stride)]
                sizes.append((planes, self.out, 1, 1))
            function = nn.Sequential()
            for number, (before, after, kernel, step) in enumerate(sizes):
                if number:
                    function.append(nn.ReLU())
                conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
                function.append(conv).append(nn.BatchNorm2d(after))
            self.residual_function = function
        elif deep:
            self.residual = _sequence(
                (inner, planes, 1, stride), (planes, planes, 3, 1), (planes, self.out, 1, 1)
            )
        else:
            self.residual = _sequence((inner, planes, 3, stride), (planes, planes, 3, 1))
            if kind == "wide":
                self.residual.insert(5, nn.Dropout())
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inner != self.out:
            conv = nn.Conv2d(inner, self.out, 1, stride, bias=bias)
            self.shortcut = conv if kind == "pre" else nn.Sequential(conv)
            if kind == "post":
                cast("nn.Sequential", self.shortcut).append(nn.BatchNorm2d(self.out))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "post":
            return F.relu(self.residual_function(x) + self.shortcut(x))
        return cast("Tensor", self.residual(x) + self.shortcut(x))


WEIAICUNZAI_STAGES = {"post": "conv{}_x", "pre": "stage{}", "wide": "conv{}"}


class WeiaicunzaiNetwork(nn.Module):
    def __init__(self, kind: str, classes: int, *, deep: bool = False) -> None:
        super().__init__()
        self.kind, width, channels = kind, 16 if kind == "wide" else 8, 8
        if kind == "wide":
            channels = 4
            self.init_conv = nn.Conv2d(3, channels, 3, 1, 1)
        else:
            conv = nn.Conv2d(3, channels, 3, 1, 1, bias=kind == "pre")
            stem = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
            self.add_module("conv1" if kind == "post" else "pre", stem)
        self.names: list[str] = []
        for stage, index, stride in _strides(3, 2):
            name = WEIAICUNZAI_STAGES[kind].format(stage + (1 if kind == "pre" else 2))
            if index == 0:
                self.add_module(name, nn.Sequential())
                self.names.append(name)
            block = Weiaicunzai(channels, width * 2**stage, stride, kind, deep=deep)
            cast("nn.Sequential", self.get_submodule(name)).append(block)
            channels = block.out
        if kind == "wide":
            self.bn = nn.BatchNorm2d(channels)
        self.add_module("fc" if kind == "post" else "linear", nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        stem = {"post": "conv1", "pre": "pre", "wide": "init_conv"}[self.kind]
        for name in (stem, *self.names):
            x = self.get_submodule(name)(x)
        if self.kind == "wide":
            x = F.relu(self.bn(x))
        head = self.get_submodule("fc" if self.kind == "post" else "linear")
        return cast("Tensor", head(x.mean((2, 3))))


class Xternalz(nn.Module):
    """xternalz's wide block."""

    def __init__(self, inner: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv1 = nn.Conv2d(inner, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = (
            nn.Conv2d(inner, planes, 1, stride, bias=False) if inner != planes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(out)
        return cast("Tensor", skip + self.conv2(F.relu(self.bn2(self.conv1(out)))))


class XternalzNetwork(nn.Module):
    def __init__(self, widen: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        channels = 4
        for stage in range(3):
            group = nn.Module()
            group.layer = nn.Sequential()
            for index in range(2):
                stride = 2 if stage > 0 and index == 0 else 1
                group.layer.append(Xternalz(channels, 4 * widen * 2**stage, stride))
                channels = 4 * widen * 2**stage
            self.add_module(f"block{stage + 1}", group)
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(3):
            x = self.get_submodule(f"block{stage + 1}.layer")(x)
        return cast("Tensor", self.fc(F.relu(self.bn1(x)).mean((2, 3))))

    def as_szagoruyko(self) -> dict[str, Tensor]:
        """The same network as its paper's author saves it: a function of named parameters."""
        renamed = {}
        for name, value in self.state_dict().items():
            for pattern, theirs in SZAGORUYKO:
                name = re.sub(pattern, theirs, name)  # noqa: PLW2901
            renamed[name] = value
        return {name: value for name, value in renamed.items() if "num_batches" not in name}


SZAGORUYKO = (
    (r"^bn1\.", "bn."),
    (r"^conv1\.weight", "conv0"),
    (r"^block1\.layer\.", "group0.block"),
    (r"^block2\.layer\.", "group1.block"),
    (r"^block3\.layer\.", "group2.block"),
    (r"\.convShortcut\.weight", ".convdim"),
    (r"\.conv1\.weight", ".conv0"),
    (r"\.conv2\.weight", ".conv1"),
    (r"\.bn1\.", ".bn0."),
    (r"\.bn2\.", ".bn1."),
)
