"""What was done is kept, and nothing is done twice."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow.parquet
import pytest

from service.cli.bulk.inputs import Shard
from service.cli.bulk.journal import Journal, Layout, layout
from service.errors import ConfigError


def rows(names: Sequence[str]) -> list[dict[str, object]]:
    return [{"file": name, "predictions": [], "error": "no"} for name in names]


NAMES = [f"{number}.png" for number in range(10)]


@pytest.mark.parametrize("stop", range(11))
@pytest.mark.parametrize("output", ["out.jsonl", "out"])
def test_a_journal_goes_on_wherever_it_was_left(tmp_path: Path, output: str, stop: int) -> None:
    place = layout(tmp_path / output, None if "." in output else 3, Shard(0, 1))
    first = Journal(place, {"model": "x"}, overwrite=False)
    first.write(rows(NAMES[:stop]))
    first.close()
    journals = sorted(place.state.glob("*.jsonl"))
    with journals[-1].open("ab") as file:  # As a kill in the middle of a write leaves it.
        file.write(b'{"file": "half.pn')
    again = Journal(place, {"model": "x"}, overwrite=False)
    assert again.done == stop
    assert again.last in {None, NAMES[stop - 1]}
    again.write(rows(NAMES[stop:]))
    again.finish()
    again.close()
    if "." in output:
        found = [json.loads(line) for line in place.output.read_text().splitlines()]
        assert not place.state.exists()
    else:
        parts = sorted(place.parts())
        assert [pyarrow.parquet.read_metadata(part).num_rows for part in parts] == [3, 3, 3, 1]
        found = pyarrow.parquet.read_table(place.output).to_pylist()
    assert [row["file"] for row in found] == NAMES


def test_a_part_that_was_made_but_not_yet_its_journal_removed_is_not_made_twice(
    tmp_path: Path,
) -> None:
    place = layout(tmp_path / "out", 3, Shard(0, 1))
    first = Journal(place, {}, overwrite=False)
    first.write(rows(NAMES[:3]))
    first.close()
    (place.state / "00000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(NAMES[:3])))
    again = Journal(place, {}, overwrite=False)
    assert again.done == 3
    again.close()
    # And the other way: a full journal, and no part.
    place.file(0).unlink()
    (place.state / "00001.jsonl").unlink()
    (place.state / "00000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(NAMES[:3])))
    again = Journal(place, {}, overwrite=False)
    assert (again.done, place.file(0).exists()) == (3, True)
    again.close()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    journal = Journal(place, {}, overwrite=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(ConfigError, match="File too large; completed work is kept"):
            journal.write(rows([f"{number:04}.png" for number in range(1000)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.close()
    again = Journal(place, {}, overwrite=False)
    assert 0 < again.done < 1000
    assert again.last == f"{again.done - 1:04}.png"
    again.close()


def finished(place: Layout, arguments: dict[str, object], *, overwrite: bool = False) -> None:
    with closing(Journal(place, arguments, overwrite=overwrite)) as journal:
        journal.write(rows(NAMES))
        journal.finish()


def written(place: Layout) -> int:
    return len(place.output.read_text().splitlines())


def test_a_finished_file_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    finished(place, {"model": "x"})
    for arguments in ({"model": "x"}, {"model": "y"}):
        with pytest.raises(ConfigError, match=r"out\.jsonl exists; add --overwrite"):
            Journal(place, arguments, overwrite=False)
    assert (written(place), list(tmp_path.iterdir())) == (10, [place.output])
    finished(place, {"model": "y"}, overwrite=True)
    assert written(place) == 10


def test_a_run_that_replaces_goes_on_and_the_file_is_whole_until_it_ends(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    finished(place, {})
    first = Journal(place, {}, overwrite=True)
    first.write(rows(NAMES[:4]))
    first.close()
    assert written(place) == 10
    again = Journal(place, {}, overwrite=False)
    assert again.done == 4
    again.write(rows(NAMES[4:5]))
    again.finish()
    again.close()
    assert written(place) == 5


def test_a_file_that_appears_during_the_run_is_not_replaced(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    journal = Journal(place, {}, overwrite=False)
    journal.write(rows(NAMES))
    place.output.write_text("precious")
    with pytest.raises(ConfigError, match="move it away to continue"):
        journal.finish()
    journal.close()
    with pytest.raises(ConfigError, match="move it away to continue"):
        Journal(place, {}, overwrite=False)
    assert place.output.read_text() == "precious"
    place.output.unlink()
    again = Journal(place, {}, overwrite=False)
    assert again.done == 10
    again.finish()
    again.close()
    assert written(place) == 10


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_run_that_was_killed_at_its_very_end_finds_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = layout(tmp_path / name, None, Shard(0, 1))

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            finished(place, {})
    whole = place.output.read_bytes()
    again = Journal(place, {}, overwrite=False)
    assert (again.complete, again.done) == (True, 10)
    again.close()
    assert (place.output.read_bytes(), list(tmp_path.iterdir())) == (whole, [place.output])


def test_a_table_that_was_made_but_not_yet_its_journal_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = layout(tmp_path / "out.csv", None, Shard(0, 1))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".jsonl":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    unlink = Path.unlink
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            finished(place, {})
    again = Journal(place, {}, overwrite=False)
    assert again.done == 10
    again.finish()
    again.close()
    assert written(place) == 11


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
def test_files_in_place_of_the_state_survive_even_overwriting(tmp_path: Path, name: str) -> None:
    place = layout(tmp_path / name, None if "." in name else 3, Shard(0, 1))
    place.state.mkdir(parents=True)
    (place.state / "notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match="move them away"):
        Journal(place, {}, overwrite=True)
    assert (place.state / "notes.txt").read_text() == "precious"


def test_a_file_without_a_suffix_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(ConfigError, match="is a file; choose a folder"):
        layout(tmp_path / "out", None, Shard(0, 1))


def test_two_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    first = Journal(place, {}, overwrite=False)
    with pytest.raises(ConfigError, match="another run is writing to it"):
        Journal(place, {}, overwrite=True)
    first.close()
    Journal(place, {}, overwrite=False).close()
