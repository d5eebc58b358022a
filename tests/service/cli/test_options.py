"""Values of options, as a person writes them."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from service.cli.options import Field, fail_in_one_line


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


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "a: No such file or directory"),
        (OSError(18, "Invalid link", "a", None, "b"), 2, "a to b: Invalid link"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (OSError("the archive ends too early"), 2, "the archive ends too early"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_ends_a_command_is_one_line(error: BaseException, status: int, said: str) -> None:
    @click.command()
    @fail_in_one_line
    def failing() -> None:
        raise error

    result = CliRunner().invoke(failing)
    assert (result.exit_code, result.stderr) == (status, f"resnet-serve: {said}\n")
