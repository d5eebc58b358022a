"""`resnet-serve classify --on ray`: the rows of a run without a cluster, and no image twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.conftest import CACHE
from tests.e2e.test_bulk import archive
from tests.support.commands import run

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

IMAGES = 300
# A cluster of its own, whichever others run here.
OWN_CLUSTER = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
MODEL = ("--model", "builtin:resnet10-cifar10", "--top-k", "1")


def on_ray(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | OWN_CLUSTER | {"RESNET_SERVE_CACHE_DIR": CACHE}
    command = [sys.executable, "-m", "service.cli", "classify", *map(str, arguments)]
    return subprocess.run(
        [*command, "--on", "ray"], env=environment, capture_output=True, text=True, check=False
    )


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.parquet.read_table(path).sort_by("file").to_pylist()
    return found


def test_the_rows_are_those_of_one_machine_and_a_lost_part_is_made_again(tmp_path: Path) -> None:
    tar = archive(tmp_path / "images.tar", IMAGES)
    run("classify", tar, *MODEL, "--output", tmp_path / "alone.parquet")
    alone = rows(tmp_path / "alone.parquet")
    output = tmp_path / "out"
    arguments = (tar, *MODEL, "--output", output, "--rows-per-file", "64")
    done = on_ray(*arguments)
    assert done.returncode == 0, done.stderr

    def check() -> None:
        found = rows(output)
        assert [row["file"] for row in found] == [row["file"] for row in alone]
        assert [row["label"] for row in found] == [row["label"] for row in alone]
        assert [row["error"] for row in found] == [row["error"] for row in alone]

    check()
    assert f"already has all {IMAGES} rows" in on_ray(*arguments).stderr
    # As a kill leaves it: not complete, and a part missing.
    state = output / "_resume" / "arguments.json"
    state.write_text(state.read_text().replace(f', "rows": {IMAGES}', ""))
    kept, lost, *_ = sorted(output.glob("part-ray-*.parquet"))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    done = on_ray(*arguments)
    assert done.returncode == 0, done.stderr
    check()
    assert kept.stat().st_mtime_ns == before
