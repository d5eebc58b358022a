"""No command loses a file: every option that names one is listed here, and those that write refuse
alike."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest

from models.evaluation import plots
from models.evaluation.confidence import reliability
from service.cli import outputs
from service.cli.load import plot
from service.cli.main import main
from service.errors import ConfigError
from tests.support.commands import run

WRITTEN = {
    "bench": {"output", "plot"},
    "calibrate": {"out"},
    "classify": {"output"},
    "convert": {"dst"},
    "evaluate": {"confusion", "reliability", "out"},
    "results": {"picture"},
    "train": {"out"},
}
READ = {
    "bench": {"images", "key_file"},
    "calibrate": {"data"},
    "check": {"pairs", "config"},  # `check`, and `config check`
    "classify": {"images", "key_file"},
    "convert": {"pair"},
    "evaluate": {"data"},
    "fetch": {"config", "cache_dir"},  # The cache has only what its checksums name.
    "health": {"config"},
    "results": {"runs"},
    "serve": {"config"},
    "show": {"config"},
    "train": {"card", "data", "test_data"},
}
# A file that is in the way, and a command that would replace it.
COMMANDS = [
    ("x.json", "bench --output OUT PHOTOS"),
    ("x.png", "bench --plot OUT PHOTOS"),
    ("x.safetensors", "calibrate PHOTOS OUT"),
    ("x.csv", "classify --output OUT PHOTOS"),
    ("x.jsonl", "classify --output OUT PHOTOS"),
    ("x.parquet", "classify --output OUT PHOTOS"),
    ("part-00000.parquet", "classify --output FOLDER PHOTOS"),
    ("x.safetensors", "convert random:resnet20 OUT"),
    ("x.onnx", "convert --to onnx random:resnet20 OUT"),
    ("x.png", "evaluate --confusion OUT PHOTOS"),
    ("x.png", "evaluate --reliability OUT PHOTOS"),
    ("x.safetensors", "evaluate --fit-temperature OUT PHOTOS"),
    ("x.png", "results --curves OUT PHOTOS"),
    ("x.safetensors", "train --data PHOTOS OUT"),
    ("x-2.safetensors", "train --data PHOTOS --seeds 1,2 FOLDER/x.safetensors"),
    ("x-curves.png", "train --data PHOTOS --seeds 1,2 FOLDER/x.safetensors"),
    ("x.run/notes.txt", "train --data PHOTOS FOLDER/x.safetensors"),
]
PRECIOUS = "my precious results"


def commands(group: click.Group = main) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield name, command


def test_every_option_that_names_a_file_reads_it_or_is_bound_by_the_rule() -> None:
    for name, command in commands():
        named = {each.name for each in command.params if isinstance(each.type, click.Path)}
        assert named <= READ.get(name, set()) | WRITTEN.get(name, set()), name
        options = {each.name for each in command.params}
        assert ("overwrite" in options) == (name in WRITTEN), name
    assert {line.split()[0] for _, line in COMMANDS} == set(WRITTEN)


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_a_file_that_is_in_the_way_survives_and_one_line_says_so(
    photos: Path, tmp_path: Path, name: str, line: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(PRECIOUS)
    places = {"OUT": str(file), "FOLDER": str(tmp_path), "PHOTOS": str(photos)}
    words = [places.get(word, word.replace("FOLDER", str(tmp_path))) for word in line.split()]
    said = run(*words, status=2).stderr
    assert said.startswith("resnet-serve: ")
    assert said.count("\n") == 1
    assert "add --overwrite" in said
    assert file.read_text() == PRECIOUS
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [file]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.jsonl", "classify --model random:resnet20 --engine eager PHOTOS --output OUT"),
        ("x.safetensors", "convert random:resnet20 OUT"),
    ],
)
def test_what_is_asked_to_be_replaced_is(
    photos: Path, tmp_path: Path, name: str, line: str
) -> None:
    file = tmp_path / name
    file.write_text(PRECIOUS)
    places = {"OUT": str(file), "PHOTOS": str(photos)}
    run(*(places.get(word, word) for word in line.split()), "--overwrite")
    assert PRECIOUS.encode() not in file.read_bytes()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.jsonl", "classify --model random:resnet20 --engine eager PHOTOS --output OUT"),
        ("x.csv", "classify --model random:resnet20 --engine eager PHOTOS --output OUT"),
        ("x.safetensors", "convert random:resnet20 OUT"),
    ],
)
def test_where_a_link_is_in_the_way_the_file_it_leads_to_is_replaced(
    photos: Path, tmp_path: Path, name: str, line: str
) -> None:
    link, file = tmp_path / name, tmp_path / "elsewhere" / name
    file.parent.mkdir()
    file.write_text(PRECIOUS)
    link.symlink_to(file)
    places = {"OUT": str(link), "PHOTOS": str(photos)}
    run(*(places.get(word, word) for word in line.split()), "--overwrite")
    assert link.is_symlink()
    assert PRECIOUS.encode() not in file.read_bytes()
    assert sorted(tmp_path.rglob("*")) == sorted([file.parent, file, link])


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    pipe, folder, link = tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to("nowhere")
    for path in (pipe, folder, link, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is not a regular file"):
            outputs.check(path, overwrite=True)


def test_two_outputs_are_two_files_in_folders_that_exist(tmp_path: Path) -> None:
    one = tmp_path / "x.png"
    with pytest.raises(ConfigError, match="is given twice"):
        outputs.check(one, None, one, overwrite=True)
    one.touch()
    (tmp_path / "link.png").symlink_to(one)
    with pytest.raises(ConfigError, match="is given twice"):
        outputs.check(one, tmp_path / "link.png", overwrite=True)
    one.unlink()
    with pytest.raises(ConfigError, match="there is no folder"):
        outputs.check(tmp_path / "nowhere" / "x.png", overwrite=True)
    with pytest.raises(ConfigError, match="a name that is not UTF-8; choose another"):
        outputs.check(tmp_path / os.fsdecode(b"\xe9.png"), overwrite=True)
    outputs.check(None, one, tmp_path / "y.png", overwrite=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: outputs.write_text(path, json.dumps([0] * 2000)),
        lambda path: plot.draw([], path),
        lambda path: plots.draw_confusion(np.diag([5, 5]), ["a", "b"], path),
        lambda path: plots.draw_reliability(
            reliability(np.array([[0.5, 0.5], [0.1, 0.9]], np.float32), np.array([0, 0])), path
        ),
    ],
)
def test_what_cannot_be_written_whole_leaves_the_file_before_it(
    tmp_path: Path, write: Callable[[Path], object]
) -> None:
    file = tmp_path / "x.png"
    file.write_text(PRECIOUS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            partial(write, file)()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == PRECIOUS
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["/dev/full", "loop.csv", "nowhere.csv", "pipe"])
def test_classify_refuses_what_is_neither_file_nor_folder(
    photos: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "nowhere.csv").symlink_to("not/there")
    os.mkfifo(tmp_path / "pipe")
    said = run("classify", photos, "--output", tmp_path / name, status=2).stderr
    assert said == f"resnet-serve: {tmp_path / name} is not a regular file; choose another path\n"


@pytest.mark.parametrize("line", ["classify PHOTOS --output", "bench PHOTOS --output", "convert a"])
def test_neither_an_empty_path_nor_a_dash_is_a_file(photos: Path, line: str) -> None:
    words = [str(photos) if word == "PHOTOS" else word for word in line.split()]
    assert "is empty" in run(*words, "", status=2).stderr
    assert "- is no file; name one" in run(*words, "-", status=2).stderr
