"""Every source, in order, and each image once."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from service.cli.bulk import inputs
from service.cli.bulk.inputs import Encoded, Shard
from service.errors import ConfigError

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
    assert ["link" in found[0].error, "no image bytes" in found[1].error, found[2].error] == [
        1,
        1,
        "",
    ]


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
