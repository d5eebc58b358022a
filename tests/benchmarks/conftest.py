"""What benchmarks start has the settings that tests choose, so that it measures nothing first."""

from __future__ import annotations

import pytest

from tests.conftest import CHOSEN


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CHOSEN.items():
        monkeypatch.setenv(name, value)
