"""`resnet-serve results`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from service.cli.options import fail_in_one_line


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--curves",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .png, .svg or .pdf file of one configuration's curves, its seeds overlaid.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@fail_in_one_line
def results(as_json: bool, picture: Path | None, runs: tuple[Path, ...]) -> None:
    """Accuracy over seeds, as a Markdown table beside the published figures.

    RUNS are bundles that `train` wrote, their run folders, or folders of bundles.
    """
    from models.reports import table
    from models.reports.results import RUN_FOLDER, aggregate, collect
    from models.training import history

    found = aggregate(collect(runs, partial(click.echo, err=True)))
    if picture:
        if len(found) > 1:
            raise ValueError(
                f"{picture}: these runs are of {len(found)} configurations, not of one"
            )
        folders = [run.path.with_suffix(RUN_FOLDER) for run in found[0].runs]
        history.curves(folders, picture, ", ".join(sorted({path.stem for path in folders})))
    if as_json:
        click.echo(json.dumps(table.as_json(found), indent=2))
    else:
        click.echo(table.markdown(found), nl=False)
