"""Libraries that read other ecosystems' files, and come with an extra."""

from __future__ import annotations

import importlib
from typing import Any

from models.bundle import BundleError

INSTALL = "pip install 'resnet-serve[interchange]'"


def load(library: str) -> Any:
    """The library, imported.

    Raises:
        BundleError: it is not installed; the message says what installs it.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise BundleError(f"reading it needs {library}: {INSTALL}") from None
