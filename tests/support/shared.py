"""The data and weights that tests may use but the repository does not hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("RESNET_SERVE_SHARED", Path(__file__).parents[3] / "shared"))

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no shared data at {SHARED}; RESNET_SERVE_SHARED says where it is"
)
