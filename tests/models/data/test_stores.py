"""What is read from an archive is what was packed, or an error that says so."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.data.stores import Zipped, unzipped


def place(path: Path, content: bytes, method: int) -> tuple[int, int, int, int]:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("first", b"x" * 50)
        archive.writestr("ä/second.png", content)
        entry = archive.infolist()[1]
    return entry.header_offset, entry.compress_size, entry.file_size, entry.CRC


CONTENT = bytes(range(256)) * 20


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_member_is_read(tmp_path: Path, method: int) -> None:
    path = tmp_path / "x.zip"
    at = place(path, CONTENT, method)
    assert unzipped(path, at) == CONTENT
    store = Zipped(path, np.array([at, at])).part(np.array([1]))
    assert store.read(0) == CONTENT
    assert store.sizes().tolist() == [len(CONTENT)]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed(tmp_path: Path, method: int) -> None:
    path = tmp_path / "x.zip"
    at = place(path, CONTENT, method)
    whole = path.read_bytes()
    for position in (at[0], at[0] + 60, at[0] + at[1] // 2):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="the archive is damaged here"):
            unzipped(path, at)
    path.write_bytes(whole[: at[0] + 60])
    with pytest.raises(ValueError, match="the archive is damaged here"):
        unzipped(path, at)


def test_a_member_unpacks_to_no_more_than_it_says(tmp_path: Path) -> None:
    at = place(tmp_path / "x.zip", bytes(1_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="the archive is damaged here"):
        unzipped(tmp_path / "x.zip", (at[0], at[1], 1000, at[3]))
