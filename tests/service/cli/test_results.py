"""`resnet-serve results` on runs that `resnet-serve train` would have left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from models import bundle
from models.bundle_header import OTHER
from models.reports.results import RUN_FOLDER
from tests.models.reports.test_results import columns, written
from tests.support.commands import run


def test_a_table_of_seeds_for_people_and_for_programs(tmp_path: Path) -> None:
    for seed, top1 in enumerate((0.91, 0.92)):
        written(tmp_path / f"{seed}.safetensors", seed=seed, top1=top1, best=0.925)
    (tmp_path / "notes.safetensors").write_bytes(b"no bundle")
    said = run("results", tmp_path)
    (row,) = columns(said.stdout)
    assert row["top-1 error, %"] == "8.50 ± 0.50"
    assert "[1] He 2015" in said.stdout
    assert said.stderr == f"{tmp_path / 'notes.safetensors'}: {OTHER}\n"

    (result,) = json.loads(run("results", "--json", tmp_path).stdout)
    assert result["model"] == "resnet20"
    assert result["parameters"] == 272_474
    assert result["top1_error"] == {"mean": 8.5, "deviation": 0.5}
    assert result["best_top1_error"] == {"mean": 7.5, "deviation": 0.0}
    assert result["top5_error"] == {"mean": 1.0, "deviation": 0.0}
    assert result["hours"] == {"mean": 1.5, "deviation": 0.0}
    assert [each["seed"] for each in result["runs"]] == [0, 1]
    assert {"variant": "resnet20", "error": 8.75}.items() <= result["published"][0].items()


def test_curves_of_one_configuration(tmp_path: Path) -> None:
    for seed in (0, 1):
        written(tmp_path / f"{seed}.safetensors", seed=seed, best=0.95)
    picture = tmp_path / "curves.png"
    run("results", tmp_path, "--curves", picture)
    with Image.open(picture) as image:
        assert image.width > image.height > 300
    written(tmp_path / "other.safetensors", overrides={"shortcut": "A"})
    line = run("results", tmp_path, "--curves", tmp_path / "both.png", status=2).stderr
    assert "these runs belong to 2 configurations" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere: No such file or directory"),
        ("empty", "empty: no finished training run"),
        (f"killed{RUN_FOLDER}", "has not finished: there is no killed.safetensors beside it"),
        ("damaged.safetensors", "log.jsonl: line 1 is damaged"),
        ("foreign.safetensors", "records no recipe and seed"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / f"killed{RUN_FOLDER}").mkdir()
    damaged = written(tmp_path / "damaged.safetensors", best=0.9)
    log = damaged.with_suffix(RUN_FOLDER) / "log.jsonl"
    log.write_text("damaged\n" + log.read_text())
    foreign = bundle.read(damaged)
    foreign.provenance = {"source": "elsewhere"}
    bundle.write(foreign, tmp_path / "foreign.safetensors")
    line = run("results", tmp_path / name, status=2).stderr
    assert line.count("\n") == 1
    assert words in line
