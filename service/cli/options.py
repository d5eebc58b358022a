"""What several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from tqdm import tqdm

from service.cli import completers

if TYPE_CHECKING:
    from models.data.datasets import Corrupt, Dataset
    from models.data.listing import Split
    from models.data.source import Source
    from models.preprocess import InputSpec
    from models.training.parallel import World
    from models.training.recipes import Recipe

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])


def engine_flags(command: F) -> F:
    """What an engine is: --device, --engine and --precision."""
    for option in (
        click.option(
            "--precision",
            shell_complete=completers.precision,
            help="auto, fp32, bf16, fp16 or int8.",
        ),
        click.option(
            "--engine",
            shell_complete=completers.engine,
            help="auto, eager, compile or openvino.",
        ),
        click.option(
            "--device",
            shell_complete=completers.device,
            help="auto, cpu or cuda:N; serve takes several, with commas.",
        ),
    ):
        command = option(command)
    return command


def settings_flags(command: F) -> F:
    """The flags of `serve`, all of which are settings."""
    command = engine_flags(command)
    for option in (
        click.option("--workers", type=int, help="Front-end processes."),
        click.option("--port", type=int, help="Default 8000."),
        click.option("--host", help="Default 127.0.0.1."),
        click.option(
            "--model",
            "models",
            metavar="[NAME=]SPEC",
            multiple=True,
            shell_complete=completers.spec,
            help="Repeat for several; NAME is what requests call it, by default the bundle's own.",
        ),
        click.option(
            "--config", metavar="FILE", type=click.Path(), help="A YAML file of settings."
        ),
    ):
        command = option(command)
    return command


def fail_in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    """Turns what a user can get wrong into one line on stderr and exit status 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # Who read what was printed has seen enough; click ends quietly.
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


class Field(click.ParamType[tuple[str, Any]]):
    """A field of an architecture and its value: JSON, or a word."""

    name = "FIELD=VALUE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not FIELD=VALUE", param, ctx)
        try:
            return name.strip(), json.loads(text)
        except ValueError:
            return name.strip(), text


class Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers, as in 111,222,333."""

    name = "n,n,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            seeds = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are not whole numbers separated by commas", param, ctx)
        if len(set(seeds)) != len(seeds):
            self.fail(f"{value!r} names a seed twice", param, ctx)
        return seeds


def part_of(path: Path, split: Split) -> Split | None:
    """`split`, where the set at `path` has parts."""
    from models.data.collection import has_test_set

    return split if has_test_set(path) else None


def read_dataset(path: Path, spec: InputSpec, corrupt: Corrupt = "fail") -> Dataset:
    """The test images under `path`, or all where it has no such part, with a progress bar; those
    left out are named on stderr."""
    from models.data import datasets

    with tqdm(desc=path.name, unit=" images") as bar:
        data = datasets.read(
            path,
            spec,
            lambda count: bar.update(count - bar.n),
            corrupt=corrupt,
            split=part_of(path, "test"),
        )
    for name in data.skipped:
        click.echo(f"{path}: {name} is not a readable image; left out", err=True)
    return data


def open_source(
    path: Path,
    spec: InputSpec,
    recipe: Recipe,
    world: World,
    *,
    hold_out: int,
    corrupt: Corrupt,
    workers: int | None,
) -> tuple[Source, Dataset | None]:
    """What a recipe trains from, and `hold_out` images that are kept from it, if any.

    Raises:
        ValueError: see `models.data.source.open_source` and `held_out`.
    """
    from models.data import source
    from models.data.augment import Augmentation, grey
    from models.data.loading import Loading
    from service.runtime import cpus

    held_out = source.held_out(path, spec, hold_out, corrupt=corrupt) if hold_out else None
    with tqdm(desc=path.name, unit=" images", disable=not world.leads) as bar:
        found = source.open_source(
            path,
            spec,
            world.device,
            hold_out=hold_out,
            augmentation=Augmentation(
                crop_padding=recipe.crop_padding,
                padding_mode=recipe.padding_mode,
                alternate_flip=recipe.alternate_flip,
                cutout=recipe.cutout,
                cutout_fill=grey(spec),
            ),
            loading=Loading(
                corrupt=corrupt,
                workers=cpus() if workers is None else workers,
                resident=None if recipe.crops == "padded" else False,
                report=tqdm.write,
                progress=lambda count: bar.update(count - bar.n),
            ),
        )
    return found, held_out
