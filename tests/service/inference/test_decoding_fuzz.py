"""Mutated files of every format, decoded in a process whose memory is limited."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.hostile import fuzz
from tests.support.hostile.images import SEEDS


def report(count: int, seed: int) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hostile.fuzz", str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("count", "seed"),
    [(520, 1), pytest.param(10_400, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_mutated_files_give_pixels_or_a_refusal(count: int, seed: int) -> None:
    found = report(count, seed)
    print(json.dumps(found, indent=1))
    assert sum(found["kinds"].values()) == count
    assert found["slowest_s"] < 10
    assert count / 20 < found["kinds"]["pixels"] < count / 1.2, "mutations are to break some"
    assert len(found["kinds"]) > 10, "and in many ways"


def test_equal_seeds_give_equal_mutants_and_every_format_has_some() -> None:
    seeds = {name: make() for name, make in SEEDS.items()}
    first, second = (list(fuzz.mutants(seeds, 2 * len(seeds), 3)) for _ in range(2))
    assert first == second
    assert {name for name, _ in first} == set(seeds)
    assert sum(data == seeds[name] for name, data in first) < len(seeds) / 4
