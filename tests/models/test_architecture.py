"""An `Architecture` is a value: comparable, checked, and plain to read when it is wrong."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest

from models.architecture import Architecture
from tests.support import tiny

TOO_LARGE = (
    "the network would have more than 500,000,000 weights; it needs fewer blocks, planes or "
    "classes, or less width"
)
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"block": "plain"}, "block must be one of basic, bottleneck, not 'plain'"),
    ({"block": None}, "block must be one of basic, bottleneck, not None"),
    ({"blocks": ()}, "blocks must be a list of positive integers, not ()"),
    ({"blocks": (2, 0)}, "blocks must be a list of positive integers, not (2, 0)"),
    ({"blocks": [1, True]}, "blocks must be a list of positive integers, not [1, True]"),
    ({"blocks": "11"}, "blocks must be a list of positive integers, not '11'"),
    ({"blocks": 2}, "blocks must be a list of positive integers, not 2"),
    ({"planes": (4, -8)}, "planes must be a list of positive integers, not (4, -8)"),
    ({"planes": (4, 8.0)}, "planes must be a list of positive integers, not (4, 8.0)"),
    ({"planes": (4, 8, 16)}, "blocks and planes must be equally long, not 2 and 3"),
    ({"stem": "large"}, "stem must be one of imagenet, small, not 'large'"),
    ({"num_classes": -1}, "num_classes must be an integer of at least 0, not -1"),
    ({"num_classes": 10.0}, "num_classes must be an integer of at least 0, not 10.0"),
    ({"num_classes": "10"}, "num_classes must be an integer of at least 0, not '10'"),
    ({"num_classes": True}, "num_classes must be an integer of at least 0, not True"),
    ({"in_channels": 0}, "in_channels must be an integer of at least 1, not 0"),
    ({"preact": "yes"}, "preact must be one of False, True, not 'yes'"),
    ({"width": 0}, "width must give whole channels, not 0"),
    ({"width": -2}, "width must give whole channels, not -2"),
    ({"width": 1.3}, "width must give whole channels, not 1.3"),
    ({"width": float("nan")}, "width must give whole channels, not nan"),
    ({"width": float("inf")}, "width must give whole channels, not inf"),
    ({"width": "2"}, "width must be a number, not '2'"),
    ({"width": True}, "width must be a number, not True"),
    ({"shortcut": "D"}, "shortcut must be one of A, B, C, conv, not 'D'"),
    ({"shortcut": "a"}, "shortcut must be one of A, B, C, conv, not 'a'"),
    ({"shortcut_padding": "front"}, "shortcut_padding must be one of both, end, not 'front'"),
    ({"shortcut_norm": "no"}, "shortcut_norm must be one of False, True, not 'no'"),
    ({"stride_at": "5x5"}, "stride_at must be one of 3x3, 1x1, not '5x5'"),
    ({"dropout": 1}, "dropout must be at least 0 and below 1, not 1"),
    ({"dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
    ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, not nan"),
    ({"dropout": None}, "dropout must be a number, not None"),
    ({"num_classes": 100_001}, "num_classes must be at most 100,000"),
    ({"in_channels": 10**7}, "in_channels must be at most 1,000,000"),
    ({"planes": (1, 10**400), "width": 1.5}, "planes must be at most 1,000,000"),
    ({"blocks": (10**12, 1)}, "blocks must be at most 2,000 in all"),
    ({"width": 10**300}, TOO_LARGE),
    ({"planes": (4, 10_000)}, TOO_LARGE),
    ({"planes": (4, 1000), "blocks": (1, 100)}, TOO_LARGE),
    ({"block": "bottleneck", "planes": (1, 100_000), "width": 1e-5 * 100_000}, TOO_LARGE),
    ({"num_classes": 100_000, "planes": (4, 6_000)}, TOO_LARGE),
    (
        {"dropout": 0.3, "block": "bottleneck"},
        "dropout must be 0 for bottleneck blocks: no paper defines it there",
    ),
]


@pytest.mark.parametrize(
    ("changes", "message"), IMPOSSIBLE, ids=[str(changes) for changes, _ in IMPOSSIBLE]
)
def test_an_impossible_value_is_named_with_what_is_allowed(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        tiny.architecture(**changes)
    assert str(caught.value) == message


def test_numbers_and_truth_values_of_numpy_become_pythons_which_json_can_write() -> None:
    given = tiny.architecture(
        blocks=[*np.array([1, 1])],
        num_classes=np.int64(10),
        width=np.float32(1.5),
        dropout=np.float64(0.25),
        preact=np.bool_(True),
        input_norm=1,
        stem_stride=True,
        dilation=[np.int32(1)],
    )
    plain = tiny.architecture(
        width=1.5, dropout=0.25, preact=True, input_norm=True, stem_stride=1, dilation=(1,)
    )
    assert json.dumps(asdict(given)) == json.dumps(asdict(plain))


def test_it_is_a_frozen_hashable_value_and_lists_become_tuples() -> None:
    from_json = json.loads(json.dumps(asdict(tiny.ARCHITECTURE)))
    assert from_json["blocks"] == [1, 1]
    same = Architecture(**from_json)
    assert same == tiny.ARCHITECTURE
    assert hash(same) == hash(tiny.ARCHITECTURE)
    with pytest.raises(FrozenInstanceError):
        same.num_classes = 5  # type: ignore[misc]


@pytest.mark.parametrize("width", [1, 0.5, 1.5, 2.0])
def test_a_width_may_be_any_number_that_gives_whole_channels(width: float) -> None:
    assert tiny.architecture(width=width).out_channels == 8 * width
    assert tiny.architecture(width=width, block="bottleneck").out_channels == 32


@pytest.mark.parametrize(
    ("block", "blocks", "depth"),
    [
        ("basic", (2, 2, 2, 2), 18),
        ("basic", (18, 18, 18), 110),
        ("bottleneck", (3, 4, 23, 3), 101),
        ("bottleneck", (111, 111, 111), 1001),
    ],
)
def test_depth_counts_weighted_layers_as_he_2015_does(
    block: Any, blocks: tuple[int, ...], depth: int
) -> None:
    planes = tuple(8 * 2**stage for stage in range(len(blocks)))
    assert tiny.architecture(block=block, blocks=blocks, planes=planes).depth == depth
