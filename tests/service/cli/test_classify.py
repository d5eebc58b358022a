"""The command `classify`, without a server."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from tests.support import kinds
from tests.support.commands import run


def test_classify_prints_a_line_for_each_image(photos: Path) -> None:
    lines = run("classify", photos, "--model", "random:resnet20").stdout.splitlines()
    assert len(lines) == 6
    assert all("%" in line for line in lines)


def test_the_status_says_that_an_image_could_not_be_classified(
    photos: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no image")
    done = run("classify", tmp_path, photos / "cat", "--model", "random:resnet20", status=1)
    assert len(done.stdout.splitlines()) == 2 + 3
    assert done.stderr == "resnet-serve: 2 images could not be classified\n"


def test_classify_writes_every_format_alike(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
    for output in outputs:
        inputs = (photos / "cat", tmp_path / "broken.png")
        flags = ("--model", "random:resnet20", "--top-k", "2", "--output", output)
        said = run("classify", *inputs, *flags, status=1).stderr
        assert said.endswith(f": 1 image could not be classified; {output} has the reasons\n")
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


def test_classify_prints_independent_labels_without_percent(photos: Path, tmp_path: Path) -> None:
    model = kinds.write(tmp_path, "independent")["independent"]
    printed = run("classify", photos / "cat", "--model", tmp_path / "independent.safetensors")
    assert printed.stderr.startswith("independent labels: each has a probability of its own")
    images = sorted((photos / "cat").iterdir())
    for image, line in zip(images, printed.stdout.splitlines(), strict=True):
        seen = kinds.pixels(image.read_bytes(), model.input)
        expected = np.sort(kinds.probabilities(model, seen))[::-1][:5]
        assert [float(part.split()[-1]) for part in line.split(", ")] == pytest.approx(
            expected, abs=0.02
        )


def test_classify_refuses_a_model_without_classes_in_one_line(photos: Path, tmp_path: Path) -> None:
    kinds.write(tmp_path, "headless")
    model = tmp_path / "headless.safetensors"
    for more in ((), ("--top-k", "1"), ("--output", tmp_path / "out.csv")):
        line = run("classify", photos, "--model", model, *more, status=2).stderr
        assert line.count("\n") == 1
        assert "the model headless has no classes; run `resnet-serve serve --model " in line
        assert line.endswith("use POST /v1/embed\n")
    assert not (tmp_path / "out.csv").exists()


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
