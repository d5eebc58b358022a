"""A stream gives what reading gives, a part at a time."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from models.training import datasets, streamed
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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1, 4, 100])
def test_the_batches_are_the_whole_in_its_order(folder: Path, count: int, packed: bool) -> None:
    path = folder
    if packed:
        path = folder.with_suffix(".tar")
        with tarfile.open(path, "w") as file:
            file.add(folder, "data")
    whole = datasets.read(path, tiny.INPUT)
    images = streamed.stream(path, tiny.INPUT, batch_size=count)
    parts = list(images)
    assert (images.source, images.classes, len(images)) == (whole.source, whole.classes, 9)
    assert all(len(pixels) == len(targets) <= count for pixels, targets in parts)
    assert np.array_equal(np.concatenate([pixels for pixels, _ in parts]), whole.images)
    assert np.array_equal(np.concatenate([targets for _, targets in parts]), whole.targets)


def test_classes_are_the_models_and_strange_ones_are_refused_at_once(folder: Path) -> None:
    images = streamed.stream(folder, tiny.INPUT, batch_size=4)
    found = images.relabelled(("eel", "fox", "dog", "cat"))
    assert np.concatenate([targets for _, targets in found]).tolist() == [3] * 3 + [2] * 3 + [0] * 3
    with pytest.raises(ValueError, match="data: class 'eel' is no label of the model"):
        images.relabelled(("cat", "dog"))


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    (folder / "eel" / "0.png").write_bytes(b"broken")
    parts = iter(streamed.stream(folder, tiny.INPUT, batch_size=3))
    assert [next(parts)[1].tolist() for _ in range(2)] == [[0] * 3, [1] * 3]
    with pytest.raises(ValueError, match=r"eel/0\.png is no readable image"):
        next(parts)


def test_what_is_left_out_is_told(folder: Path) -> None:
    (folder / "dog" / "1.png").write_bytes(b"broken")
    images = streamed.stream(folder, tiny.INPUT, batch_size=4, corrupt="skip")
    assert sum(len(targets) for _, targets in images) == 8
    (line,) = images.skipped
    assert line.startswith("dog/1.png is no readable image")


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        streamed.stream(tmp_path, tiny.INPUT, batch_size=4)
