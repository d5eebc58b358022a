"""The networks compute what the papers draw: checked against a few functional lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import variants
from models.architecture import Architecture
from models.blocks import BLOCKS
from models.layers import PaddedShortcut, make_shortcut
from models.resnet import ResNet, build, on_meta
from tests.support import rounding, tiny

Weights = Mapping[str, Tensor]
FAMILIES = [("basic", False), ("bottleneck", False), ("basic", True), ("bottleneck", True)]
SHORTCUTS = [("A", "both"), ("A", "end"), ("B", "both"), ("C", "both"), ("conv", "both")]


def part(weights: Weights, name: str) -> Weights:
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def norm(x: Tensor, w: Weights) -> Tensor:
    x = (x - w["running_mean"].view(-1, 1, 1)) / (w["running_var"].view(-1, 1, 1) + 1e-5).sqrt()
    return x * w["weight"].view(-1, 1, 1) + w["bias"].view(-1, 1, 1)


def conv(x: Tensor, w: Weights, stride: int) -> Tensor:
    return F.conv2d(x, w["weight"], stride=stride, padding=w["weight"].shape[-1] // 2)


def block_by_the_figure(x: Tensor, w: Weights, stride: int, a: Architecture) -> Tensor:
    """He 2015, figure 5 and He 2016, figure 1 (b), read off the drawings."""
    count = 2 if a.block == "basic" else 3
    strided = 2 if a.block == "bottleneck" and a.stride_at == "3x3" else 1
    y = activated = x
    for i in range(1, count + 1):
        if a.preact:
            y = F.relu(norm(y, part(w, f"bn{i}")))
            activated = y if i == 1 else activated
        y = conv(y, part(w, f"conv{i}"), stride if i == strided else 1)
        if not a.preact:
            y = norm(y, part(w, f"bn{i}"))
            y = F.relu(y) if i < count else y
    y = y + shortcut_by_the_figure(x, activated, w, stride, y.shape[1], a)
    return y if a.preact else F.relu(y)


def shortcut_by_the_figure(
    x: Tensor, activated: Tensor, w: Weights, stride: int, channels: int, a: Architecture
) -> Tensor:
    changes = stride != 1 or channels != x.shape[1]
    if a.shortcut == "C" or (changes and a.shortcut != "A"):
        kernel = w["shortcut.conv.weight"].shape[-1]
        assert kernel == (3 if a.shortcut == "conv" else 1)
        if a.preact:
            return conv(activated, part(w, "shortcut.conv"), stride)
        return norm(conv(x, part(w, "shortcut.conv"), stride), part(w, "shortcut.bn"))
    if not changes:
        return x
    subsampled = x[:, :, ::stride, ::stride]
    new = channels - x.shape[1]
    before = new // 2 if a.shortcut_padding == "both" else 0
    y = torch.zeros(len(x), channels, *subsampled.shape[2:], dtype=x.dtype)
    y[:, before : before + x.shape[1]] = subsampled
    return y


def network_by_the_figures(x: Tensor, network: ResNet) -> Tensor:
    a, w = network.architecture, network.state_dict()
    x = conv(x, part(w, "stem.conv"), 1 if a.stem == "small" else 2)
    x = x if a.preact else F.relu(norm(x, part(w, "stem.norm")))
    x = x if a.stem == "small" else F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(a.blocks):
        for index in range(count):
            stride = 2 if index == 0 and stage > 0 else 1
            x = block_by_the_figure(x, part(w, f"stages.{stage}.{index}"), stride, a)
    x = F.relu(norm(x, part(w, "norm"))) if a.preact else x
    return F.linear(x.flatten(2).mean(2), w["head.weight"], w["head.bias"])


def block_cases() -> Iterator[Any]:
    for (block, preact), (shortcut, padding) in itertools.product(FAMILIES, SHORTCUTS):
        for stride_at in ("3x3", "1x1") if block == "bottleneck" else ("3x3",):
            for shape in ("same", "wider", "strided"):
                words = ("pre" if preact else "post", block, shortcut, padding, stride_at, shape)
                yield pytest.param(
                    block, preact, shortcut, padding, stride_at, shape, id=" ".join(words)
                )


@pytest.mark.parametrize(
    ("block", "preact", "shortcut", "padding", "stride_at", "shape"), list(block_cases())
)
def test_each_block_computes_its_figure(
    block: Any, preact: bool, shortcut: Any, padding: Any, stride_at: Any, shape: str
) -> None:
    a = tiny.architecture(
        block=block, preact=preact, shortcut=shortcut, shortcut_padding=padding, stride_at=stride_at
    )
    planes, stride = 6, 2 if shape == "strided" else 1
    out_channels = planes if block == "basic" else 4 * planes
    in_channels = out_channels if shape == "same" else 3
    made = BLOCKS[block, preact](in_channels, planes, stride, a)
    assert isinstance(made, nn.Module)
    assert made.out_channels == out_channels
    tiny.randomised(made).double().eval()
    x = torch.randn(2, in_channels, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(made(x), block_by_the_figure(x, made.state_dict(), stride, a))


@pytest.mark.parametrize(("block", "preact"), FAMILIES)
@pytest.mark.parametrize(("stem", "sides"), [("small", (13, 10)), ("imagenet", (65, 64))])
@pytest.mark.parametrize(("shortcut", "padding"), SHORTCUTS)
def test_a_whole_network_computes_its_figures_at_odd_sizes_too(
    block: Any, preact: bool, stem: Any, sides: tuple[int, int], shortcut: Any, padding: Any
) -> None:
    network = tiny.network(
        block=block,
        preact=preact,
        stem=stem,
        shortcut=shortcut,
        shortcut_padding=padding,
        blocks=(2, 1, 2),
        planes=(4, 8, 16),
    ).double()
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    torch.testing.assert_close(network(x), network_by_the_figures(x, network))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_width_multiplies_inner_channels_and_only_a_basic_blocks_output(block: Any) -> None:
    network = tiny.network(block=block, width=2.5, planes=(4, 8))
    shapes = {name: tuple(value.shape[:2]) for name, value in network.state_dict().items()}
    assert shapes["stem.conv.weight"][0] == 4
    assert shapes["stages.0.0.conv1.weight"] == (10, 4)
    assert shapes["stages.1.0.conv2.weight"] == (20, 20)
    assert (
        network.out_channels
        == network.architecture.out_channels
        == (20 if block == "basic" else 32)
    )
    x = torch.randn(1, 3, 8, 8)
    rounding.assert_near(network(x), network_by_the_figures(x, network), network)


def test_option_a_pads_both_sides_or_the_end_as_it_says() -> None:
    x = torch.arange(1.0, 33).reshape(1, 2, 4, 4)
    kept = x[:, :, ::2, ::2]
    for padding, before, after in (("both", 1, 2), ("end", 0, 3)):
        a = tiny.architecture(shortcut="A", shortcut_padding=padding)
        padded = make_shortcut(2, 5, 2, a)(x)
        zeros = torch.zeros(1, 3, 2, 2)
        expected = torch.cat([zeros[:, :before], kept, zeros[:, :after]], 1)
        assert torch.equal(padded, expected)
    with pytest.raises(ValueError, match="shortcut A can add channels, not drop 3"):
        PaddedShortcut(-3, 1, "both")


@pytest.mark.parametrize(("shortcut", "seen"), [("A", "raw"), ("B", "activated")])
def test_a_preactivation_shortcut_sees_the_activated_input_only_if_it_convolves(
    shortcut: Any, seen: str
) -> None:
    block = tiny.network(preact=True, shortcut=shortcut).stages[1][0]  # type: ignore[index]
    inputs: list[Tensor] = []
    block.shortcut.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    x = torch.randn(1, 4, 6, 6)
    block(x)
    expected = x if seen == "raw" else F.relu(norm(x, part(block.state_dict(), "bn1")))
    torch.testing.assert_close(inputs[0], expected)


@pytest.mark.parametrize("preact", [False, True])
def test_dropout_zeroes_what_enters_the_second_convolution_in_training_only(preact: bool) -> None:
    def second_input(dropout: float, training: bool) -> Tensor:
        network = tiny.network(preact=preact, dropout=dropout).train(training)
        seen: list[Tensor] = []
        network.get_submodule("stages.0.0.conv2").register_forward_pre_hook(
            lambda _, given: seen.append(given[0])
        )
        network(torch.arange(4 * 3 * 8 * 8.0).reshape(4, 3, 8, 8).sin())
        return seen[0]

    assert torch.equal(second_input(0.5, training=False), second_input(0.0, training=False))
    kept, dropped = second_input(0.0, training=True), second_input(0.5, training=True)
    assert ((dropped == 0) | torch.isclose(dropped, 2 * kept)).all()
    share = (dropped == 0)[kept > 0].float().mean()
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(("block", "preact"), FAMILIES)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_zero_init_residual_makes_every_block_its_shortcut_at_the_start(
    block: Any, preact: bool, shortcut: Any
) -> None:
    a = tiny.architecture(block=block, preact=preact, shortcut=shortcut, blocks=(2, 2))

    def residual_is_silent(network: ResNet) -> bool:
        x = torch.randn(2, 4, 8, 8)
        for stage, count in enumerate(a.blocks):
            for index in range(count):
                made = network.eval().stages[stage][index]  # type: ignore[index]
                activated = F.relu(made.bn1(x)) if preact else x
                convolves = any("shortcut" in name for name, _ in made.named_parameters())
                y = made.shortcut(activated if preact and convolves else x)
                expected = y if preact else F.relu(y)
                x = made(x)
                if not torch.equal(x, expected):
                    return False
        return True

    assert residual_is_silent(ResNet(a, zero_init_residual=True))
    assert not residual_is_silent(ResNet(a))


def test_convolutions_start_he_normal_by_fan_out_and_norms_as_the_identity() -> None:
    torch.manual_seed(0)
    network = build("wide_resnet16_4", shortcut="conv")
    scaled = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            scaled.append(module.weight.detach().flatten() * math.sqrt(fan_out / 2))
            if module.weight.numel() > 10_000:
                assert scaled[-1].std().item() == pytest.approx(1, abs=0.03)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    everything = torch.cat(scaled)
    assert everything.mean().item() == pytest.approx(0, abs=0.005)
    # A normal distribution's fourth moment; a uniform one's would be 1.8.
    assert everything.pow(4).mean().item() == pytest.approx(3, abs=0.05)


class Plain(nn.Module):
    """A block of a user's own: no shortcut, and one and a half times as wide."""

    def __init__(self, in_channels: int, planes: int, stride: int, a: Architecture) -> None:
        super().__init__()
        self.out_channels = planes * 3 // 2
        self.conv = nn.Conv2d(in_channels, self.out_channels, 3, stride, 1)
        self.scale = nn.Parameter(torch.ones(1))

    @property
    def residual_end(self) -> nn.Module:
        return self.conv

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)) * self.scale


def test_a_block_of_your_own_takes_the_place_of_the_named_ones() -> None:
    network = build("resnet20", block=Plain, num_classes=7, zero_init_residual=True)
    blocks = [block for stage in network.stages for block in stage]  # type: ignore[attr-defined]
    assert len(blocks) == 9
    assert all(type(block) is Plain and not block.conv.weight.any() for block in blocks)
    assert [block.conv.stride[0] for block in blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert network.out_channels == 96
    assert network.head.weight.shape == (7, 96)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_a_head_of_your_own_receives_the_features_and_keeps_its_weights() -> None:
    network = tiny.network()
    linear = nn.Linear(8, 5)
    own = nn.Sequential(linear, nn.Tanh())
    before = linear.weight.detach().clone()
    network.set_head(own)
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(linear.weight, before)
    rounding.assert_near(network(x), own(network.features(x)), network)


def test_no_classes_build_a_backbone_that_gives_features() -> None:
    backbone = build("resnet50", num_classes=0, planes=(4, 8, 16, 32)).eval()
    x = torch.randn(2, 3, 64, 48)
    assert backbone(x).shape == (2, backbone.out_channels) == (2, 128)
    rounding.assert_near(backbone(x), backbone.features(x), backbone)
    assert not any(name.startswith("head") for name in backbone.state_dict())


@pytest.mark.parametrize(("block", "preact"), FAMILIES)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_the_maps_of_stages_are_what_each_stage_gives(block: Any, preact: bool, stem: Any) -> None:
    network = tiny.network(
        block=block, preact=preact, stem=stem, blocks=(1, 2, 1), planes=(4, 8, 16)
    )
    given: dict[int, Tensor] = {}
    for number, stage in enumerate(network.stages, 1):
        stage.register_forward_hook(lambda _, __, y, number=number: given.update({number: y}))
    x = torch.randn(2, 3, 32, 48)
    maps = network.features(x, stages=(3, 0, 1, 2, 2))
    expected = [given[3], network.stem.before_pool(x), given[1], given[2], given[2]]
    assert all(map(torch.equal, maps, expected))
    for number, found in enumerate(network.features(x, (0, 1, 2, 3))):
        stride = network.stage_strides[number]
        assert found.shape == (2, network.stage_channels[number], 32 // stride, 48 // stride)
    last = F.relu(norm(maps[0], part(network.state_dict(), "norm"))) if preact else maps[0]
    torch.testing.assert_close(network.maps(x), last)


def test_no_stage_behind_the_last_one_named_is_computed() -> None:
    network = tiny.network(blocks=(1, 1, 1), planes=(4, 8, 16))
    seen: list[int] = []
    for number, stage in enumerate(network.stages, 1):
        stage.register_forward_hook(lambda *_, number=number: seen.append(number))
    assert len(network.features(torch.randn(1, 3, 8, 8), (2, 0))) == 2
    assert seen == [1, 2]
    assert len(network.features(torch.randn(1, 3, 8, 8), (0,))) == 1
    assert seen == [1, 2]


@pytest.mark.parametrize("stage", [-1, 3, "1"])
def test_a_stage_that_is_not_there_is_named_with_those_that_are(stage: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"stages must be from 0 \(the stem\) to 2, not {stage!r}"
    ):
        tiny.network().features(torch.randn(1, 3, 8, 8), (1, stage))


@pytest.mark.parametrize(
    ("changes", "strides"),
    [
        ({}, (1, 1, 2, 4, 8)),
        ({"stem": "imagenet"}, (2, 4, 8, 16, 32)),
        ({"stem": "imagenet", "pool": "none"}, (2, 2, 4, 8, 16)),
        ({"stem": "imagenet", "antialias": "blur"}, (2, 4, 8, 16, 32)),
        ({"stem": "imagenet", "dilation": (3,)}, (2, 4, 8, 16, 16)),
        ({"stem": "imagenet", "dilation": (2, 3)}, (2, 4, 8, 8, 8)),
        ({"stem": "imagenet", "dilation": (1, 3), "padding": "same"}, (2, 4, 4, 8, 8)),
        ({"stride_block": "last"}, (1, 2, 4, 8, 8)),
        ({"stride_stages": "all"}, (1, 2, 4, 8, 16)),
    ],
    ids=str,
)
def test_strides_follow_the_stem_its_pool_and_dilation(
    changes: dict[str, Any], strides: tuple[int, ...]
) -> None:
    network = tiny.network(block="bottleneck", blocks=(1, 2, 1, 1), planes=(4, 4, 8, 8), **changes)
    assert network.stage_strides == strides
    assert network.stage_channels == (4, 16, 16, 32, 32)
    maps = network.features(torch.randn(1, 3, 64, 96), range(5))
    assert [tuple(found.shape[1:]) for found in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(network.stage_channels, strides, strict=True)
    ]


@pytest.mark.parametrize("side", [1, 2, 7, 33])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_any_input_size_gives_finite_logits(side: int, stem: Any) -> None:
    network = tiny.network(stem=stem, blocks=(1, 1, 1), planes=(4, 8, 16))
    logits = network(torch.randn(2, 3, side, side + 3))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_images_may_have_other_channels_than_three() -> None:
    assert tiny.network(in_channels=1)(torch.randn(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(("block", "preact"), FAMILIES)
@pytest.mark.parametrize(("shortcut", "padding"), SHORTCUTS)
def test_gradients_reach_every_parameter(
    block: Any, preact: bool, shortcut: Any, padding: Any
) -> None:
    network = tiny.network(
        block=block, preact=preact, shortcut=shortcut, shortcut_padding=padding, blocks=(2, 2)
    ).train()
    loss = F.cross_entropy(network(torch.randn(4, 3, 8, 8)), torch.arange(4))
    loss.backward()  # type: ignore[no-untyped-call]
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", ["resnet56", "preact_wide_resnet28_10"])
def test_on_meta_has_the_names_and_shapes_and_no_storage(name: str) -> None:
    a = variants.variant(name).architecture
    network = on_meta(a)
    assert all(value.is_meta for value in network.state_dict().values())
    small = tiny.architecture(preact=a.preact)
    real = {n: v.shape for n, v in ResNet(small).state_dict().items()}
    assert {n: v.shape for n, v in on_meta(small).state_dict().items()} == real


def test_equal_seeds_give_equal_networks() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in ResNet(tiny.ARCHITECTURE).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
