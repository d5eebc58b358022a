"""Where settings come from: a YAML file with its line numbers, environment variables, flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from models import files
from models.suggestions import nearest
from service.config import yaml_reasons
from service.config.variables import NOT_SETTINGS, OF_PLATFORMS, PREFIX

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a model
NAME_RULE = "must start with a letter or digit, and continue with these, '.', '_' or '-'"
NAMED = re.compile(r"([a-z_]+)(?:\[(\d+)\]\.([a-z_]+))?: ")  # as `shown` has it
# Settings whose values must not appear in a log or a message.
SECRETS = ("api_keys", "admin_keys")
# Flags that are not named after their setting.
FLAGS = {"models": "--model"}
MERGE = "<<"  # YAML allows this key to be repeated.

# The keys and indices that lead to a value.
Place = tuple[str | int, ...]


class Origin(NamedTuple):
    """`source` is file, environment or flag; `where` is the value's line, variable or flag."""

    source: str
    where: str


@dataclass(frozen=True)
class Source:
    """`values` by setting; `origins`: where to find each; `problems`: what is wrong with the
    source itself, one line each."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Merged:
    """The values in force before validation, and the origin of each."""

    values: dict[str, Any]
    origins: dict[Place, Origin]

    def origin(self, place: Place) -> Origin | None:
        """The origin of a value or of the nearest value that contains it; None for a default."""
        for length in range(len(place), 0, -1):
            if origin := self.origins.get(place[:length]):
                return origin
        return None

    def located(self, place: Place, problem: object) -> str:
        """A problem, preceded by where its value comes from.

        A flag or a variable stands for the setting that it is named after, or for a model's.
        """
        origin, text = self.origin(place), str(problem)
        if origin is None:
            return text
        if origin.source != "file" and not isinstance(place[-1], int):
            text = text.removeprefix(f"{shown(place)}: ")
        return f"{origin.where}: {text}"

    def explained(self, problem: object) -> str:
        """A problem that begins with its setting, such as models[0].spec, preceded by where the
        value comes from."""
        return self.located(place_of(str(problem)), problem)


class YamlKey(NamedTuple):
    """A key or list entry; `first` is the line that already has the same key, or 0."""

    place: Place
    line: int
    first: int = 0


def of_file(path: Path) -> Source:
    """The settings of a YAML file; if it cannot be read, one of the `problems` says why."""
    try:
        content, keys = _parsed(files.read_text(path))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        line = yaml_reasons.line_of(error)
        where = f"{path}:{line}" if line else path
        return Source("file", problems=[f"{where}: {yaml_reasons.reason_of(error)}"])
    if not isinstance(content, dict):
        what = "a list" if isinstance(content, list) else "a single value"
        return Source("file", problems=[f"{path}: must be a mapping of settings, not {what}"])
    values = {str(key): value for key, value in content.items()}
    origins: dict[Place, str] = {}
    problems = []
    for place, line, first in keys:
        origins.setdefault(place, f"{path}:{line}")
        if first:
            # If a key was written where a secret's value belongs, it is not repeated.
            name = shown(place[:1] if place[0] in SECRETS else place)
            problems.append(f"{path}:{line}: {name}: already set in line {first}")
    for place in _places(values):  # What `<<` merged in has no line of its own.
        origins.setdefault(place, origins.get(place[:2]) or origins.get(place[:1]) or str(path))
    return Source("file", values, origins, problems)


def _parsed(text: str) -> tuple[Any, list[YamlKey]]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, []
        keys = list(_keys(node))
        content = loader.construct_document(node)
        return ({} if content is None else content), keys
    finally:
        loader.dispose()


def _places(values: dict[str, Any]) -> Iterator[Place]:
    """Every setting, including those of models."""
    for key, value in values.items():
        yield (key,)
        for index, row in enumerate(value if isinstance(value, list) else ()):
            yield from ((key, index, str(name)) for name in (row if isinstance(row, dict) else ()))


def _keys(root: yaml.Node) -> Iterator[YamlKey]:
    """Each key and list entry below `root`."""
    seen: set[int] = set()  # Anchors can make the nodes a cycle.
    pending: list[tuple[Place, yaml.Node]] = [((), root)]
    while pending:
        parent, node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    first = line if key.value == MERGE else lines.setdefault(key.value, line)
                    yield YamlKey((*parent, key.value), line, first if first != line else 0)
                    pending.append(((*parent, key.value), value))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield YamlKey((*parent, index), value.start_mark.line + 1)
                pending.append(((*parent, index), value))


def of_environment(
    environ: Mapping[str, str], known: Collection[str], lists: Collection[str]
) -> Source:
    """The settings of environment variables; those in `lists` may be separated by commas."""
    source = Source("environment")
    for variable, value in environ.items():
        key = variable.removeprefix(PREFIX)
        if key == variable or key in NOT_SETTINGS:
            continue
        # Kubernetes describes a Service named resnet-serve to its pods in variables such as
        # RESNET_SERVE_PORT=tcp://10.0.0.1:8000, which are not our settings.
        if value.startswith("tcp://") or key.startswith(("SERVICE_", "PORT_")):
            continue
        if key == "ARCHITECTURE":
            source.problems.append(f"{variable}: only a file can describe an architecture")
        elif key.lower() not in known:
            # What a model is named by, the variable with the list of models holds.
            near = ["models"] if key in ("SPEC", "NAME", "MODEL") else nearest(key, known)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            source.problems.append(f"environment variable {variable} is not a setting{hint}")
        else:
            source.values[key.lower()] = _split(key.lower(), value, lists)
            source.origins[key.lower(),] = variable
    return source


def of_platforms(environ: Mapping[str, str]) -> Source:
    """The settings that a container's platform determines by variables of its own."""
    source = Source("environment")
    for variable, key in OF_PLATFORMS.items():
        if environ.get(variable):
            source.values[key] = environ[variable]
            source.origins[key,] = variable
    return source


def of_flags(flags: Mapping[str, Any], lists: Collection[str]) -> Source:
    """The settings of flags; a flag that is None was not given."""
    values = {key: _split(key, flag, lists) for key, flag in flags.items() if flag is not None}
    origins: dict[Place, str] = {
        (key,): FLAGS.get(key, f"--{key.replace('_', '-')}") for key in values
    }
    return Source("flag", values, origins)


def _split(key: str, text: Any, lists: Collection[str]) -> Any:
    """A list from text with commas; a single device remains a name."""
    if key not in lists or not isinstance(text, str) or (key == "device" and "," not in text):
        return text
    return [part.strip() for part in text.split(",") if part.strip()]


def merge(
    platform: Source,
    file: Source,
    layers: Sequence[Source],
    model_wide: Collection[str],
    default_spec: str,
) -> Merged:
    """The file, over the platform's settings, with `layers` over it, the last on top; a layer's
    `model_wide` settings apply to every model in force."""
    values = platform.values | file.values
    origins = {
        place: Origin(source.kind, where)
        for source in (platform, file)
        for place, where in source.origins.items()
        if source is file or place[0] not in file.values
    }
    for layer in layers:
        for key, value in layer.values.items():
            if key in model_wide:
                continue
            values[key] = list(map(_row, value)) if key == "models" else value
            for place in [place for place in origins if place[0] == key]:
                del origins[place]
            origins[key,] = Origin(layer.kind, layer.origins[key,])
    for layer in layers:
        wide = {key: layer.values[key] for key in model_wide if key in layer.values}
        rows = values.get("models", [{"spec": default_spec}])
        if not wide or not isinstance(rows, list):  # Validation reports a value of another type.
            continue
        values["models"] = [row | wide if isinstance(row, dict) else row for row in rows]
        for index in range(len(rows)):
            for key in wide:
                origins["models", index, key] = Origin(layer.kind, layer.origins[key,])
    return Merged(values, origins)


def _row(entry: str) -> dict[str, str]:
    """A model's settings from SPEC or NAME=SPEC; a file with such a path needs a leading ./"""
    name, equals, spec = entry.partition("=")
    named = equals and re.fullmatch(NAME_PATTERN, name)
    return {"name": name, "spec": spec} if named else {"spec": entry}


def shown(place: Place) -> str:
    """As in models[0].spec."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def place_of(problem: str) -> Place:
    """The setting that a problem begins with; () if it begins with none."""
    match = NAMED.match(problem)
    if match is None:
        return ()
    first, index, last = match.groups()
    return (first, int(index), last) if index else (first,)
