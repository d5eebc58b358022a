"""Values of options, as a person writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from service.cli.main import main
from service.cli.options import MAY_BE_EMPTY, Field, fail_in_one_line
from tests.support.commands import run


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


# What a command needs beside the option; nothing of it is read.
NEEDED = {"train": ["--data", "x"]}


def leaves(group: click.Group = main) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


@pytest.mark.parametrize("command", list(leaves()), ids=lambda command: command.name)
def test_an_empty_value_does_not_count_as_none(command: click.Command) -> None:
    needed = [
        word
        for each in command.params
        if isinstance(each, click.Argument) and (each.required or each.nargs < 0)
        for word in (["bash"] if isinstance(each.type, click.Choice) else ["x"])
    ]
    for option in command.params:
        if not isinstance(option, click.Option) or option.is_flag or option.nargs != 1:
            continue
        if option.name in MAY_BE_EMPTY:
            continue
        more = [] if option.name == "data" else NEEDED.get(str(command.name), [])
        said = CliRunner().invoke(command, [*more, *needed, option.opts[0], ""])
        assert said.exit_code in (1, 2), (option.name, said.output)
        assert "Traceback" not in said.output
        assert option.opts[0] in said.stderr, said.stderr
        assert re.search("is empty|Invalid value", said.stderr), said.stderr


@pytest.mark.parametrize(
    ("line", "name"), [("models", "NAME"), ("fetch", "SPECS"), ("convert", "SRC")]
)
def test_an_empty_word_is_named(line: str, name: str) -> None:
    words = ["", "out.safetensors"] if line == "convert" else [""]
    said = run(line, *words, status=2).stderr
    assert said == f"resnet-serve: {name}: is empty; give a value\n"
