"""`resnet-serve config`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from service.cli.examples import Commands
from service.cli.options import fail_in_one_line, settings_flags
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.config.loading import Reading
    from service.config.sources import Place

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@click.group(cls=Commands)
def config() -> None:
    """Checks, shows and describes the service's settings."""


@config.command()
@settings_flags
@fail_in_one_line
def check(config: str | None, models: tuple[str, ...], **flags: Any) -> None:
    """Lists all problems that would prevent `serve` from starting on this host; exits with status
    2 if any.

    It looks at settings, keys, certificates, ports, devices and the files of models, but does not
    load weights or download anything. An expired certificate is listed too. A port on which this
    service already answers is not.
    """
    from service.cli import preflight

    reading = _read(config, models, flags)
    problems = preflight.on_this_host(reading)
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
