"""Values of options, as a person writes them."""

from __future__ import annotations

from typing import Any

import click
import pytest

from service.cli.options import Field


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pool=max", ("pool", "max")),
        ("pool=none", ("pool", "none")),
        ("width=2.5", ("width", 2.5)),
        ("preact=true", ("preact", True)),
        ("dilation=[2,3]", ("dilation", [2, 3])),
        ("dilation=(2, 3)", ("dilation", [2, 3])),
        ("dilation=(2,)", ("dilation", [2])),
        ("dilation=2,3", ("dilation", [2, 3])),
        ("head=[128]", ("head", [128])),
        ("head=[]", ("head", [])),
        ("head=()", ("head", [])),
        ('biases=["stem"]', ("biases", ["stem"])),
        ("biases=stem,conv1", ("biases", ["stem", "conv1"])),
        (" blocks =[1, 1]", ("blocks", [1, 1])),
    ],
)
def test_a_field_is_json_a_word_or_several_with_commas(text: str, value: tuple[str, Any]) -> None:
    assert Field().convert(text, None, None) == value


def test_a_field_without_a_value_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="'pool' is not FIELD=VALUE"):
        Field().convert("pool", None, None)
