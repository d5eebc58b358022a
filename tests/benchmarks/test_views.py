"""The benchmark of views and storage."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.serving.views import main
from models import bundle, labels
from tests.conftest import encoded
from tests.support import tiny


def test_it_compares_all_four_bundles_and_both_views(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for label in ("cat", "dog"):
        (photos / label).mkdir(parents=True)
        (photos / label / "x.png").write_bytes(encoded())
    model, report = tmp_path / "m.safetensors", tmp_path / "r.json"
    bundle.write(tiny.made_bundle(input=tiny.INPUT, labels=labels.read("cifar10")), model)
    arguments = ["--model", str(model), "--data", str(photos), "--output", str(report)]
    done = CliRunner().invoke(main, [*arguments, "--rounds", "1"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(report.read_text("utf-8"))
    kinds = [(row["views"], row["storage"]) for row in found["bundles"]]
    assert kinds == [
        ("plain", "fp32"),
        ("plain", "fp16"),
        ("mirrored", "fp32"),
        ("mirrored", "fp16"),
    ]
    full, half = (row["bytes"] for row in found["bundles"][:2])
    assert half < full
    assert found["speed"][0]["batch"] == 1
    assert all(row["cpu_ratio"] > 0 for row in found["speed"])
