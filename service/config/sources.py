"""Where settings come from: a YAML file with its lines, the environment, flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from models.suggestions import nearest
from service.errors import ConfigError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model

PREFIX = "RESNET_SERVE_"
# Read by others under the same prefix: the file's path, a client's key, the tests' data, and what
# stands in for the processor's flags.
NOT_SETTINGS = {"CONFIG", "KEY", "SHARED", "CPU_FLAGS"}
# Settings whose values nobody may see in a log or a message.
SECRETS = ("api_keys", "admin_keys")
# Flags that are not called as their setting is.
FLAGS = {"models": "--model"}
MERGE = "<<"  # Which YAML allows several times.

# The keys and indices that lead to a value.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """`values` by setting; `origins`: where a person finds each; `problems`: what is wrong with
    the source itself, a line each."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Merged:
    """`origins`: of each value the kind of its source and where a person finds it there."""

    values: dict[str, Any]
    origins: dict[Place, tuple[str, str]]

    def origin(self, place: Place) -> tuple[str, str] | None:
        """Of a value, or of the nearest around it; None: of no source."""
        for length in range(len(place), 0, -1):
            if found := self.origins.get(place[:length]):
                return found
        return None


def of_file(path: Path) -> Source:
    """The settings of a YAML file.

    Raises:
        ConfigError: it is missing, unreadable, or no YAML mapping.
    """
    lines: dict[Place, int] = {}
    problems: list[str] = []
    try:
        loader = yaml.SafeLoader(path.read_text("utf-8"))
        try:
            node = loader.get_single_node()
            for place, line, first in _keys(node) if node is not None else ():
                if first:
                    # Not what is written in the place of a secret.
                    key = shown(place[:1] if place[0] in SECRETS else place)
                    problems.append(f"{path}:{line}: {key}: is given in line {first} already")
                lines.setdefault(place, line)
            content = loader.construct_document(node) if node is not None else {}
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not YAML: not UTF-8") from None
    except yaml.YAMLError as error:
        # Its own text quotes the file, which may hold keys.
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}: not YAML{where}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, not a {type(content).__name__}")
    values = {str(key): value for key, value in content.items()}
    origins = {place: f"{path}:{line}" for place, line in lines.items()}
    for place in _merged_in(values):
        around = [origins[place[:length]] for length in (2, 1) if place[:length] in origins]
        origins.setdefault(place, (*around, str(path))[0])
    return Source("file", values, origins, problems)


def _merged_in(values: dict[str, Any]) -> Iterator[Place]:
    """The settings, those of models too: what `<<` brought has no line of its own there."""
    for key, value in values.items():
        yield (key,)
        for index, row in enumerate(value if isinstance(value, list) else ()):
            yield from ((key, index, str(name)) for name in (row if isinstance(row, dict) else ()))


def _keys(node: yaml.Node) -> Iterator[tuple[Place, int, int]]:
    """Of each key and list entry below `node`: its place, its line, and the line where the same
    key is already, or 0."""
    seen: set[int] = set()  # Anchors may make a loop of the nodes.
    waiting: list[tuple[Place, yaml.Node]] = [((), node)]
    while waiting:
        at, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    known = 0 if key.value == MERGE else first.setdefault(key.value, line)
                    yield (*at, key.value), line, known if known != line else 0
                    waiting.append(((*at, key.value), value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield (*at, index), value.start_mark.line + 1, 0
                waiting.append(((*at, index), value))


def of_environment(
    environ: Mapping[str, str], known: Collection[str], lists: Collection[str]
) -> Source:
    """The settings of environment variables; those in `lists` may be written with commas."""
    found = Source("environment")
    for variable, value in environ.items():
        key = variable.removeprefix(PREFIX)
        if key == variable or key in NOT_SETTINGS:
            continue
        # Kubernetes describes a Service called resnet-serve to its pods in variables such as
        # RESNET_SERVE_PORT=tcp://10.0.0.1:8000, which are no settings of ours.
        if value.startswith("tcp://") or key.startswith(("SERVICE_", "PORT_")):
            continue
        if key == "ARCHITECTURE":
            found.problems.append(f"{variable}: only a file can describe an architecture")
        elif key.lower() not in known:
            near = nearest(key, known)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            found.problems.append(f"environment variable {variable} is no setting{hint}")
        else:
            found.values[key.lower()] = _split(key.lower(), value, lists)
            found.origins[key.lower(),] = variable
    return found


def of_flags(flags: Mapping[str, Any], lists: Collection[str]) -> Source:
    """The settings of flags; None: not given."""
    given = {key: value for key, value in flags.items() if value is not None}
    return Source(
        "flag",
        {key: _split(key, value, lists) for key, value in given.items()},
        {(key,): FLAGS.get(key, f"--{key.replace('_', '-')}") for key in given},
    )


def _split(key: str, text: Any, lists: Collection[str]) -> Any:
    """A list that was written with commas; one device stays a name."""
    if key not in lists or not isinstance(text, str) or (key == "device" and "," not in text):
        return text
    return [part.strip() for part in text.split(",") if part.strip()]


def merged(sources: tuple[Source, ...], model_wide: Collection[str], default_spec: str) -> Merged:
    """The sources, the later over the earlier; those other than the first give `model_wide`
    settings to every model in force."""
    file, *layers = sources
    values = dict(file.values)
    origins = {place: (file.kind, where) for place, where in file.origins.items()}
    for layer in layers:
        for key, value in layer.values.items():
            if key in model_wide:
                continue
            for place in [place for place in origins if place[0] == key]:
                del origins[place]
            origins[key,] = (layer.kind, layer.origins[key,])
            values[key] = list(map(_row, value)) if key == "models" else value
    for layer in layers:
        wide = {key: layer.values[key] for key in model_wide if key in layer.values}
        rows = values.get("models", [{"spec": default_spec}])
        if not wide or not isinstance(rows, list):  # Validation will say what else it is.
            continue
        values["models"] = [row | wide if isinstance(row, dict) else row for row in rows]
        for index in range(len(rows)):
            for key in wide:
                origins["models", index, key] = (layer.kind, layer.origins[key,])
    return Merged(values, origins)


def _row(entry: str) -> dict[str, str]:
    """A model's settings from SPEC or NAME=SPEC; the path of a file called like that needs a ./"""
    name, equals, spec = entry.partition("=")
    named = equals and re.fullmatch(NAME_PATTERN, name)
    return {"name": name, "spec": spec} if named else {"spec": entry}


def shown(place: Place) -> str:
    """As in models[0].spec."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
