"""The command `resnet-serve`."""

from __future__ import annotations

import click

from service.cli import examples
from service.cli.bench import bench
from service.cli.calibrate import calibrate
from service.cli.check import check
from service.cli.classify import classify
from service.cli.completion import completion
from service.cli.config import config
from service.cli.convert import convert
from service.cli.evaluate import evaluate
from service.cli.examples import Commands
from service.cli.fetch import fetch
from service.cli.health import health
from service.cli.models import models
from service.cli.results import results
from service.cli.serve import serve
from service.cli.train import train
from service.config.variables import settle_home


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="resnet-serve")
def main() -> None:
    """Serves ResNets over HTTP, and creates the bundles to serve."""
    settle_home()


for command in (
    serve,
    health,
    fetch,
    config,
    classify,
    models,
    convert,
    check,
    train,
    evaluate,
    results,
    calibrate,
    bench,
    completion,
):
    main.add_command(command)
examples.add(main)

if __name__ == "__main__":
    main()
