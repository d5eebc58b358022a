"""A service under callers of all kinds stays as it was; and a soak finds out if it does not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.serving import soak
from benchmarks.serving.callers import KINDS
from benchmarks.serving.soak import MIB, Plan, Sample


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_minute_of_everything_leaves_no_trace(workers: int, tmp_path: Path) -> None:
    figures = soak.measure(Plan(60.0, workers))
    assert figures["faults"] == []
    assert len(figures["processes"]) == (1 if workers == 1 else 2 + workers)
    assert set(figures["answers"]) == {kind.call.__name__ for kind in KINDS}
    soak.draw(figures, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_a_leak_is_a_line_that_rises() -> None:
    leak = [Sample(second, {1: 100 * MIB, 2: second * MIB}, {}) for second in range(10, 31)]
    start, rise = soak.growth(leak)
    assert (start / MIB, rise / MIB) == pytest.approx((110, 20))


def test_more_files_are_found_in_the_process_that_has_them() -> None:
    before, after = Sample(0, {}, {1: 5, 2: 6}), Sample(1, {}, {1: 4, 2: 8})
    assert soak.more_files(before, after) == {2: 2}


def test_wrong_answers_and_lost_connections_are_faults() -> None:
    answers = Counter({("asks_once", "200"): 5, ("asks_once", "500"): 1, ("leaves", "left"): 9})
    answers["reads", "ConnectionResetError()"] = 2
    assert soak.faults_of_answers(answers, KINDS) == [
        "1 x 500 for a caller who asks once",
        "2 x ConnectionResetError() for a caller who reads",
    ]


def test_a_log_that_tells_of_errors_is_a_fault() -> None:
    def line(**record: str) -> str:
        return json.dumps({"level": "INFO", "message": "m"} | record)

    assert soak.faults_of_log([line()]) == []
    found = soak.faults_of_log([line(exception="Traceback"), line(level="ERROR"), "Traceback"])
    assert found == [
        "the log tells of an error: m",
        "the log tells of an error: m",
        "a line of the log is no JSON: Traceback",
    ]
