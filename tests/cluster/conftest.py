"""Ray reads its environment when it is imported, which any of these tests may do first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.ray.nodes import ENVIRONMENT

os.environ.update(ENVIRONMENT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder, which `make test` collects only for its run of clusters."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cluster)
