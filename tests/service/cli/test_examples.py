"""The help of every command ends with two examples that work, and no line of it is cut."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click
import pytest

from service.cli.examples import EXAMPLES, WITHOUT_FLAGS, Commands
from service.cli.main import main
from service.config.settings import ModelSettings, Settings
from tests.conftest import clean_environment
from tests.support.commands import run

# Those that neither serve, nor train, nor need files or a network.
CHEAP = ("config check", "config show", "config schema", "models", "completion")


def leaves(command: click.Command, path: str = "") -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {path: command}
    found: dict[str, click.Command] = {}
    for name, child in command.commands.items():
        found |= leaves(child, f"{path} {name}".strip())
    return found


COMMANDS = leaves(main)


def arguments_of(example: str) -> list[str]:
    """Without the name of the command, and what the shell does with its output."""
    name, *arguments = shlex.split(example.partition(" > ")[0])
    assert name == "resnet-serve"
    return arguments


@pytest.mark.parametrize("path", COMMANDS)
def test_help_ends_with_two_examples_that_parse(path: str) -> None:
    lines = run(*path.split(), "--help").stdout.rstrip().splitlines()
    assert lines[-3].strip() == "Examples:"
    assert tuple(line.strip() for line in lines[-2:]) == EXAMPLES[path]
    for example in EXAMPLES[path]:
        arguments = arguments_of(example)[len(path.split()) :]
        assert example.startswith(f"resnet-serve {path}")
        COMMANDS[path].make_context(path, arguments)


@pytest.mark.parametrize("example", [each for path in CHEAP for each in EXAMPLES[path]])
def test_an_example_works(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text("port: 0\n")
    monkeypatch.setenv("RESNET_SERVE_PORT", "0")
    assert run(*arguments_of(example)).stdout


@pytest.mark.parametrize("path", ["", "config", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = [line for line in run(*path.split(), "--help").stdout.splitlines() if len(line) > 80]
    assert not wide


@pytest.mark.parametrize("group", [[], ["config"]])
def test_the_list_of_commands_is_not_cut(group: list[str]) -> None:
    said = run(*group, "--help").stdout
    _, _, listed = said.partition("Commands:")
    assert "..." not in listed
    command: click.Command = main
    for name in group:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert isinstance(command, Commands)
    for name in command.commands:
        assert re.search(rf"^  {name}\s+\S", listed, re.MULTILINE)


def test_help_of_serve_says_where_keys_tls_and_all_settings_are() -> None:
    said = run("serve", "--help").stdout
    for word in ("api_keys", "tls_key", "docs/settings.md", "RESNET_SERVE_API_KEYS_FILE"):
        assert word in said
    known = {*Settings.model_fields, *ModelSettings.model_fields}
    named = {name for names in WITHOUT_FLAGS.values() for name in names.split(", ")}
    assert named <= known
    assert "RESNET_SERVE_CONFIG" in said
    assert "resnet-serve config schema" in " ".join(said.split())
