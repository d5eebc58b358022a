"""`resnet-serve classify --url`: what a service answers is what the command would without it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest

from service.repository import catalog
from tests.conftest import Service, encoded
from tests.support import rounding
from tests.support.commands import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, kind in enumerate(("PNG", "JPEG", "WEBP")):
        (folder / f"{index}.{kind.lower()}").write_bytes(encoded(kind, (60, 40)))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_rows_are_those_of_the_local_way(
    service: Service, photos: Path, tmp_path: Path
) -> None:
    local, served = tmp_path / "local.jsonl", tmp_path / "served.jsonl"
    flags = ("--top-k", "10", "--model")
    model = "builtin:resnet20-cifar10"
    here = ("--precision", "fp32", *flags, model, "--output", local)
    there = (*flags, "resnet20-cifar10", "--url", service.url, "--output", served)
    lines = [run("classify", photos, *where, status=1).stderr for where in (here, there)]
    assert all("1 image could not be classified" in line for line in lines)
    ours, theirs = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (local, served)
    )
    assert [row["file"] for row in theirs] == [row["file"] for row in ours]
    assert [row["error"] for row in theirs] == [row["error"] for row in ours]
    assert [len(row["predictions"]) for row in theirs] == [10, 10, 10, 0]
    network = catalog.load(model).bundle.tensors
    for mine, other in zip(ours[:3], theirs[:3], strict=True):
        mine_by_label, theirs_by_label = (
            {p["label"]: p["probability"] for p in row["predictions"]} for row in (mine, other)
        )
        assert theirs_by_label.keys() == mine_by_label.keys()
        rounding.assert_probabilities_near(
            [theirs_by_label[label] for label in mine_by_label],
            list(mine_by_label.values()),
            network,
        )


def test_tables_and_lines_are_written_too(service: Service, photos: Path, tmp_path: Path) -> None:
    table, columns = tmp_path / "out.csv", tmp_path / "out.parquet"
    for output in (table, columns):
        run("classify", photos, "--url", service.url, "--top-k", "1", "--output", output, status=1)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "1", "1", ""]
    labels = [row["label"] or "" for row in pyarrow.parquet.read_table(columns).to_pylist()]
    assert labels == [row["label"] for row in rows]
    lines = run("classify", photos, "--url", service.url, status=1).stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].count("%") == 5
    assert "the image has only" in lines[3]


def test_an_archive_is_sent_as_it_is_read_and_gone_on_with(
    service: Service, photos: Path, tmp_path: Path
) -> None:
    archive, output = tmp_path / "photos.tar", tmp_path / "out.jsonl"
    with tarfile.open(archive, "w") as tar:
        tar.add(photos, ".")
    asked = ("classify", archive, "--url", service.url, "--output", output)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: whole.index(b"broken.png") + 600])
    run(*asked, status=2)
    archive.write_bytes(whole)
    run(*asked, status=1)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    with tarfile.open(archive) as tar:
        names = [member.name for member in tar if member.isfile()]
    assert [row["file"] for row in found] == [str(archive / name) for name in names]
    assert [row["file"] for row in found if row["error"]] == [str(archive / "broken.png")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnt20"], "did you mean resnet20?"),
        (["--top-k", "11"], "top_k must be from 1 to 10, not 11"),
        (["--engine", "eager"], "--engine: only without --url"),
        (["--key-file", "/nowhere"], "/nowhere: No such file"),
    ],
)
def test_what_is_wrong_is_one_line(
    service: Service, photos: Path, arguments: list[str], words: str
) -> None:
    line = run("classify", photos, "--url", service.url, *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "localhost:8000"], "must look like http://127.0.0.1:8000"),
        (["--concurrency", "2"], "--concurrency: only with --url"),
    ],
)
def test_what_is_wrong_without_a_service_is_one_line(
    photos: Path, arguments: list[str], words: str
) -> None:
    line = run("classify", photos, *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


def test_asking_a_service_does_not_import_torch(service: Service, photos: Path) -> None:
    probe = """
import sys
import tarfile
from service.cli.main import main
main(standalone_mode=False)
print("torch" in sys.modules)
"""
    arguments = ["classify", str(photos), "--url", service.url]
    said = subprocess.check_output([sys.executable, "-c", probe, *arguments], text=True)
    assert said.splitlines()[-1] == "False"
