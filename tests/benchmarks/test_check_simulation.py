"""The simulation against the real service, as far as a busy machine can tell."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.scale import check_simulation as check
from service.cli.load.document import as_text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_host_is_simulated_as_it_is_measured() -> None:
    """A device that leaves the CPUs alone, so that a busy machine disturbs it least."""
    plan = next(plan for plan in check.plans(6.0) if plan.threads == 0)
    figures = json.loads(as_text(check.measure(replace(plan, patience=2.0))))
    assert [load["share"] for load in figures["loads"]] == list(check.SHARES)
    low, *_, high = figures["loads"]
    assert abs(low["error"]["images_per_second"]) < 0.1
    assert abs(high["error"]["images_per_second"]) < 0.4
    assert abs(low["error"]["p50_ms"]) < 0.6
    # Batches grow with the load on both sides.
    for side in ("measured", "simulated"):
        assert high[side]["batch_size"] > 1.5 * low[side]["batch_size"]
    assert len(check.table(figures).splitlines()) == 4 + len(check.SHARES)


def test_errors_are_relative_and_those_of_shares_are_not() -> None:
    assert check.relative(90.0, 100.0) == pytest.approx(-0.1)
    assert check.relative(90.0, 0.0) is None
    side = dict.fromkeys(check.COMPARED, 2.0) | {"refused_share": 0.25}
    other = dict.fromkeys(check.COMPARED, 1.0) | {"refused_share": 0.2}
    errors = {name: check.error(name, side, other) for name in check.COMPARED}
    assert errors == dict.fromkeys(check.COMPARED, 1.0) | {"refused_share": 0.05}
    load = {"share": 0.3, "measured": other, "simulated": side, "error": errors}
    capacity = {"measured": 10.0, "simulated": 9.0, "error": -0.1}
    printed = check.table({"name": "a", "capacity": capacity, "loads": [load]})
    assert "9 simulated (-10%)" in printed
    assert printed.splitlines()[-1].startswith("| 30% | 1, 2 (+100%) |")
    assert printed.endswith("20.0%, 25.0% |")
