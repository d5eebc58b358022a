"""A stream gives what reading gives, a part at a time."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from models.training import datasets, stream
from tests.conftest import encoded
from tests.models import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label in ("cat", "dog", "eel"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(3):
            image = encoded(size=(8 + index, 9))
            (tmp_path / "data" / label / f"{index}.png").write_bytes(image)
    return tmp_path / "data"


@pytest.mark.parametrize("count", [1, 4, 100])
def test_the_parts_are_the_whole_in_its_order(folder: Path, count: int) -> None:
    whole = datasets.read(folder, tiny.INPUT)
    parts = list(stream.stream(folder, tiny.INPUT, count))
    assert all(len(part.images) <= count for part in parts)
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
    found = [part.relabelled(whole.classes).targets for part in parts]
    assert np.array_equal(np.concatenate(found), whole.targets)
    assert {part.source for part in parts} == {"data"}


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    (folder / "eel" / "0.png").write_bytes(b"broken")
    parts = stream.stream(folder, tiny.INPUT, 3)
    assert [next(parts).classes for _ in range(2)] == [("cat",), ("dog",)]
    with pytest.raises(ValueError, match=r"eel/0\.png is no readable image"):
        next(parts)


def test_what_is_left_out_is_told(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"broken")
    told: list[str] = []
    parts = list(stream.stream(folder, tiny.INPUT, 4, corrupt="skip", skip=told.append))
    assert told == ["dog/1.png"]
    assert [len(part.images) for part in parts] == [4, 4]
    read = datasets.read(folder, tiny.INPUT, corrupt="skip")
    assert (len(read.images), read.skipped) == (8, ("dog/1.png",))


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in folders named by class"):
        list(stream.stream(tmp_path, tiny.INPUT, 4))


def test_what_takes_much_memory_is_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as file:
        file.add(folder, "data")
    decoded = 9 * 8 * 8 * 3
    for limit, large in ((decoded, False), (decoded - 1, True)):
        monkeypatch.setattr(stream, "RESIDENT_BYTES", limit)
        assert stream.is_large(folder, tiny.INPUT) is large
    for limit in (2 * archive.stat().st_size, 2 * archive.stat().st_size - 1):
        monkeypatch.setattr(stream, "RESIDENT_BYTES", limit)
        assert stream.is_large(archive, tiny.INPUT) is (limit % 2 == 1)
    assert not stream.is_large(folder / "nowhere", tiny.INPUT)
