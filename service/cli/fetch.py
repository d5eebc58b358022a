"""`resnet-serve fetch`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli import completers
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
    file. The exit status is 1 if a SPEC failed; the
    others are fetched nevertheless.
    """
    from models.interchange import fetching
    from service.config import loading
    from service.config import specs as spec_checks

    settings = loading.load({"cache_dir": cache_dir and str(cache_dir)}, config=config)
    wanted = list(dict.fromkeys(specs))
    if config or not specs:
        wanted = list(dict.fromkeys([*specs, *(model.spec for model in settings.models)]))
    if not sys.stderr.isatty():  # Else there is a progress bar.
        logging.basicConfig(format="%(message)s", level=logging.INFO)
    done: list[dict[str, Any]] = []
    for spec in wanted:
        files: list[Fetched] = []
        error = ""
        try:
            spec_checks.check(spec)
            files = fetching.fetch(spec, settings.cache_dir.absolute())
        except OSError as problem:
            error = f"{problem.filename or settings.cache_dir}: {problem.strerror or problem}"
        except ValueError as problem:
            error = " ".join(str(problem).split()).removeprefix(f"{spec}: ")
        if error:
            click.echo(f"resnet-serve: {spec}: {error}", err=True)
        done.append(_row(spec, files, error))
        if not as_json:
            for line in _lines(spec, files, error):
                click.echo(line)
    if as_json:
        click.echo(json.dumps(done, indent=2))
    if any(row["error"] for row in done):
        raise click.exceptions.Exit(FAILED)


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


def _lines(spec: str, files: list[Fetched], error: str) -> list[str]:
    if not files and not error:
        return [f"{spec}: nothing to fetch"]
    return [
        f"{spec}: {file.path}, {file.size:,} bytes, sha256 {file.sha256}"
        f"{', already there' if file.already else ''}"
        for file in files
    ]
