"""Optional libraries for the files of other ecosystems."""

from __future__ import annotations

import importlib
from typing import Any

from models.bundle import BundleError
from models.extras import install


def load(library: str) -> Any:
    """Imports a library.

    Raises:
        BundleError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise BundleError(f"reading it needs {library}: {install('interchange')}") from None
