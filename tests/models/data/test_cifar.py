"""CIFAR's four official layouts hold the same images, and what is wrong with one is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models import labels
from models.data import datasets
from models.data.collection import has_test_set
from models.data.datasets import Dataset
from models.data.listing import Split
from models.preprocess import CIFAR, IMAGENET, resize_and_crop
from tests.support.python2 import pickled

PER_FILE = 3
Files = dict[str, bytes]


def content(classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of every file in turn, the test set's last."""
    random = np.random.default_rng(classes)
    count = PER_FILE * (6 if classes == 10 else 2)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, np.append(random.integers(0, classes, count - 1), classes - 1)


def python(classes: int) -> Files:
    images, targets = content(classes)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    fine = "labels" if classes == 10 else "fine_labels"
    names = "label_names" if classes == 10 else "fine_label_names"
    parts = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    parts = parts if classes == 10 else ["train", "test"]
    files: dict[str, dict[str, object]] = {}
    files |= {"batches.meta" if classes == 10 else "meta": {names: list(labels.default(classes))}}
    for at, name in enumerate(parts):
        rows = slice(at * PER_FILE, (at + 1) * PER_FILE)
        files[name] = {
            "batch_label": name,
            fine: targets[rows].tolist(),
            "coarse_labels": [0] * PER_FILE,
            "data": planes[rows],
        }
    return {name: pickled(fields) for name, fields in files.items()}


def binary(classes: int) -> Files:
    images, targets = content(classes)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    before = [targets[:, None]] if classes == 10 else [targets[:, None] // 5, targets[:, None]]
    records = np.concatenate([*before, planes], axis=1).astype(np.uint8)
    parts = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    parts = parts if classes == 10 else ["train.bin", "test.bin"]
    files = {
        name: records[at * PER_FILE : (at + 1) * PER_FILE].tobytes()
        for at, name in enumerate(parts)
    }
    names = "\n".join(labels.default(classes)) + "\n\n"
    return files | {"batches.meta.txt" if classes == 10 else "fine_label_names.txt": names.encode()}


LAYOUTS: dict[str, tuple[int, Callable[[int], Files], str]] = {
    "cifar-10-python": (10, python, "cifar-10-batches-py"),
    "cifar-100-python": (100, python, "cifar-100-python"),
    "cifar-10-binary": (10, binary, "cifar-10-batches-bin"),
    "cifar-100-binary": (100, binary, "cifar-100-binary"),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def packed(path: Path, name: str, files: Files) -> Path:
    archive = path / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for member, data in {"readme.html": b"<html>", **files}.items():
            entry = tarfile.TarInfo(f"{LAYOUTS[name][2]}/{member}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive


def unpacked(path: Path, name: str, files: Files) -> Path:
    folder = path / LAYOUTS[name][2]
    folder.mkdir()
    for member, data in files.items():
        (folder / member).write_bytes(data)
    return folder


def check(data: Dataset, classes: int, split: Split) -> None:
    images, targets = content(classes)
    rows = slice(None, -PER_FILE) if split == "train" else slice(-PER_FILE, None)
    assert np.array_equal(data.images, images[rows])
    assert data.images.dtype == np.uint8
    assert data.images.flags.c_contiguous
    assert np.array_equal(data.targets, targets[rows])
    assert data.targets.dtype == np.int64
    assert data.classes == labels.default(classes)


@every_layout
@pytest.mark.parametrize("split", ["train", "test"])
def test_packed_and_unpacked_archives_hold_the_same_images(
    tmp_path: Path, name: str, split: Split
) -> None:
    classes, make, _ = LAYOUTS[name]
    files = make(classes)
    archive, folder = packed(tmp_path, name, files), unpacked(tmp_path, name, files)
    counts: list[int] = []
    data = datasets.read(archive, CIFAR, counts.append, split=split)
    check(data, classes, split)
    assert data.source == f"{name}.tar.gz"
    assert counts[-1] == len(data.images)
    check(datasets.read(folder, CIFAR, split=split), classes, split)
    archive.unlink()
    check(datasets.read(tmp_path, CIFAR, split=split), classes, split)
    assert has_test_set(folder)


@every_layout
def test_without_a_split_training_and_test_images_are_never_mixed(
    tmp_path: Path, name: str
) -> None:
    path = packed(tmp_path, name, LAYOUTS[name][1](LAYOUTS[name][0]))
    with pytest.raises(ValueError, match=r"say which, 'train' or 'test'"):
        datasets.read(path, CIFAR)


def test_other_sizes_are_resized_as_files_are(tmp_path: Path) -> None:
    path = packed(tmp_path, "cifar-10-binary", binary(10))
    data = datasets.read(path, IMAGENET, split="test")
    first = Image.fromarray(content(10)[0][-PER_FILE])
    assert np.array_equal(data.images[0], resize_and_crop(first, IMAGENET))


def refusal(path: Path, split: Split = "train") -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        datasets.read(path, CIFAR, split=split)
    return str(caught.value).removeprefix(f"{path}: ")


@every_layout
@pytest.mark.parametrize("place", [packed, unpacked])
def test_every_missing_file_is_named(
    tmp_path: Path, name: str, place: Callable[[Path, str, Files], Path]
) -> None:
    files = LAYOUTS[name][1](LAYOUTS[name][0])
    for number, missing in enumerate(files):
        (tmp_path / str(number)).mkdir()
        left = {member: data for member, data in files.items() if member != missing}
        path = place(tmp_path / str(number), name, left)
        split: Split = "test" if missing.startswith("test") else "train"
        assert refusal(path, split) == f"{missing} is missing"


@every_layout
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    files = LAYOUTS[name][1](LAYOUTS[name][0])
    part = next(member for member in files if member.startswith(("data_batch_1", "train")))
    path = unpacked(tmp_path, name, files | {part: files[part][:-7]})
    message = refusal(path)
    assert message.startswith(f"{part}: ")
    if name.endswith("binary"):
        length = 3073 if "10-" in name else 3074
        assert message == f"{part}: {PER_FILE * length - 7} bytes are not records of {length}"
    else:
        assert "not a whole pickle" in message


@pytest.mark.parametrize("name", ["cifar-10-binary", "cifar-100-binary"])
def test_a_label_out_of_range_is_named_in_binary_records(tmp_path: Path, name: str) -> None:
    classes, make, _ = LAYOUTS[name]
    files = make(classes)
    part = next(member for member in files if member.startswith("test"))
    record = len(files[part]) // PER_FILE
    wrong = bytearray(files[part])
    wrong[2 * record + record - 3073] = classes
    path = unpacked(tmp_path, name, files | {part: bytes(wrong)})
    assert refusal(path, "test").startswith(f"{part}: image 2 has a label outside the {classes} ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 10]}, "image 2 has a label outside the 10 classes 0 to 9"),
        ({"labels": [-1, 1, 9]}, "image 0 has a label outside the 10 classes 0 to 9"),
        ({"labels": [0, 1]}, "2 labels do not fit 3 images"),
        ({"labels": "012"}, "its 'labels' is not a list of integers"),
        (
            {"data": np.zeros((3, 3071), np.uint8)},
            "its 'data' is not an array of 3072 bytes an image",
        ),
        ({"data": [1, 2]}, "its 'data' is not an array of 3072 bytes an image"),
    ],
)
def test_a_wrong_batch_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    fields = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 2]} | change
    path = unpacked(tmp_path, "cifar-10-python", python(10) | {"test_batch": pickled(fields)})
    assert refusal(path, "test") == f"test_batch: {message}"


def test_class_names_are_as_many_as_classes(tmp_path: Path) -> None:
    meta = pickled({"label_names": ["cat", "dog"]})
    path = unpacked(tmp_path, "cifar-10-python", python(10) | {"batches.meta": meta})
    assert refusal(path) == "batches.meta: 10 class names expected, not 2"


def test_a_batch_that_names_code_is_refused_by_name(tmp_path: Path) -> None:
    attack = b"\x80\x02cos\nsystem\nU\x04echo\x85R."
    path = packed(tmp_path, "cifar-10-python", python(10) | {"data_batch_2": attack})
    assert refusal(path).startswith("data_batch_2: it names os.system, and no code is run")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, "cifar-10-python", python(10))
    path.write_bytes(path.read_bytes()[:20000])
    assert "not a whole tar archive (" in refusal(path)


def test_a_folder_of_images_may_hold_files_with_such_names(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "cat" / "0.png")
    for name in ("train", "meta", "test_batch"):
        (tmp_path / name).write_text("notes")
    assert datasets.read(tmp_path, CIFAR).classes == ("cat",)
