"""Reading settings: from a YAML file, then environment variables, then flags; the last one wins.

Below them are the variables of the platform that started the container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from models.builtin import DEFAULT_SPEC
from models.suggestions import nearest
from service.config import keys, sources
from service.config.addresses import unix_path
from service.config.setting_types import DEVICE_RULE, Strict
from service.config.settings import ModelSettings, Settings
from service.config.sources import NAME_RULE, SECRETS, Merged, Place, Source, shown
from service.config.variables import PREFIX, environment
from service.config.wording import but_is, in_words, is_ours
from service.errors import ConfigError

S = TypeVar("S", bound=Strict)
# As a variable or a flag these apply to every model; the others can belong to only one.
MODEL_WIDE = tuple(
    name for name in ModelSettings.model_fields if name not in ("spec", "name", "architecture")
)
LISTS = (
    "models", "device", "cors_origins", "platforms", "allow_code", "latency_buckets_ms", *SECRETS
)  # fmt: skip
LITERALS = re.compile(r"'([^']*)'")
# pydantic appends the type that it tried to the place of an error.
DEVICE_TYPES = ("str", "list[str]")
# What JSON calls an object.
MAPPINGS = {
    "dict_type": "must be a mapping",
    "model_type": f"must be a mapping of settings, such as `spec: {DEFAULT_SPEC}`",
}
# Errors that no value would explain.
ITSELF = ("missing", "twice", "extra", "spec", "invalid_key", "recursion_loop")


@dataclass(frozen=True)
class Reading:
    """The `settings`, or None and the `problems`, one line each; `merged`: the values before
    validation, with their origins; `path`: the file's. `sound`: the settings that are right, with
    defaults for the `wrong` ones; None: the file cannot be read."""

    settings: Settings | None
    problems: list[str]
    merged: Merged
    path: str | None
    sound: Settings | None
    wrong: frozenset[Place]


def read(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Reading:
    """The settings in force and where they come from, or everything that is wrong with them.

    `flags` maps settings to values (None: not given). `config` is the path of the YAML file, by
    default RESNET_SERVE_CONFIG's, or the content of such a file.
    """
    environ = environment() if environ is None else environ
    if isinstance(config, Mapping):
        path, file = None, Source("file", dict(config))
    else:
        path = environ.get(f"{PREFIX}CONFIG") if config is None else config
        file = Source("file")
        if path == "":  # Python takes it for the current folder.
            where = f"{PREFIX}CONFIG" if config is None else "--config"
            file = Source("file", problems=[f"{where}: the path is empty; name a file, or none"])
        elif path is not None:
            file = sources.of_file(Path(path))
    known = [*Settings.model_fields, *MODEL_WIDE]
    layers = (sources.of_environment(environ, known, LISTS), sources.of_flags(flags or {}, LISTS))
    merged = sources.merge(sources.of_platforms(environ), file, layers, MODEL_WIDE, DEFAULT_SPEC)
    problems = [problem for source in (file, *layers) for problem in source.problems]
    unread = bool(file.problems) and not file.values
    wrong: set[Place] = set()
    settings = _sound(merged, problems, wrong)
    settings = _with_key_files(settings, merged, problems, wrong)
    port = merged.origin(("port",))
    if unix_path(settings.host) is not None and port is not None and port.source == "flag":
        problems.append(f"{port.where}: {settings.host} has no port")
    return Reading(
        None if problems else settings,
        problems,
        merged,
        path,
        None if unread else settings,
        frozenset(wrong),
    )


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force; for the arguments see `read`.

    Raises:
        ConfigError: a file is missing or unreadable, a key unknown, a value impossible.
    """
    reading = read(flags, config=config, environ=environ)
    if reading.settings is None:
        raise ConfigError(reading.problems[0])
    return reading.settings


def client_key(file: Path | None) -> str | None:
    """The key that a client sends: the first of `file`, else RESNET_SERVE_KEY, else None.

    Raises:
        ConfigError: see `service.config.keys.read`.
    """
    if file is not None:
        return keys.read(file)[0].get_secret_value()
    return environment().get(f"{PREFIX}KEY") or None


def validated(kind: type[S], /, **values: Any) -> S:
    """Settings of a kind from values of any type.

    Raises:
        ConfigError: one line that names the key and what it allows.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_described(error.errors()[0], kind)) from None


def _sound(merged: Merged, problems: list[str], wrong: set[Place]) -> Settings:
    """The settings, with defaults for what is wrong, which is added to `problems` and `wrong`."""
    values = dict(merged.values)
    if isinstance(values.get("models"), list):
        rows = values["models"]
        values["models"] = [dict(row) if isinstance(row, dict) else row for row in rows]
    while True:
        try:
            return Settings.model_validate(values)
        except ValidationError as errors:
            problems += [each for each in _problems(errors, merged) if each not in problems]
            for error in errors.errors():
                wrong.add(_place(error)[:3])
                _leave_out(_place(error), values)


def _leave_out(place: Place, values: dict[str, Any]) -> None:
    """Removes a wrong value, or gives a model another, so that each keeps its number."""
    rows = values.get("models")
    if not place:
        values.clear()
    elif place[0] != "models" or not isinstance(rows, list):
        values.pop(str(place[0]), None)
    elif len(place) < 2 and any(isinstance(row, dict) and row.pop("name", "") for row in rows):
        pass  # Two had the same.
    elif len(place) < 2 or not isinstance(place[1], int) or place[1] >= len(rows):
        del values["models"]
    elif len(place) > 2 and place[2] != "spec" and str(place[2]) in rows[place[1]]:
        del rows[place[1]][str(place[2])]
    else:
        rows[place[1]] = {"spec": DEFAULT_SPEC}


def _with_key_files(
    settings: Settings, merged: Merged, problems: list[str], wrong: set[Place]
) -> Settings:
    """The settings with the keys of the files that they name; adds to `problems` and `wrong`."""
    secrets = {}
    for name in SECRETS:
        path: Path | None = getattr(settings, f"{name}_file")
        if path is not None:
            try:
                secrets[name] = [*getattr(settings, name), *keys.read(path)]
            except ConfigError as error:
                setting = f"{name}_file"
                problems.append(merged.located((setting,), f"{setting}: {error}"))
                wrong.add((setting,))
    return settings.model_copy(update=secrets)


def _problems(errors: ValidationError, merged: Merged) -> list[str]:
    """One line for each wrong value, in the order of the file's lines, the others first."""
    problems: dict[tuple[str, str], tuple[int, str]] = {}
    for error in errors.errors():
        if error["type"] == "default_factory_not_called":  # Another wrong value prevented it.
            continue
        place = _place(error)
        origin = merged.origin(place)
        source, where = origin or ("", "")
        # A value that applies to every model is reported once.
        key = (where, shown(place) if source == "file" else str(place[-1]))
        line = re.search(r":(\d+)$", where)
        problem = merged.located(place, _described(error, Settings))
        problems.setdefault(key, (int(line[1]) if line else 0, problem))
    return [problem for _, problem in sorted(problems.values(), key=itemgetter(0))]


def _place(error: ErrorDetails) -> Place:
    return tuple(part for part in error["loc"] if part not in DEVICE_TYPES)


def _described(error: ErrorDetails, kind: type[Strict]) -> str:
    """Which key is wrong, and what it allows."""
    place, value = _place(error), error["input"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(place, kind)
    message = MAPPINGS.get(error["type"]) or in_words(error)
    if place[-1:] == ("device",):  # It may have either of two types.
        message = DEVICE_RULE
    if error["type"] == "string_pattern_mismatch":  # Only a model's name has a pattern.
        message = NAME_RULE
    if error["type"] == "invalid_key":  # The key itself is the last of the place.
        place, message = place[:-1], f"names of settings must be text, not {place[-1]}"
    problem = f"{shown(place)}: {message}"
    # A secret is never shown; of others, the value is not what is wrong, or what it has is.
    ours = isinstance(value, list | dict) and is_ours(error)
    if (place[:1] and place[0] in SECRETS) or error["type"] in ITSELF or ours:
        return problem
    problem = f"{problem}{but_is(value)}"
    literals = LITERALS.findall(message) if error["type"] == "literal_error" else []
    near = nearest(str(value), literals)
    return f"{problem}; did you mean {near[0]}?" if near else problem


def _unknown_key(place: Place, kind: type[Strict]) -> str:
    key = str(place[-1])
    if len(place) == 1 and key in MODEL_WIDE:
        return f"{key}: is a setting of a model: models[0].{key}"
    fields = ModelSettings.model_fields if len(place) > 1 else kind.model_fields
    wide = dict.fromkeys(MODEL_WIDE, "models[0].") if len(place) == 1 and kind is Settings else {}
    near = [f"{wide.get(name, '')}{name}" for name in nearest(key, [*fields, *wide])]
    hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(fields)}"
    return f"{shown(place)}: unknown setting; {hint}"


def of_model(index: int, error: object) -> str:
    """A model's problem that begins with its setting: as models[0].device, or else its spec."""
    text = str(error)
    name = text.partition(": ")[0]
    setting = "" if name in ModelSettings.model_fields else "spec: "
    return f"models[{index}].{setting}{text}"
