from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from models.bundle import BundleError
from models.interchange import unpacking


def packed(path: Path, *members: tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def contents(path: Path) -> dict[str, bytes]:
    with unpacking.unpacked(path) as folder:
        files = (file for file in folder.rglob("*") if file.is_file())
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_regular_files_are_unpacked_and_removed_again(tmp_path: Path, mode: str) -> None:
    path = packed(tmp_path / "a.tar", ("a/b", b"1"), ("c", b"2"), ("a/._b", b"mac"), mode=mode)
    assert contents(path) == {"a/b": b"1", "c": b"2"}
    with unpacking.unpacked(path) as folder:
        pass
    assert not folder.exists()


def test_a_folder_is_itself(tmp_path: Path) -> None:
    with unpacking.unpacked(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


def test_archives_are_known_by_name_or_first_bytes(tmp_path: Path) -> None:
    assert unpacking.is_archive(packed(tmp_path / "a.tar.gz"))
    assert unpacking.is_archive(packed(tmp_path / "download"))
    (tmp_path / "a.onnx").write_bytes(b"\x08\x03")
    assert not unpacking.is_archive(tmp_path / "a.onnx")
    assert not unpacking.is_archive(tmp_path / "none.tar.gz")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out"])
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="names a file outside of itself"):
        contents(packed(tmp_path / "a.tar.gz", (name, b"1")))
    assert not (tmp_path / "out").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "a")):
            entry = tarfile.TarInfo(f"link{kind!r}")
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    assert contents(path) == {}


def test_what_expands_without_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MOST_BYTES", 1_000)
    monkeypatch.setattr(unpacking, "MOST_FILES", 3)
    with pytest.raises(BundleError, match=r"a\.tar\.gz: expands to more than"):
        contents(packed(tmp_path / "a.tar.gz", ("a", b"0" * 600), ("b", b"0" * 600)))
    with pytest.raises(BundleError, match="has more than 3 files"):
        contents(packed(tmp_path / "b.tar.gz", *((str(n), b"") for n in range(4))))


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, damage: str) -> None:
    whole = packed(tmp_path / "a.tar.gz", ("a", bytes(range(256)) * 99)).read_bytes()
    half = len(whole) // 2
    bad = {
        "cut": whole[:half],
        "flipped": whole[:half] + bytes([whole[half] ^ 255]) * 8 + whole[half + 8 :],
        "text": b"no archive at all",
    }
    (tmp_path / "a.tar.gz").write_bytes(bad[damage])
    with pytest.raises(BundleError, match=r"a\.tar\.gz: not a whole tar archive"):
        contents(tmp_path / "a.tar.gz")
