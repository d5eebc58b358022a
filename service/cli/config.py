"""`resnet-serve config`."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import fail_in_one_line, settings_flags
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.config.settings import Reading, Settings
    from service.config.sources import Place

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@click.group()
def config() -> None:
    """Checks, shows and describes the service's settings."""


@config.command()
@settings_flags
@fail_in_one_line
def check(config: str | None, models: tuple[str, ...], **flags: Any) -> None:
    """Everything that would stop `serve` from starting, a line each, and exit status 2.

    Weights are not loaded, and nothing is downloaded.
    """
    reading = _read(config, models, flags)
    problems = reading.problems or list(_problems(reading))
    for problem in problems:
        click.echo(problem, err=True)
    if reading.settings is None or problems:
        raise SystemExit(2)
    served = ", ".join(model.name or model.spec for model in reading.settings.models)
    click.echo(f"{reading.path or 'settings'}: ok; serves {served}")


@config.command()
@settings_flags
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@fail_in_one_line
def show(config: str | None, models: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """The settings in force as YAML, each with where it is from. Keys are not shown."""
    reading = _read(config, models, flags)
    if reading.settings is None:
        raise ConfigError(reading.problems[0])
    values = reading.settings.model_dump(mode="json")
    rows = values.pop("models")
    if as_json:
        document: dict[str, Any] = {
            name: _told(reading, (name,), value) for name, value in values.items()
        }
        document["models"] = [
            {name: _told(reading, ("models", at, name), value) for name, value in row.items()}
            for at, row in enumerate(rows)
        ]
        click.echo(json.dumps(document, indent=2))
        return
    lines: list[tuple[str, Place]]
    lines = [(f"{name}: {json.dumps(value)}", (name,)) for name, value in values.items()]
    lines.append(("models:", ("models",)))
    for at, row in enumerate(rows):
        for number, (name, value) in enumerate(row.items()):
            begin = "    " if number else "  - "
            lines.append((f"{begin}{name}: {json.dumps(value)}", ("models", at, name)))
    width = min(50, max(len(text) for text, _ in lines))
    for text, place in lines:
        _, where = _origin(reading, place)
        click.echo(f"{text:<{width}}  # {where}")


@config.command()
def schema() -> None:
    """The YAML file's JSON Schema (2020-12), for editors.

    Put `# yaml-language-server: $schema=FILE` in the first line of the settings.
    """
    from service.config.settings import Settings

    described = {"$schema": DIALECT} | Settings.model_json_schema()
    click.echo(json.dumps(described, indent=2))


def _read(config: str | None, models: tuple[str, ...], flags: dict[str, Any]) -> Reading:
    from service.config import settings

    return settings.read(flags | {"models": list(models) or None}, config=config)


def _origin(reading: Reading, place: Place) -> tuple[str, str]:
    """The kind of a value's source and where in it the value is; of a default one word."""
    # Of a list as a flag has it, the entries are from there too.
    found = reading.given.origin(place) if place[-1] == "spec" else None
    return found or reading.given.origins.get(place) or ("default", "default")


def _told(reading: Reading, place: Place, value: Any) -> dict[str, Any]:
    source, where = _origin(reading, place)
    return {"value": value, "source": source, "place": None if source == where else where}


def _problems(reading: Reading) -> Iterator[str]:
    """What is wrong with settings that are right each by itself."""
    from service.config import specs
    from service.http import tls
    from service.http.listener import check_address

    settings: Settings | None = reading.settings
    assert settings is not None

    def named(place: Place, problem: object) -> str:
        found = reading.given.origin(place)
        return f"{found[1] + ': ' if found else ''}{problem}"

    try:
        tls.create_context(settings)
    except ConfigError as error:
        yield named((str(error).partition(":")[0],), error)
    # On another machine the name may mean something, or nothing.
    with suppress(OSError):
        address = socket.getaddrinfo(settings.host, None, type=socket.SOCK_STREAM)[0][4][0]
        try:
            check_address(settings, str(address))
        except ConfigError as error:
            yield named(("host",), error)
    for at, model in enumerate(settings.models):
        try:
            specs.check(model.spec)
        except ConfigError as error:
            yield named(("models", at, "spec"), f"models[{at}].spec: {error}")
    if settings.cache_dir.exists() and not settings.cache_dir.is_dir():
        yield named(("cache_dir",), f"cache_dir: {Path(settings.cache_dir)} is no folder")
