"""The table of named networks, held against published counts."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import models
from models import variants
from models.preprocess import CIFAR, IMAGENET
from models.resnet import build, on_meta
from models.summary import Cost, cost, count_layers, count_macs, count_parameters

HERE = Path(__file__).parent


def rows(file: str) -> Iterator[dict[str, str]]:
    with (HERE / file).open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def test_every_variant_has_the_golden_counts() -> None:
    for row in rows("variants.csv"):
        variant = variants.variant(row["name"])
        classes = int(row["num_classes"])
        assert variant.architecture.num_classes == classes, row
        assert variant.depth == int(row["depth"]), row
        assert variant.input.size == int(row["input"]), row
        architecture = variants.override(variant.architecture, shortcut=row["shortcut"])
        golden = Cost(int(row["parameters"]), int(row["layers"]), int(row["macs"]))
        assert cost(architecture, variant.input.size) == golden, row


@pytest.mark.parametrize(
    "name", ["resnet56", "resnet152", "preact_resnet34", "preact_resnet1001", "wide_resnet40_4"]
)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_a_variants_cost_is_that_of_the_network_when_built(name: str, shortcut: str) -> None:
    row = variants.variant(name)
    network = on_meta(variants.override(row.architecture, shortcut=shortcut))
    size = row.input.size
    built = Cost(count_parameters(network), count_layers(network), count_macs(network, size))
    assert cost(network.architecture, size) == built


def test_overridden_variants_have_the_published_counts() -> None:
    """Empty cells: no override, or no published figure."""
    for row in rows("more_variants.csv"):
        variant = variants.variant(row["name"])
        changes: dict[str, Any] = {
            "num_classes": int(row["num_classes"]),
            "width": int(row["width"]) if row["width"] else variant.architecture.width,
            "stride_at": row["stride_at"] or "3x3",
            "shortcut": row["shortcut"],
        }
        found = cost(variants.override(variant.architecture, **changes), variant.input.size)
        assert found.parameters == int(row["parameters"]), row
        if row["layers"]:
            assert found.layers == int(row["layers"]), row
        if row["macs"]:
            assert found.macs == int(row["macs"]), row


def test_every_listed_variant_has_its_counts_asserted() -> None:
    golden, more = (
        {row["name"] for row in rows(file)} for file in ("variants.csv", "more_variants.csv")
    )
    listed = list(variants.names())
    assert len(listed) == len(set(listed))
    assert golden <= set(listed)
    assert set(listed) <= golden | more, "a network without asserted counts"


def test_find_is_the_inverse_of_variant_whatever_does_not_make_the_name() -> None:
    for name in variants.names():
        architecture = variants.variant(name).architecture
        found = variants.find(architecture)
        assert found is not None, name
        assert found.name == name
        changed = variants.override(
            architecture,
            num_classes=7,
            shortcut="A",
            shortcut_padding="end",
            stride_at="1x1",
            in_channels=1,
            dropout=0.3 if architecture.block == "basic" else 0.0,
        )
        assert variants.find(changed) == found, name


@pytest.mark.parametrize(
    "changes",
    [{"blocks": (3, 3, 4)}, {"planes": (16, 32, 128)}, {"width": 1.5}, {"stem": "imagenet"}],
)
def test_find_knows_no_network_that_has_no_name(changes: dict[str, Any]) -> None:
    architecture = variants.override(variants.variant("resnet20").architecture, **changes)
    assert variants.find(architecture) is None


def test_the_papers_own_name_means_the_preactivated_wide_network() -> None:
    assert variants.variant("wrn_28_10") == variants.variant("preact_wide_resnet28_10")
    assert variants.variant("wrn_28_10").name == "preact_wide_resnet28_10"
    assert variants.variant("wrn_28_10") != variants.variant("wide_resnet28_10")


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 40, 52, 70, 100])
@pytest.mark.parametrize("width", [1, 3, 7, 12])
def test_a_wide_network_may_have_any_width(depth: int, width: int) -> None:
    architecture = variants.variant(f"wrn_{depth}_{width}").architecture
    assert architecture.width == width
    assert architecture.blocks == ((depth - 4) // 6,) * 3
    found = variants.find(architecture)
    # WRN-22-1 is the pre-activated ResNet-20 with another count of its layers.
    expected = f"preact_wide_resnet{depth}_{width}"
    if (depth, width) == (22, 1):
        expected = "preact_resnet20"
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("wide_resnet18_1.5", 25.9),
        ("wide_resnet18_2", 45.6),
        ("wide_resnet18_3", 101.8),
        ("wide_resnet34_1.5", 48.6),
        ("wide_resnet34_2", 86.0),
        ("wide_resnet50_2", 68.9),
    ],
)
def test_wide_networks_for_imagenet_have_the_papers_parameters(name: str, millions: float) -> None:
    """Zagoruyko 2016, tables 7 and 8."""
    row = variants.variant(name)
    assert row.input == IMAGENET
    assert round(cost(row.architecture, 224).parameters / 1e6, 1) == millions
    found = variants.find(row.architecture)
    assert found is not None
    assert found.name == name
    assert variants.variant(f"preact_{name}").architecture.preact


def test_a_width_of_one_is_the_plain_network() -> None:
    found = variants.find(variants.variant("wide_resnet18_1").architecture)
    assert found is not None
    assert found.name == "resnet18"


def test_the_depth_that_both_data_have_is_imagenets_unless_it_says_cifar() -> None:
    cifar = variants.variant("wrn_34_10")
    assert cifar == variants.variant("preact_wide_resnet34_10_cifar")
    assert cifar.architecture.blocks == (5, 5, 5)
    assert cifar.input == CIFAR
    # As the literature on robustness has it.
    assert round(cost(cifar.architecture, 32).parameters / 1e6, 2) == 46.16
    assert variants.find(cifar.architecture) == cifar
    plain = variants.variant("wide_resnet34_10_cifar")
    assert variants.find(plain.architecture) == plain
    assert variants.variant("wide_resnet34_2").input == IMAGENET
    with pytest.raises(
        ValueError, match=r"\Awide_resnet34_10: .*; for CIFAR: wide_resnet34_10_cifar"
    ):
        variants.variant("wide_resnet34_10")


@pytest.mark.parametrize("name", ["wide_resnet18_1.3", "wide_resnet100000_1", "wrn_34_1000000"])
def test_what_no_network_can_be_is_one_line_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=rf"\A{name}: [^\n]+\Z"):
        variants.variant(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PreActResNet50", "preact_resnet50"),
        ("PreAct-ResNet-18", "preact_resnet18"),
        ("resnetv2_50", "preact_resnet50"),
        ("resnetv2_50.a1h_in1k", "preact_resnet50"),
        ("ResNet50V2", "preact_resnet50"),
        ("resnet50-v2-7", "preact_resnet50"),
        ("resnet18v1", "resnet18"),
        ("resnet50v1.5", "resnet50"),
        ("ResNet50", "resnet50"),
        ("microsoft/resnet-50", "resnet50"),
        ("timm/resnet50.a1_in1k", "resnet50"),
        ("tv_resnet34.tv_in1k", "resnet34"),
        ("wide_resnet50_2.tv2_in1k", "wide_resnet50_2"),
        ("WideResNet28_10", "wide_resnet28_10"),
        ("WRN-28-10", "wrn_28_10, wide_resnet28_10"),
        ("wrn28x10", "wrn_28_10, wide_resnet28_10"),
        ("WRN-34-10", "wrn_34_10"),
        ("WRN-18-2", "wide_resnet18_2, preact_wide_resnet18_2"),
        ("WRN-50-2", "wide_resnet50_2, preact_wide_resnet50_2"),
    ],
)
def test_what_others_call_a_network_is_pointed_to_its_name(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match="no variant is called") as caught:
        variants.variant(name)
    assert str(caught.value) == f"no variant is called {name!r}; nearest: {meant}"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet51", "resnet50"),
        ("resnet_18", "resnet18"),
        ("ResNet50", "resnet50"),
        ("resnet20_small", "resnet200_small"),
        ("preactresnet18", "preact_resnet18"),
        ("wide_resnet50_3", "wide_resnet50_2"),
        ("wide_resnet28", "wide_resnet28_"),
        ("wide_resnet28_0", "wide_resnet28_"),
        ("resnet50_2", "resnet50"),
        ("wide_resnet28_10_small", "wide_resnet28_10"),
        ("wrn_30_10", "wide_resnet"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=r"\Ano variant is called '[^\n]+'; nearest: ") as caught:
        variants.variant(name)
    assert nearest in str(caught.value).partition("nearest: ")[2]


@pytest.mark.parametrize("name", ["", "vgg16", "resnet18\n", "x" * 100])
def test_a_name_near_to_none_is_pointed_to_the_list(name: str) -> None:
    with pytest.raises(ValueError, match=r"no variant is called") as caught:
        variants.variant(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_override_offers_the_nearest_field() -> None:
    architecture = variants.variant("resnet20").architecture
    with pytest.raises(ValueError, match=r"no field 'shortcuts'; did you mean shortcut\?"):
        variants.override(architecture, shortcuts="A")
    with pytest.raises(ValueError, match="no field 'zzz'; use one of block, blocks, planes, "):
        build("resnet20", zzz=1)


def test_an_impossible_override_names_the_field_and_its_values() -> None:
    with pytest.raises(ValueError, match="shortcut must be one of A, B, C, conv, not 'Z'"):
        build("resnet20", shortcut="Z")
    with pytest.raises(ValueError, match="dropout must be 0 for bottleneck blocks"):
        build("resnet50", dropout=0.3)


def test_build_makes_the_overridden_network() -> None:
    network = models.build("preact_wide_resnet16_2", num_classes=100, shortcut="A", dropout=0.3)
    expected = variants.variant("wrn_16_2").architecture
    changed = variants.override(expected, num_classes=100, shortcut="A", dropout=0.3)
    assert network.architecture == changed
    assert network.training


@pytest.mark.parametrize(
    ("name", "spec"), [("resnet50", IMAGENET), ("resnet50_small", CIFAR), ("resnet56", CIFAR)]
)
def test_a_variant_says_how_its_images_are_prepared(name: str, spec: Any) -> None:
    assert variants.variant(name).input == spec


@pytest.mark.parametrize(
    "name", ["resnet018", "wrn_028_10", "wide_resnet18_2.0", "resnet\N{FULLWIDTH DIGIT FIVE}0"]
)
def test_a_network_has_one_spelling(name: str) -> None:
    with pytest.raises(ValueError, match="no variant is called"):
        variants.variant(name)


def test_an_error_repeats_the_name_as_it_was_given() -> None:
    with pytest.raises(ValueError, match="no variant is called 'wrn_30_10'"):
        variants.variant("wrn_30_10")


def test_weights_are_estimated_from_the_description_alone() -> None:
    for name in variants.names():
        if "1001" in name:  # It takes a second to build.
            continue
        architecture = variants.variant(name).architecture
        counted = count_parameters(on_meta(architecture))
        assert architecture.weights == pytest.approx(counted, rel=0.02), name
