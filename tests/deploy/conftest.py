from __future__ import annotations

import pytest

from tests.deploy.chart import SETS, Rendered, render


@pytest.fixture(scope="session")
def charts() -> dict[str, Rendered]:
    """The chart with each of `SETS`."""
    return dict(zip(SETS, render(*SETS.values(), lint=True), strict=True))
