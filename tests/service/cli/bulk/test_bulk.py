"""Scoring more images than fit into memory: every source, in order, and exactly once."""

from __future__ import annotations

import io
import json
import random
import resource
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from service.cli.bulk import inputs
from service.cli.bulk.inputs import Encoded, Shard
from service.cli.bulk.journal import Journal, layout
from service.cli.bulk.stream import _ahead
from service.errors import ConfigError
from tests.conftest import encoded
from tests.service.cli.test_commands import run

IMAGES = {f"{kind}/{number}.png": bytes([number]) for kind in "ab" for number in range(3)}


def folder(path: Path) -> Path:
    for name, data in IMAGES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "a" / "notes.md").write_text("no image")
    return path


def archive(path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in {"labels.json": b"{}", **IMAGES}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def table(path: Path, *, struct: bool = False) -> Path:
    """A parquet file with a few rows in each group, as Hugging Face's data sets, or plain."""
    plain = list(IMAGES.values())
    rows = [{"bytes": data, "path": name} for name, data in IMAGES.items()] if struct else plain
    columns = {"label": list(range(len(rows))), "image": rows}
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=4)
    return path


def read(entries: Iterator[inputs.Entry]) -> list[Encoded]:
    return [entry() for entry in entries]


def data_of(image: Encoded) -> bytes:
    return image.data if isinstance(image.data, bytes) else image.data.read_bytes()


@pytest.fixture(scope="module", params=["folder", "tar", "tar.gz", "parquet", "struct", "list"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    if request.param == "folder":
        return folder(path / "photos")
    if request.param == "list":
        files = [path / "photos" / name for name in IMAGES]
        folder(path / "photos")
        (path / "files.txt").write_text("\n".join(["", *map(str, files), ""]))
        return path / "files.txt"
    if request.param.startswith("tar"):
        return archive(path / f"a.{request.param}", "w:gz" if "gz" in request.param else "w")
    return table(path / "a.parquet", struct=request.param == "struct")


def test_every_source_gives_its_images_in_order(source: Path) -> None:
    found = read(inputs.entries([source]))
    assert [data_of(image) for image in found] == list(IMAGES.values())
    assert len({image.name for image in found}) == len(IMAGES)
    if source.name != "a.parquet":
        assert [image.name[-7:] for image in found] == list(IMAGES)
    assert inputs.count([source]) == (None if source.suffix == ".gz" else len(IMAGES))


def test_shards_share_the_images_and_a_resumed_one_has_the_rest(source: Path) -> None:
    whole = read(inputs.entries([source, source]))
    for count in (1, 2, 5):
        shards = [read(inputs.remaining([source, source], Shard(i, count))) for i in range(count)]
        assert sorted(image for shard in shards for image in shard) == sorted(whole)
        for index, shard in enumerate(shards):
            assert shard == whole[index::count]
            for done in range(1, len(shard) + 1):
                last = shard[done - 1].name
                rest = inputs.remaining([source, source], Shard(index, count), done, last)
                assert read(rest) == shard[done:]


def test_going_on_with_other_images_is_refused(source: Path) -> None:
    for done in (2, 20):
        with pytest.raises(ConfigError, match="images changed"):
            inputs.remaining([source], inputs.WHOLE, done, "other.png")


def test_what_is_passed_over_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar")
    entries = inputs.entries([path])
    third = [next(entries) for _ in range(3)][-1]
    assert third().data == b"\x02"


def test_a_tar_archive_is_read_with_no_record_of_its_members(tmp_path: Path) -> None:
    held: list[int] = []
    real = tarfile.TarFile.next

    def counted(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        held.append(len(self.members))  # type: ignore[attr-defined]
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", counted)
        read(inputs.entries([archive(tmp_path / "a.tar")]))
    assert len(held) > len(IMAGES)
    assert max(held) <= 1


def test_links_in_archives_and_rows_without_bytes_are_errors_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
    rows = pa.table({"image": pa.array([None, b"x"], pa.binary())})
    pyarrow.parquet.write_table(rows, tmp_path / "b.parquet")
    found = read(inputs.entries([path, tmp_path / "b.parquet"]))
    assert ["link" in found[0].error, "no bytes" in found[1].error, found[2].error] == [1, 1, ""]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_an_archive_cut_short_ends_with_one_line(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"a.{kind}"
    with tarfile.open(path, "w:gz" if "gz" in kind else "w") as tar:
        for number in range(20):
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = 700
            tar.addfile(member, io.BytesIO(random.Random(number).randbytes(700)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) + 100])
    with pytest.raises(ConfigError, match="damaged or truncated") as caught:
        read(inputs.entries([path]))
    assert str(path) in str(caught.value)


def test_a_parquet_file_without_images_says_what_it_has(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"label": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"needs a column 'image'.*it has label"):
        inputs.check([tmp_path / "a.parquet"])
    with pytest.raises(ConfigError, match="damaged or truncated"):
        inputs.check([tmp_path / "b.parquet"])


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    assert inputs.printable(Path("a\udcff.png")) == "a\\xff.png"


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
        with pytest.raises(ConfigError, match="File too large; what was done is kept"):
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
    with pytest.raises(ConfigError, match="another run is writing there"):
        Journal(place, {}, overwrite=True)
    first.close()
    Journal(place, {}, overwrite=False).close()


def test_what_is_fetched_ahead_is_bounded_and_ends_with_its_user() -> None:
    given = iter(range(100))
    before = threading.active_count()
    ahead = _ahead(given, 2)
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert threading.active_count() == before
    assert next(given) <= 6


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
    run("classify", photos, *MODEL, "--top-k", "1", "--output", tmp_path / "one.jsonl")
    for shard in ("1/2", "2/2"):
        flags = ("--output", tmp_path / "out", "--rows-per-file", "4", "--shard", shard)
        run("classify", photos, *MODEL, "--top-k", "1", *flags)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert names == [f"part-{i}-of-2-0000{n}.parquet" for i in (1, 2) for n in range(3)]
    found = pyarrow.parquet.read_table(tmp_path / "out").sort_by("file").to_pylist()
    whole = lines(tmp_path / "one.jsonl")
    assert [row["file"] for row in found] == [row["file"] for row in whole]
    assert [bool(row["error"]) for row in found] == [bool(row["error"]) for row in whole]
    labels = [row["predictions"][0]["label"] if row["predictions"] else None for row in whole]  # type: ignore[index]
    assert [row["label"] for row in found] == labels
    assert (
        "has all 10 rows already" in run("classify", photos, *MODEL, "--top-k", "1", *flags).stderr
    )


def test_other_arguments_are_refused_until_told_to_overwrite(photos: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "out", "--rows-per-file", "8")
    run("classify", photos, *MODEL, *output)
    for other, words in (
        (("--top-k", "2"), "was begun with top-k 5, not 2"),
        (("--shard", "1/1", photos), "was begun with images"),
    ):
        line = run("classify", photos, *MODEL, *output, *other, status=2).stderr
        assert line.count("\n") == 1
        assert words in line
        assert "--overwrite" in line
    run("classify", photos, *MODEL, *output, "--top-k", "2", "--overwrite")
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
    assert "a.tar: is damaged or truncated" in line
    kept = lines(tmp_path / "out.csv.resume" / "00000.jsonl")
    assert 10 <= len(kept) <= 15
    assert not output.exists()
    path.write_bytes(whole)
    run("classify", path, *MODEL, "--output", output)
    assert len({row.partition(",")[0] for row in output.read_text().splitlines()[1:]}) == 20
    assert not (tmp_path / "out.csv.resume").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows-per-file", "5"], "--rows-per-file: only with --output"),
        (["--overwrite"], "--overwrite: only with --output"),
        (["--output", "x.jsonl", "--rows-per-file", "5"], "where --output is a folder"),
        (["--output", "/nowhere/at/all.csv"], "there is no folder /nowhere/at"),
        (["--output", "/proc/out"], "the same command goes on"),
    ],
)
def test_what_is_wrong_is_one_line(photos: Path, arguments: list[str], words: str) -> None:
    line = run("classify", photos, *MODEL, *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b"])
def test_a_shard_is_one_of_several(photos: Path, shard: str) -> None:
    assert "is not one of several" in run("classify", photos, "--shard", shard, status=2).stderr
