"""`resnet-serve fetch`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli import completers, progress
from service.cli.options import PATH, fail_in_one_line

if TYPE_CHECKING:
    from models.interchange.fetching import Fetched

FAILED = 1


@click.command()
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(),
    help="YAML file of settings: fetches all its models, to its cache_dir.",
)
@click.option(
    "--cache-dir", type=PATH, help="Folder to download to.  [default: the one in the settings]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("specs", nargs=-1, metavar="[SPEC]...", shell_complete=completers.spec)
@fail_in_one_line
def fetch(
    config: str | None, cache_dir: Path | None, as_json: bool, specs: tuple[str, ...]
) -> None:
    """Downloads what SPECs name into the cache, where `serve` finds it without a network.

    Without SPECs, fetches the models of the settings. Prints the path, size and SHA-256 of each
    file. The exit status is 1 if a SPEC failed; the others are fetched nevertheless.
    """
    from service.config import loading

    settings = loading.load({"cache_dir": cache_dir and str(cache_dir)}, config=config)
    wanted = list(dict.fromkeys(specs))
    if config or not specs:
        wanted = list(dict.fromkeys([*specs, *(model.spec for model in settings.models)]))
    cache = settings.cache_dir.absolute()
    with _lines_of_progress():
        done = [_fetched(spec, cache, as_json=as_json) for spec in wanted]
    if as_json:
        click.echo(json.dumps(done, indent=2))
    if any(row["error"] for row in done):
        raise click.exceptions.Exit(FAILED)


def _fetched(spec: str, cache_dir: Path, *, as_json: bool) -> dict[str, Any]:
    """Fetches a SPEC and prints what became of it; its row of the JSON."""
    from models.interchange import fetching, specs

    files: list[Fetched] = []
    error = ""
    try:
        specs.check(spec)
        files = fetching.fetch(spec, cache_dir)
    except OSError as problem:
        error = f"{problem.filename or cache_dir}: {problem.strerror or problem}"
    except ValueError as problem:
        error = " ".join(str(problem).split()).removeprefix(f"{spec}: ")
    if error:
        click.echo(f"resnet-serve: {spec}: {error}", err=True)
    elif not as_json:
        for line in _lines(spec, files):
            click.echo(line)
    return _row(spec, files, error)


@contextmanager
def _lines_of_progress() -> Iterator[None]:
    """A line on stderr for each download, unless it is a terminal, which has a progress bar."""
    if progress.on_terminal():
        yield
        return
    logger, handler = logging.getLogger("models.interchange"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _row(spec: str, files: list[Fetched], error: str) -> dict[str, Any]:
    described = [
        {
            "path": str(file.path),
            "bytes": file.size,
            "sha256": file.sha256,
            "already_there": file.already,
        }
        for file in files
    ]
    return {"spec": spec, "files": described, "error": error or None}


def _lines(spec: str, files: list[Fetched]) -> list[str]:
    if not files:
        return [f"{spec}: nothing to fetch"]
    return [
        f"{spec}: {file.path}, {file.size:,} bytes, sha256 {file.sha256}"
        f"{', already there' if file.already else ''}"
        for file in files
    ]
