"""The command `classify`, without a server."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.support.commands import run


def test_classify_prints_a_line_for_each_image(photos: Path) -> None:
    lines = run("classify", photos, "--model", "random:resnet20").stdout.splitlines()
    assert len(lines) == 6
    assert all("%" in line for line in lines)


def test_classify_writes_every_format_alike(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
    for output in outputs:
        inputs = (photos / "cat", tmp_path / "broken.png")
        run("classify", *inputs, "--model", "random:resnet20", "--top-k", "2", "--output", output)
    lines = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [len(line["predictions"]) for line in lines] == [2, 2, 2, 0]
    assert "send a whole" in lines[3]["error"]
    with outputs[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", "1", "2", ""]
    table = pyarrow.parquet.read_table(outputs[2]).to_pylist()
    assert [row["label"] or "" for row in table] == [row["label"] for row in rows]
    flat = [p["probability"] for line in lines for p in line["predictions"]]
    assert [float(row["probability"]) for row in rows[:6]] == pytest.approx(flat)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere.png"], "no such file or folder"),
        (["--output", "x.xlsx", "/"], ".jsonl, .csv, .parquet"),
        (["--model", "builtin:x", __file__], "no such embedded model; use one of resnet10-cifar10"),
        (["--precision", "int4", __file__], "not 'int4'; did you mean int8?"),
        (["--top-k", "11", __file__], "--top-k must be from 1 to 10, not 11"),
    ],
)
def test_classify_says_what_is_wrong_in_one_line(arguments: list[str], words: str) -> None:
    line = run("classify", *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line
