"""`resnet-serve serve`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from service.commands.options import fail_in_one_line


@click.command()
@click.option("--config", metavar="FILE", help="A YAML file of settings.")
@click.option("--model", "models", metavar="SPEC", multiple=True, help="Repeat for several.")
@click.option("--host", help="Default 127.0.0.1.")
@click.option("--port", type=int, help="Default 8000.")
@click.option("--workers", type=int, help="Front-end processes.")
@click.option("--device", help="auto, cpu, cuda:N, or a comma-separated list.")
@click.option("--engine", help="auto, eager, compile or openvino.")
@click.option("--precision", help="auto, fp32, bf16, fp16 or int8.")
@fail_in_one_line
def serve(config: str | None, models: tuple[str, ...], **flags: Any) -> None:
    """Serves models over HTTP. Flags win over RESNET_SERVE_* variables, those over the file."""
    from service import settings as configuration
    from service.control import log_to_stderr
    from service.reload import Reload
    from service.server import listen
    from service.server import serve as run

    flags["models"] = list(models) or None
    read = partial(configuration.load, flags, config=config)
    reload = Reload(read)
    settings = read()
    log_to_stderr(settings.log_level)
    listener = listen(settings.host, settings.port)
    if settings.workers > 1:
        from service.supervisor import supervise

        sys.exit(supervise(settings, listener, reload))
    # Only now: what is wrong so far is said without waiting for torch.
    from service.app import create_app
    from service.fleet import Fleet
    from service.metrics import Metrics

    metrics = Metrics()
    fleet = Fleet(settings, metrics)
    change = partial(reload.attend, settings, fleet.reload)
    run(create_app(settings, metrics, fleet), settings, listener, change)
