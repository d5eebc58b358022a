"""The command `resnet-serve`."""

from __future__ import annotations

import click

from service.commands.bench import bench
from service.commands.calibrate import calibrate
from service.commands.classify import classify
from service.commands.completion import completion
from service.commands.config import config
from service.commands.convert import convert
from service.commands.evaluate import evaluate
from service.commands.models import models
from service.commands.results import results
from service.commands.serve import serve
from service.commands.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="resnet-serve")
def main() -> None:
    """Serves ResNets over HTTP, and makes the bundles it serves."""
    # Here, since completing must not wait for it.
    from service.settings import settle_home  # noqa: PLC0415

    settle_home()


for command in (
    serve,
    config,
    classify,
    models,
    convert,
    train,
    evaluate,
    results,
    calibrate,
    bench,
    completion,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
