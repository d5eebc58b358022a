"""Scoring more images than fit into memory: every source, in order, and exactly once."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.conftest import encoded
from tests.support.commands import run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    for number in range(20):
        (path / f"{number:02}.png").write_bytes(encoded(size=(20 + number, 32)))
    (path / "07.png").write_bytes(b"no image")
    return path


MODEL = ("--model", "random:resnet20", "--engine", "eager", "--device", "cpu")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_of_parts_in_shards_has_every_image_once(photos: Path, tmp_path: Path) -> None:
    run("classify", photos, *MODEL, "--top-k", "1", "--output", tmp_path / "one.jsonl", status=1)
    for shard, status in (("1/2", 0), ("2/2", 1)):  # The latter has the one that is no image.
        flags = ("--output", tmp_path / "out", "--rows-per-file", "4", "--shard", shard)
        run("classify", photos, *MODEL, "--top-k", "1", *flags, status=status)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"part-{i}-of-2-0000{n}.parquet" for i in (1, 2) for n in range(3)]
    found = pyarrow.parquet.read_table(tmp_path / "out").sort_by("file").to_pylist()
    whole = lines(tmp_path / "one.jsonl")
    assert [row["file"] for row in found] == [row["file"] for row in whole]
    assert [bool(row["error"]) for row in found] == [bool(row["error"]) for row in whole]
    labels = [row["predictions"][0]["label"] if row["predictions"] else None for row in whole]  # type: ignore[index]
    assert [row["label"] for row in found] == labels
    assert (
        "already has all 10 rows" in run("classify", photos, *MODEL, "--top-k", "1", *flags).stderr
    )


def test_other_arguments_are_refused_until_told_to_overwrite(photos: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out", "--rows-per-file", "8")
    run("classify", photos, *MODEL, *output, status=1)
    for other, words in (
        (("--top-k", "2"), "was started with top-k 5, not 2"),
        (("--shard", "1/1", photos), "was started with images"),
    ):
        line = run("classify", photos, *MODEL, *output, *other, status=2).stderr
        assert line.count("\n") == 1
        assert words in line
        assert "--overwrite" in line
    run("classify", photos, *MODEL, *output, "--top-k", "2", "--overwrite", status=1)
    found = pyarrow.parquet.read_table(tmp_path / "out")
    assert found.num_rows == 2 * 19 + 1


def test_a_truncated_archive_keeps_the_rows_before_it(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(photos, "photos")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"photos/15.png") + 600])
    output = tmp_path / "out.csv"
    line = run("classify", path, *MODEL, "--output", output, status=2).stderr
    assert line.count("\n") == 1
    assert "a.tar: damaged or truncated" in line
    kept = lines(tmp_path / "out.csv.resume" / "00000.jsonl")
    assert 10 <= len(kept) <= 15
    assert not output.exists()
    path.write_bytes(whole)
    run("classify", path, *MODEL, "--output", output)  # The one that is no image came before.
    assert len({row.partition(",")[0] for row in output.read_text().splitlines()[1:]}) == 20
    assert not (tmp_path / "out.csv.resume").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows-per-file", "5"], "--rows-per-file: only with --output"),
        (["--overwrite"], "--overwrite: only with --output"),
        (["--output", "x.jsonl", "--rows-per-file", "5"], "if --output is a folder"),
        (["--output", "/nowhere/at/all.csv"], "there is no folder /nowhere/at"),
        (["--output", "/proc/out"], "run the same command"),
    ],
)
def test_what_is_wrong_is_one_line(photos: Path, arguments: list[str], words: str) -> None:
    line = run("classify", photos, *MODEL, *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b"])
def test_a_shard_is_one_of_several(photos: Path, shard: str) -> None:
    assert "is not a shard" in run("classify", photos, "--shard", shard, status=2).stderr
