from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.config.loading import load
from service.config.objectives import objectives_of
from service.config.settings import Settings
from service.errors import ConfigError
from service.metric_families import SECONDS
from service.metrics import Objectives


def bounds(**settings: Any) -> tuple[float, ...]:
    return objectives_of(Settings.model_validate(settings)).bounds


def test_unset_they_are_the_usual_ones() -> None:
    assert objectives_of(Settings()) == Objectives()


@pytest.mark.parametrize("deadline", [10_000.5, 30_000, 60_000, 3_600_000])
def test_the_bounds_reach_the_longest_deadline(deadline: float) -> None:
    found = bounds(request_timeout_ms=deadline)
    assert found[: len(SECONDS)] == SECONDS
    assert found[-1] == deadline / 1000
    assert all(later <= 2.5 * earlier for earlier, later in pairwise(found[14:]))


def test_a_deadline_that_never_comes_is_no_bound() -> None:
    assert bounds(request_timeout_ms=math.inf)[-1] == 2500


def test_chosen_bounds_have_the_goal_and_the_deadline_among_them() -> None:
    chosen = {"latency_buckets_ms": [0.3, 40], "slo_latency_ms": 20, "request_timeout_ms": 100}
    assert bounds(**chosen) == (0.0003, 0.02, 0.04, 0.1)
    assert bounds(**chosen | {"request_timeout_ms": 30}) == (0.0003, 0.02, 0.04)


def test_bounds_in_the_environment_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_SERVE_LATENCY_BUCKETS_MS", "1, 2.5,100")
    assert load().latency_buckets_ms == [1, 2.5, 100]


@pytest.mark.parametrize("wrong", ["[2, 1]", "[1, 1]", "[0]", "[.inf]", "[x]"])
def test_bounds_that_do_not_rise_are_refused_in_one_line(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "serve.yaml").write_text(f"latency_buckets_ms: {wrong}\n")
    with pytest.raises(ConfigError) as caught:
        load(config=str(tmp_path / "serve.yaml"))
    assert "latency_buckets_ms" in str(caught.value)
    assert "\n" not in str(caught.value)
