"""Loading the bundle that a SPEC names, with what the settings say."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.interchange import opening, specs
from models.interchange.formats import DOWNLOADED
from models.interchange.opening import Loaded
from service.config import loading
from service.errors import ConfigError


def find(
    spec: str, architecture: dict[str, Any] | None = None, cache_dir: Path | None = None
) -> Loaded:
    """What `spec` names; see `models.interchange.opening.find`.

    `cache_dir`: without one, that of the settings.

    Raises:
        ConfigError: one line with the spec and its problem.
    """
    if cache_dir is None and spec.startswith(DOWNLOADED):
        cache_dir = loading.load().cache_dir
    try:
        return opening.find(spec, architecture, cache_dir)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def load(
    spec: str,
    architecture: dict[str, Any] | None = None,
    cache_dir: Path | None = None,
    allow: Collection[str] | None = None,
) -> Loaded:
    """What `spec` names, see `find`, with its network's own code.

    `allow`: see `models.own_code`; None: the setting allow_code.

    Raises:
        ConfigError: one line with the spec and its problem.
    """
    loaded = find(spec, architecture, cache_dir)
    if not loaded.bundle.own_code:
        return loaded
    allowed = loading.load().allow_code if allow is None else allow
    try:
        return replace(loaded, bundle=loaded.bundle.allowing(allowed))
    except ValueError as error:
        raise ConfigError(specs.in_one_line(spec, error)) from None
