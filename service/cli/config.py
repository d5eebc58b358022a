"""`resnet-serve config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import fail_in_one_line, settings_flags
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.config.loading import Reading
    from service.config.settings import Settings
    from service.config.sources import Place

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@click.group()
def config() -> None:
    """Checks, shows and describes the service's settings."""


@config.command()
@settings_flags
@fail_in_one_line
def check(config: str | None, models: tuple[str, ...], **flags: Any) -> None:
    """Lists all problems that would prevent `serve` from starting; exits with status 2 if any.

    Does not load weights or download anything.
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
    """Prints the settings in force as YAML, each with its origin. Keys are masked."""
    reading = _read(config, models, flags)
    if reading.settings is None:
        raise ConfigError(reading.problems[0])
    values = reading.settings.model_dump(mode="json")
    rows = values.pop("models")
    if as_json:

        def described(place: Place, row: dict[str, Any]) -> dict[str, Any]:
            return {
                name: _with_origin(reading, (*place, name), value) for name, value in row.items()
            }

        models_described = [described(("models", at), row) for at, row in enumerate(rows)]
        click.echo(json.dumps(described((), values) | {"models": models_described}, indent=2))
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
    """Prints the JSON Schema (2020-12) of the settings file, for editors.

    Start the settings file with the line `# yaml-language-server: $schema=FILE`.
    """
    from service.config.settings import Settings

    described = {"$schema": DIALECT} | Settings.model_json_schema()
    click.echo(json.dumps(described, indent=2))


def _read(config: str | None, models: tuple[str, ...], flags: dict[str, Any]) -> Reading:
    from service.config import loading

    return loading.read(flags | {"models": list(models) or None}, config=config)


def _origin(reading: Reading, place: Place) -> tuple[str, str]:
    """The source of a value, and where it is set there."""
    # If a flag gives a list of models, each model comes from that flag.
    origin = reading.merged.origin(place) if place[-1] == "spec" else None
    return origin or reading.merged.origins.get(place) or ("default", "default")


def _with_origin(reading: Reading, place: Place, value: Any) -> dict[str, Any]:
    source, where = _origin(reading, place)
    return {"value": value, "source": source, "place": None if source == where else where}


def _problems(reading: Reading) -> Iterator[str]:
    """What is wrong with settings that are valid individually."""
    from models.interchange import specs
    from service.config.addresses import resolve, unix_path
    from service.http import tls
    from service.http.listener import check_address

    settings: Settings | None = reading.settings
    assert settings is not None

    named = reading.merged.located
    try:
        tls.create_context(settings)
    except ConfigError as error:
        yield named((str(error).partition(":")[0],), error)
    # On another machine the name may resolve differently, or not at all.
    with suppress(OSError):
        found = [] if unix_path(settings.host) else resolve(settings.host, settings.port)
        try:
            for address in found:
                check_address(settings, address.ip)
        except ConfigError as error:
            yield named(("host",), error)
    for at, model in enumerate(settings.models):
        try:
            specs.check(model.spec, settings.allow_code)
        except ValueError as error:
            yield named(("models", at, "spec"), f"models[{at}].spec: {error}")
    if settings.cache_dir.exists() and not settings.cache_dir.is_dir():
        yield named(("cache_dir",), f"cache_dir: {Path(settings.cache_dir)} is not a folder")
