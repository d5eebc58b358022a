"""What was done is kept, and nothing is done twice."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet
import pytest

from service.cli.bulk.inputs import Shard
from service.cli.bulk.journal import Journal, layout
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


def test_two_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    place = layout(tmp_path / "out.jsonl", None, Shard(0, 1))
    first = Journal(place, {}, overwrite=False)
    with pytest.raises(ConfigError, match="another run is writing to it"):
        Journal(place, {}, overwrite=True)
    first.close()
    Journal(place, {}, overwrite=False).close()
