"""What a file leaves open is taken from the user, assumed and said, or asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.bundle import BundleError
from models.interchange import assumptions
from models.interchange.assumptions import InputUnknown, input_of
from models.interchange.imported import NORMALISATION, NOTHING, Imported, Said
from models.preprocess import IMAGENET, InputSpec
from tests.support import tiny


def source(*, asked: Any = (), said: Any = (), spec: InputSpec = IMAGENET, **of: Any) -> Imported:
    architecture = tiny.architecture(**of)
    return Imported(
        layout="a layout",
        tensors={},
        architecture=architecture,
        spec=spec,
        asked=frozenset(asked),
        said=frozenset(said),
    )


def given(**fields: Any) -> Said:
    return Said(input=fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": 288}, {"size": 288, "resize": 329}),
        ({"size": 288, "resize": 288}, {"size": 288, "resize": 288}),
        ({"size": (160, 224)}, {"size": (160, 224), "resize": (182, 256)}),
        ({"crop": "squash"}, {"size": 224, "resize": 224, "crop": "squash"}),
        ({"crop": "letterbox", "fill": (1, 2, 3)}, {"resize": 224, "fill": (1, 2, 3)}),
        ({"channels": "bgr"}, {"channels": "bgr", "mean": IMAGENET.mean[::-1]}),
        ({"channels": "bgr", "mean": (0, 0, 0)}, {"mean": (0, 0, 0), "std": IMAGENET.std[::-1]}),
    ],
    ids=str,
)
def test_what_the_user_says_is_taken_and_the_rest_follows(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    spec = input_of(source(), given(**fields))
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("of", "fields", "words"),
    [
        ({}, {"mean": (0.5,)}, "--mean has 1 value; the images have 3 channels (rgb)"),
        ({}, {"std": (1.0,) * 4}, "--std has 4 values; the images have 3 channels (rgb)"),
        (
            {},
            {"channels": "grey"},
            "takes images of 3 channels, and grey has 1; give --channels rgb or bgr",
        ),
        (
            {"in_channels": 1},
            {"channels": "rgb"},
            "takes images of 1 channel, and rgb has 3; give --channels grey",
        ),
        ({}, {"channels": "rbg"}, "channels rbg: did you mean rgb?"),
        ({}, {"resize": 100}, "resize must be at least size (224), not 100"),
        ({}, {"fill": (1, 1, 1)}, "fill is only for the crop letterbox"),
        ({"in_channels": 5}, {}, "its images have 5 channels; supported are 1, 3 and 4"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_network_is_one_line(
    of: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        input_of(source(**of), given(**fields))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("of", "asked", "words"),
    [
        (
            {},
            sorted(NORMALISATION),
            "how images were normalised; give --mean r,g,b and --std r,g,b",
        ),
        ({"in_channels": 1}, (), "give --mean VALUE and --std VALUE"),
        ({"in_channels": 4}, (), "give --mean r,g,b,a and --std r,g,b,a"),
        ({}, {"channels"}, "give --channels rgb or --channels bgr"),
        ({}, {"size"}, "does not say its size; give --size"),
    ],
    ids=str,
)
def test_what_has_no_likely_value_is_asked_for(of: dict[str, Any], asked: Any, words: str) -> None:
    with pytest.raises(InputUnknown) as caught:
        input_of(source(asked=asked, **of), Said())
    assert words in str(caught.value)


def test_grey_images_take_one_mean() -> None:
    spec = input_of(source(in_channels=1), given(mean=(0.5,), std=(0.25,)))
    assert (spec.channels, spec.mean, spec.std) == ("grey", (0.5,), (0.25,))


def assumed(of: Imported, said: Said = NOTHING) -> dict[str, Any]:
    labels = tuple(f"class {n}" for n in range(of.architecture.num_classes))
    return assumptions.assumed(of, of.spec, said, labels)


def test_only_what_matters_to_the_network_is_listed() -> None:
    structure = ("stride_at", "padding", "pool_padding", "antialias", "dilation", "head")

    def listed(**changes: Any) -> set[str]:
        return set(assumed(source(**changes))) & set(structure)

    assert listed() == {"padding", "antialias", "dilation"}
    assert listed(block="bottleneck") == {"stride_at", "padding", "antialias", "dilation"}
    assert listed(block="bottleneck", stride_at="1x1") == {"stride_at", "dilation"}
    assert listed(preact=True) == {"padding", "dilation"}
    assert listed(head=(8,)) == {"padding", "antialias", "dilation", "head"}
    assert listed(blocks=(1,), planes=(4,)) == {"antialias"}


@pytest.mark.parametrize(
    ("of", "pool", "stride"),
    [
        ({"stem": "small"}, "none", 1),
        ({"stem": "imagenet"}, "max", 2),
        ({"stem": "small", "pool": "max", "stem_stride": 2}, "max", 2),
        ({"stem": "imagenet", "pool": "none", "stem_stride": 1}, "none", 1),
    ],
)
def test_values_are_what_they_do(of: dict[str, Any], pool: str, stride: int) -> None:
    values = assumed(source(**of))
    assert (values["pool"], values["stem_stride"]) == (pool, stride)


def test_what_the_file_or_the_user_says_is_not_assumed() -> None:
    of = source(said=("size", "resize", "pool"), block="bottleneck")
    said = Said(input={"crop": "center"}, numerics={"stride_at": "1x1"}, labels="cifar10")
    values = assumed(of, said)
    assert not {"size", "resize", "pool", "crop", "stride_at", "labels"} & set(values)
    assert {"interpolation", "channels", "mean", "std", "outputs"} <= set(values)


def test_assumptions_are_options_the_likeliest_to_be_wrong_first() -> None:
    of = source(block="bottleneck", stem="imagenet")
    assert assumptions.as_options(assumed(of)) == (
        "--outputs exclusive --labels FILE (class 0 to class 9) --channels rgb --mean "
        "0.485,0.456,0.406 --std 0.229,0.224,0.225 --size 224 --resize 256 --crop center "
        "--interpolation bilinear --set pool=max --set stem_stride=2 --set stride_at=3x3 "
        "--set padding=symmetric --set stem_padding=symmetric --set antialias=none "
        "--set 'dilation=[]'"
    )
    spec = replace(IMAGENET, size=(160, 224), resize=(160, 224))
    assert "--size 160,224 " in assumptions.as_options(assumed(source(spec=spec)))
    assert assumptions.as_options({"dilation": [1], "labels": "cifar10"}) == (
        "--set 'dilation=[1]' --labels cifar10"
    )


def test_several_questions_are_one_sentence() -> None:
    with pytest.raises(InputUnknown) as caught:
        input_of(source(asked={"channels", *NORMALISATION}), Said())
    assert str(caught.value).endswith(
        "does not say the order of its channels, nor how images were normalised; give --channels "
        "rgb or --channels bgr, with --mean r,g,b and --std r,g,b"
    )
