"""The command that installs an optional part, wherever this package itself came from."""

from __future__ import annotations

import re
import shlex
from importlib import metadata
from pathlib import Path

PACKAGE = "resnet-serve"
EXTRA = re.compile(r"([^;]+?)\s*;\s*extra\s*==\s*['\"]([\w-]+)['\"]")


def install(extra: str) -> str:
    """The command that installs the libraries of an extra, as in "pip install 'openvino>=2025.1'".

    It names them and not `resnet-serve[EXTRA]`, which only a package index that has this package
    understands. Where nothing is installed but the sources are used as they lie, it names their
    folder.
    """
    found = [EXTRA.fullmatch(line) for line in _requirements()]
    needed = [match[1] for match in found if match is not None and match[2] == extra]
    sources = f"{Path(__file__).parents[1]}[{extra}]"
    return shlex.join(["pip", "install", *(needed or [sources])])


def _requirements() -> list[str]:
    try:
        return metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
