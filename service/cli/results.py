"""`resnet-serve results`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from service.cli import outputs
from service.cli.options import FILE, PATH, fail_in_one_line


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--curves",
    "picture",
    type=FILE,
    help="Draw one configuration's curves to this .png, .svg or .pdf, with all seeds overlaid.",
)
@outputs.overwrite_flag
@click.argument("runs", nargs=-1, required=True, type=PATH)
@fail_in_one_line
def results(as_json: bool, picture: Path | None, overwrite: bool, runs: tuple[Path, ...]) -> None:
    """Prints accuracy over seeds beside the published figures, as a Markdown table.

    RUNS are bundles that `train` wrote, their run folders, or folders of bundles.
    """
    from models.reports import table
    from models.reports.results import RUN_FOLDER, aggregate, collect
    from models.training import history

    outputs.check(picture, overwrite=overwrite)
    results = aggregate(collect(runs, partial(click.echo, err=True)))
    if picture:
        if len(results) > 1:
            raise ValueError(
                f"{picture}: these runs belong to {len(results)} configurations, not to one"
            )
        folders = [run.path.with_suffix(RUN_FOLDER) for run in results[0].runs]
        history.curves(folders, picture, ", ".join(sorted({path.stem for path in folders})))
    if as_json:
        click.echo(json.dumps(table.as_json(results), indent=2))
    else:
        click.echo(table.markdown(results), nl=False)
