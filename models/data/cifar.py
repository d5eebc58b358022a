"""The official archives of CIFAR-10 and CIFAR-100, in their Python and binary versions.

An image is three planes of 32 x 32 bytes, one per colour, row by row: Krizhevsky 2009, and
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.listing import Split
from models.data.members import BROKEN_ARCHIVE, damage
from models.data.pickled import plain
from models.image_files import SUFFIXES

SIDE = 32
PIXELS = 3 * SIDE * SIDE
PICKLE = b"\x80"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one version of one data set.

    `labels`, `names`: keys of the pickle. `label_bytes`: bytes before the pixels of a binary
    record; the last one is the class.
    """

    classes: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str = ""
    names: str = ""
    label_bytes: int = 0

    def files(self, split: Split) -> tuple[str, ...]:
        return (self.meta, *(self.train if split == "train" else self.test))


LAYOUTS = (
    Layout(
        classes=10,
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        names="label_names",
    ),
    Layout(
        classes=100,
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
    Layout(
        classes=10,
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        meta="batches.meta.txt",
        label_bytes=1,
    ),
    Layout(
        classes=100,
        train=("train.bin",),
        test=("test.bin",),
        meta="fine_label_names.txt",
        label_bytes=2,
    ),
)
BY_FILE = {
    name: layout for layout in LAYOUTS for name in (*layout.files("train"), *layout.files("test"))
}


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, or the folder of an unpacked one."""

    path: Path
    layout: Layout

    def read(
        self, split: Split | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
        """Images uint8 [N, 32, 32, 3], targets int64 [N], and the class names in the set's order.

        Raises:
            ValueError: a file is missing or damaged, or `split` is None; the message names it.
        """
        if split is None:
            raise ValueError(
                f"{self.path}: it holds a training and a test set; say which, 'train' or 'test'"
            )
        wanted = self.layout.files(split)
        files = self._contents(set(wanted))
        missing = [name for name in wanted if name not in files]
        if missing:
            raise ValueError(f"{self.path}: {missing[0]} is missing")
        name, *parts = wanted
        try:
            classes = _names(files[name], self.layout)
            read = []
            for name in parts:
                read.append(_batch(files[name], self.layout))
        except ValueError as error:
            raise ValueError(f"{self.path}: {name}: {error}") from None
        planes = np.concatenate([pixels for pixels, _ in read])
        targets = np.concatenate([labels for _, labels in read])
        images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), targets, classes

    def _contents(self, wanted: set[str]) -> dict[str, bytes]:
        if self.path.is_dir():
            files = {name: self.path / name for name in wanted}
            return {name: file.read_bytes() for name, file in files.items() if file.is_file()}
        contents: dict[str, bytes] = {}
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    file = archive.extractfile(member) if name in wanted else None
                    if file is not None:
                        contents[name] = file.read()
                    if len(contents) == len(wanted):
                        break
        except BROKEN_ARCHIVE as error:
            raise ValueError(f"{self.path}: not a whole tar archive ({damage(error)})") from None
        return contents


def find(path: Path) -> Archive | None:
    """The archive at `path`, packed or unpacked, there or one folder below; None if none is."""
    if path.is_dir():
        for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
            for name, layout in BY_FILE.items():
                if (folder / name).is_file() and _begins(folder / name, layout):
                    return Archive(folder, layout)
        return None
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if PurePosixPath(name).suffix.lower() in SUFFIXES:
                    return None
                file = archive.extractfile(member) if name in BY_FILE else None
                if file is not None and (BY_FILE[name].label_bytes or file.read(1) == PICKLE):
                    return Archive(path, BY_FILE[name])
    except BROKEN_ARCHIVE:
        return None  # Reading it will raise the error.
    return None


def _begins(file: Path, layout: Layout) -> bool:
    """Whether a file that shares a name with CIFAR's also starts like one: the names are common."""
    if layout.label_bytes:
        return True
    with file.open("rb") as opened:
        return opened.read(1) == PICKLE


def _names(content: bytes, layout: Layout) -> tuple[str, ...]:
    if layout.label_bytes:
        names = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
        names = [name for name in names if name]
    else:
        raw = _fields(content).get(layout.names)
        if not isinstance(raw, list):
            raise ValueError(f"it has no list {layout.names!r}")
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in raw]
    if len(names) != layout.classes or len(set(names)) != layout.classes:
        raise ValueError(f"{layout.classes} class names expected, not {len(names)}")
    return tuple(names)


def _batch(content: bytes, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if layout.label_bytes:
        length = layout.label_bytes + PIXELS
        if not content or len(content) % length:
            raise ValueError(f"{len(content)} bytes are not records of {length}")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
        pixels = records[:, layout.label_bytes :]
        labels = records[:, layout.label_bytes - 1].astype(np.int64)
    else:
        fields = _fields(content)
        data, raw = fields.get("data"), fields.get(layout.labels)
        if not isinstance(data, np.ndarray) or data.shape[1:] != (PIXELS,):
            raise ValueError(f"its 'data' is not an array of {PIXELS} bytes an image")
        if not isinstance(raw, list) or not all(type(label) is int for label in raw):
            raise ValueError(f"its {layout.labels!r} is not a list of integers")
        if len(raw) != len(data) or not raw:
            raise ValueError(f"{len(raw)} labels do not fit {len(data)} images")
        pixels = data
        labels = np.array([min(max(label, -1), layout.classes) for label in raw], dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= layout.classes))
    if len(wrong):
        raise ValueError(
            f"image {wrong[0]} has a label outside the {layout.classes} classes 0 "
            f"to {layout.classes - 1}"
        )
    return pixels, labels


def _fields(content: bytes) -> Mapping[str, Any]:
    fields = plain(content)
    if not isinstance(fields, dict):
        raise ValueError("it does not hold a dictionary")  # noqa: TRY004  (the file's fault)
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value
        for key, value in fields.items()
    }
