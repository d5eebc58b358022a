"""The rule of all commands that write: nothing that exists is replaced unasked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from models import files
from models.naming import in_utf8
from service.config import choices
from service.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def overwrite_flag(command: F) -> F:
    """Adds --overwrite."""
    return click.option(
        "--overwrite", is_flag=True, help="Replace what exists; otherwise it is refused."
    )(command)


def form_flags(views: str, storage: str | None) -> Callable[[F], F]:
    """Adds --views and --storage, of a bundle that is written; `views` says what the default is,
    `storage` is the default, or None: that of SRC."""

    def add(command: F) -> F:
        source = "" if storage else "  [default: that of SRC]"
        for option in (
            click.option(
                "--storage",
                type=click.Choice(choices.STORAGES),
                default=storage,
                help=f"fp16: half the size; weights are rounded to 16 bits.{source}",
            ),
            click.option(
                "--views",
                type=click.Choice(choices.VIEWS),
                help="mirrored: the model averages each image and its mirror image, in twice the "
                f"time; not for digits or text.  [default: {views}]",
            ),
        ):
            command = option(command)
        return command

    return add


def check(*paths: Path | None, overwrite: bool) -> None:
    """Checks before the work that its result can be written to `paths`, without loss.

    Raises:
        ConfigError: there is a file and no `overwrite`, something that is no file, or no folder to
            write to; or two paths are the same, or one is not UTF-8.
    """
    given: set[str] = set()
    for path in filter(None, paths):
        if (shown := in_utf8(str(path))) != str(path):  # Not every writer can name it.
            raise ConfigError(f"{shown}: a name that is not UTF-8; choose another")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
        place = os.path.realpath(path)
        if place in given:
            raise ConfigError(f"{path} is given twice; give each output a path of its own")
        given.add(place)
        if not os.path.lexists(path):
            continue
        check_regular(path)
        if not overwrite:
            raise ConfigError(
                f"{path} exists; add --overwrite to replace it, or choose another path"
            )


def check_regular(path: Path) -> None:
    """Refuses what exists and is no file: a device or a pipe would be replaced by one.

    Raises:
        ConfigError: it is.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a regular file; choose another path")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, completely or not at all."""
    with files.atomic(path) as file:
        file.write_text(text, "utf-8")
