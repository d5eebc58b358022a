"""Options, types and helpers that several commands share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import click

from service.cli import completers
from service.cli.progress import bar

if TYPE_CHECKING:
    from models.data.collection import Collection
    from models.data.datasets import Corrupt, Dataset
    from models.data.listing import Split
    from models.preprocess import InputSpec


class GivenPath(click.Path):
    """A path; not the empty one, which a forgotten variable leaves, and Python takes for `.`; nor
    `-`, which would be a file of that name where other programs have a standard stream."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        if value == "-":
            self.fail("- is no file; name one, or /dev/stdin where one is read", param, ctx)
        return super().convert(value, param, ctx)


# The status that a shell reports for a program ended by Ctrl-C.
INTERRUPTED = 130
PATH = GivenPath(path_type=Path)
FILE = GivenPath(path_type=Path, dir_okay=False)
# Of tensors' names, the prefix may be none.
MAY_BE_EMPTY = ("prefix",)
P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
D = TypeVar("D")


def take(kind: Callable[..., D], options: dict[str, Any]) -> D:
    """Moves the fields of a dataclass from a command's options to an instance of it."""
    return kind(**{field.name: options.pop(field.name) for field in fields(cast("Any", kind))})


def engine_flags(
    command: F,
    device: str = "auto, cpu or cuda:N.",
    complete: completers.Complete = completers.device,
) -> F:
    """Adds --device, --engine and --precision."""
    for option in (
        click.option(
            "--precision",
            shell_complete=completers.precision,
            help="auto, fp32, bf16, fp16 or int8.",
        ),
        click.option(
            "--engine",
            shell_complete=completers.engine,
            help="auto, fused, eager, compile or openvino.",
        ),
        click.option(
            "--device",
            shell_complete=complete,
            help=device,
        ),
    ):
        command = option(command)
    return command


def code_flag(command: F) -> F:
    """Adds --allow-code: a list, or None if it is not given."""
    return click.option(
        "--allow-code",
        metavar="MODULE:CLASS",
        multiple=True,
        callback=lambda context, parameter, given: list(given) or None,
        help="Code of your own that a bundle may name as its block or head: it is imported and "
        "run. Repeat for several; MODULE alone allows all its classes.",
    )(command)


def exact_flag(command: F) -> F:
    """Adds --exact."""
    return click.option(
        "--exact",
        is_flag=True,
        help="Decode large JPEGs in full, as with the setting exact_decode.",
    )(command)


def settings_flags(command: F) -> F:
    """Adds the flags of `serve`, all of which are settings."""
    command = engine_flags(
        code_flag(command),
        "auto, cpu, cuda:N, cuda:all, or several separated by commas.",
        completers.served_device,
    )
    for option in (
        click.option(
            "--workers",
            type=int,
            help="Number of front-end processes.  [default: chosen by measuring]",
        ),
        click.option(
            "--grpc-port", type=int, help="Port for gRPC on the same host.  [default: no gRPC]"
        ),
        click.option("--port", type=int, help="Port to listen on.  [default: 8000]"),
        click.option(
            "--host", help="Address, name or unix:PATH to listen on.  [default: 127.0.0.1]"
        ),
        click.option(
            "--model",
            "models",
            metavar="[NAME=]SPEC",
            multiple=True,
            shell_complete=completers.spec,
            help="Model to serve; repeat for several. NAME defaults to the bundle's own.",
        ),
        click.option("--config", metavar="FILE", type=click.Path(), help="YAML file of settings."),
    ):
        command = option(command)
    return command


def fail_in_one_line(command: Callable[P, None]) -> Callable[P, None]:
    """Turns a user's mistake into one line on stderr and exit status 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            _refuse_empty(click.get_current_context())
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # The reader of a pipe has seen enough; click exits quietly.
        except (ValueError, OSError, ArithmeticError) as error:
            raise OneLine(" ".join(in_words(error).split())) from None
        except KeyboardInterrupt:
            click.echo("resnet-serve: interrupted", err=True)
            raise SystemExit(INTERRUPTED) from None

    return guarded


def _refuse_empty(context: click.Context) -> None:
    """Refuses an empty value, which a forgotten variable leaves: it must not count as not given."""
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        empty = value == "" or (isinstance(value, list | tuple) and "" in value)
        if empty and parameter.name not in MAY_BE_EMPTY:
            is_option = isinstance(parameter, click.Option)
            name = parameter.opts[0] if is_option else str(parameter.name).upper()
            raise ValueError(f"{name}: is empty; give a value{', or leave it out' * is_option}")


def in_words(error: Exception) -> str:
    """The error without the number of the system's."""
    if isinstance(error, OSError) and error.strerror:
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([" to ".join(named), error.strerror] if named else [error.strerror])
    return str(error)


class OneLine(click.ClickException):
    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"resnet-serve: {self.message}", err=True, file=file)


class PerChannel(click.ParamType[tuple[float, ...]]):
    """One number for each channel, as in 0.5,0.5,0.5."""

    name = "r,g,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not numbers separated by commas", param, ctx)


class Whole(click.ParamType[tuple[int, ...]]):
    """One whole number for each channel, as in 114,114,114."""

    name = "r,g,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers separated by commas", param, ctx)


class Lengths(click.ParamType["int | tuple[int, int]"]):
    """Pixels of both sides, as in 224; or height and width, as in 160x224 or 160,224."""

    name = "N|HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        try:
            sides = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            sides = ()
        if len(sides) not in (1, 2) or min(sides) < 1:
            self.fail(f"{value!r} is neither a side in pixels nor HEIGHTxWIDTH", param, ctx)
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


class Field(click.ParamType[tuple[str, Any]]):
    """A field of an architecture and its value: JSON, a word, or several separated by commas."""

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
            pass
        # As Python writes a tuple, or without brackets.
        if text.startswith("(") or "," in text:
            parts = [part.strip() for part in text.strip("() ").split(",")]
            return name.strip(), [_value(part) for part in parts if part]
        return name.strip(), text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers, as in 111,222,333."""

    name = "n,n,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            seeds = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers separated by commas", param, ctx)
        if len(set(seeds)) != len(seeds):
            self.fail(f"{value!r} repeats a seed", param, ctx)
        return seeds


def part_of(path: Path, split: Split) -> Split | None:
    """`split` if the data set at `path` has such parts."""
    from models.data.collection import has_test_set

    return split if has_test_set(path) else None


def decode(
    collection: Collection, spec: InputSpec, corrupt: Corrupt = "fail", *, quiet: bool = False
) -> Dataset:
    """The images of a collection in memory, with its progress; images that are left out are named
    on stderr, unless `quiet`."""
    from models.data import datasets

    with bar(hidden=quiet, desc=collection.path.name, unit=" images") as shown:
        data = datasets.decode(
            collection, spec, lambda count: shown.update(count - shown.n), corrupt=corrupt
        )
    for name in () if quiet else data.skipped:
        click.echo(f"{collection.path}: {name} is unreadable and left out", err=True)
    return data


def read_dataset(path: Path, spec: InputSpec) -> Dataset:
    """The test images under `path`, or all images if it has no test part; see `decode`."""
    from models.data.collection import find

    return decode(find(path, part_of(path, "test")), spec)
