"""What several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from models.preprocess import InputSpec
    from models.training.datasets import Dataset

P = ParamSpec("P")


def fail_in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    """Turns what a user can get wrong into one line on stderr and exit status 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ArithmeticError) as error:
            raise OneLine(" ".join(str(error).split())) from None

    return guarded


class OneLine(click.ClickException):
    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"resnet-serve: {self.message}", err=True, file=file)


class Rgb(click.ParamType[tuple[float, ...]]):
    """Three numbers, as in 0.5,0.5,0.5."""

    name = "r,g,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3:
            self.fail(f"{value!r} is not three numbers separated by commas", param, ctx)
        return numbers


def read_dataset(path: Path, spec: InputSpec) -> Dataset:
    """The images under `path`, with a progress bar."""
    from models.training import datasets

    with tqdm(desc=path.name, unit=" images") as bar:
        return datasets.read(path, spec, lambda count: bar.update(count - bar.n))
