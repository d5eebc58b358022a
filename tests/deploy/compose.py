"""docker-compose.yml as Compose reads it: variables filled in, and what a container's are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
# Where users write the variables of their containers.
OWN = "config/service.env"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:?-)([^}]*))?\}")


def content() -> dict[str, Any]:
    """The file as it is, with its variables."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    return found


def filled_in(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with the texts in it as they are with these variables, of the shell or of .env."""
    if isinstance(value, dict):
        return {name: filled_in(each, variables) for name, each in value.items()}
    if isinstance(value, list):
        return [filled_in(each, variables) for each in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        unset = name not in variables or (kind == ":-" and not variables[name])
        return default or "" if unset else variables[name]

    return VARIABLE.sub(one, value)


def read(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a file for `env_file`; one without a value is taken from `variables`."""
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if equals:
            found[name] = filled_in(value, variables)
        elif name in variables:
            found[name] = variables[name]
    return found


def environment(
    service: Mapping[str, Any], own: str = "", variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of a service's container, where users wrote `own` into their file."""
    found: dict[str, str] = {}
    for entry in service["env_file"]:
        if entry["path"] == OWN:
            assert entry["required"] is False
            found |= read(own, {})
        else:
            found |= read((ROOT / entry["path"]).read_text("utf-8"), variables or {})
    return found


def documented() -> set[str]:
    """The variables of the file that .env explains."""
    text = (ROOT / ".env").read_text("utf-8")
    return set(re.findall(r"^#   ([A-Z_]{3,}) ", text, re.MULTILINE))


def program() -> list[str] | None:
    """Compose itself, if it is installed."""
    if standalone := shutil.which("docker-compose"):
        return [standalone]
    docker = shutil.which("docker")
    asked = docker and subprocess.run(
        [docker, "compose", "version"], capture_output=True, check=False, timeout=30
    )
    return [docker, "compose"] if docker and asked and asked.returncode == 0 else None


def clean(**variables: str) -> dict[str, str]:
    """The environment without what would reach Compose, but with `variables`."""
    ours = ("COMPOSE_", "RESNET_SERVE_", "PUBLISH_")
    return {name: v for name, v in os.environ.items() if not name.startswith(ours)} | variables
