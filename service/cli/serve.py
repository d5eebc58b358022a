"""`resnet-serve serve`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import fail_in_one_line, settings_flags
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.config.loading import Reading
    from service.config.reload import Reload
    from service.config.settings import Settings
    from service.http.listener import Listeners

log = logging.getLogger(__name__)


@click.command()
@settings_flags
@fail_in_one_line
def serve(config: str | None, models: tuple[str, ...], **flags: Any) -> None:
    """Serves models over HTTP.

    Flags override RESNET_SERVE_* variables, which override the settings file. What has no flag is
    listed below.
    """
    listeners = None

    def exit_at_once(number: int, _: object) -> None:
        # An exception would have to pass through whatever is being imported or loaded.
        if listeners is not None:
            from service.logs import log_in_signal_handler

            listeners.remove_files()
            said = f"stopped by {signal.Signals(number).name} before it served"
            log_in_signal_handler(__name__, said)
        os._exit(0)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Nothing has been read that it could change.
    # Until the server handles them: no request has been accepted yet, so none is lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_at_once)
    from service.cli import preflight
    from service.config import loading
    from service.config.reload import Reload
    from service.http import service_manager, tls
    from service.http.listener import Listeners, check_exposure, listen
    from service.logs import log_to_stderr

    flags["models"] = list(models) or None
    manager = service_manager.taken_over()

    def read() -> Reading:
        latest = loading.read(flags, config=config)
        _refuse(latest.problems)
        assert latest.settings is not None
        with _explained(latest):
            tls.create_context(latest.settings)  # Fails before any process changes.
            if listeners is not None:
                check_exposure(latest.settings, listeners)
        return latest

    reload = Reload(read)
    reading = loading.read(flags, config=config)
    _refuse(preflight.before_start(reading))
    settings = reading.settings
    assert settings is not None
    log_to_stderr(settings.log_level, settings.log_format)
    if warning := tls.outdated(settings):
        log.warning(reading.merged.explained(warning))
    with _explained(reading):
        if manager.sockets:
            listeners = Listeners(manager.sockets, kept=True)
        else:
            listeners = listen(settings.host, settings.port, settings.socket_mode)
        listeners = replace(listeners, tell=manager.tell)
        with listeners:
            check_exposure(settings, listeners)
            _serve(settings, listeners, reload)


@contextmanager
def _explained(reading: Reading) -> Iterator[None]:
    """Begins the problem of a setting with where its value comes from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(reading.merged.explained(error)) from None


def _refuse(problems: list[str]) -> None:
    """Raises ConfigError: the first of the problems, if there are any."""
    if problems:
        more = "; `resnet-serve config check` lists all problems" if problems[1:] else ""
        raise ConfigError(problems[0] + more)


def _serve(settings: Settings, listeners: Listeners, reload: Reload) -> None:
    from service.config.choices import most_devices
    from service.config.plan import plan
    from service.http.reserved_port import reserve

    reserved = None
    if settings.grpc_port is not None:
        reserved = reserve(settings, settings.host, settings.grpc_port)
    grpc_addresses = reserved.addresses if reserved else []
    planned = plan(settings)
    settings = planned.applied(settings)
    # Each device has an engine process of its own, so that what one loses does not stop the others.
    devices = most_devices(model.device for model in settings.models)
    if settings.workers > 1 or devices > 1:
        from service.workers.supervisor import supervise

        sys.exit(supervise(settings, listeners, reload, planned.request, grpc_addresses))
    # Imported late, so that earlier errors need not wait for torch.
    from service.config.objectives import objectives_of
    from service.grpc.attached import grpc_server
    from service.http.app import create_app
    from service.http.server import serve as run
    from service.metrics import Metrics
    from service.repository.local import LocalRepository

    metrics = Metrics(objectives_of(settings))
    repository = LocalRepository(settings, metrics, planned.request)
    change = partial(reload.attend, settings, repository.reload)
    app = create_app(settings, metrics, repository)
    run(app, settings, listeners, change, grpc_server(app.state.services, grpc_addresses))
