"""Lists of images with their labels: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data import members, tables

# Columns as they are called, without case and punctuation; the first that is there is taken.
FILES = (
    *("file", "filename", "filepath", "filepaths", "path", "imagepath", "imagefile", "imagename"),
    *("image", "img", "imageid", "id"),
)
SEVERAL = "labels"
LABELS = (
    *(SEVERAL, "labelname", "classname", "categoryname", "label", "class", "category", "target"),
    *("species", "breed", "finelabel", "labelid", "classid", "categoryid"),
)
SPLITS = ("split", "subset", "partition", "dataset", "set")
# What folders and files that are parts of a set are called, and the part.
PARTS = {
    **dict.fromkeys(("train", "training", "train_set", "training_set"), "train"),
    **dict.fromkeys(("test", "testing", "test_set"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validation_set"), "val"),
}
# In a column, no class can be meant.
PARTS_IN_COLUMNS = PARTS | {"dev": "val", "eval": "test"}
# Int64 [N], a class for each image; or bool [N, K], whether it has each of the K labels.
Targets = NDArray[np.int64] | NDArray[np.bool_]
FORM = (
    "a list has a column with the image (file, path, filename, image, id, ...) and one with its "
    "label (label, class, category, target, ...), or labels separated by ;"
)


class Listed(NamedTuple):
    """An image of a list: its file as it is written, its labels, its part ("" if the list has
    none), and the line."""

    name: str
    labels: tuple[str, ...]
    part: str
    line: int


def is_list(path: Path) -> bool:
    """Whether `path` is a list, by its name; a parquet file may have the images in it instead."""
    return path.suffix.lower() in tables.SUFFIXES and not path.is_dir()


def column(columns: Sequence[str], known: Sequence[str]) -> str | None:
    """The column that has the first of the `known` names, without case and punctuation."""
    plain = {re.sub(r"[\W_]", "", name.lower()): name for name in reversed(columns)}
    return next((plain[name] for name in known if name in plain), None)


def read(path: Path) -> list[Listed]:
    """The images of a list: a file in UTF-8, of comma, semicolon or tab separated values, of JSON
    objects, or in parquet.

    The file is in the first column of `FILES`, the label in the first of `LABELS`: one label, or
    in `labels` any number separated by ";" (or an array). The first column of `SPLITS` names the
    part, see `PARTS`. Other columns are ignored.

    Raises:
        ValueError: the list is not in this form, or names no image or one twice; the message names
            the line.
    """
    columns, rows = tables.read(path)
    file, label = column(columns, FILES), column(columns, LABELS)
    if file is None or label is None:
        missing = "image" if file is None else "label"
        there = ", ".join(columns[:12]) if columns else "none"
        raise ValueError(f"{path}: no column is the {missing}; its columns: {there}; {FORM}")
    if found := _described(path, columns, rows, file, label):
        return found
    raise ValueError(f"{path}: it names no image; {FORM}")


def labels_in(path: Path) -> bool:
    """Whether a table has a column of labels."""
    return column(tables.read(path)[0], LABELS) is not None


def _described(
    path: Path, columns: Sequence[str], rows: Iterator[tables.Row], file: str, label: str
) -> list[Listed]:
    split, several = column(columns, SPLITS), column([label], (SEVERAL,)) is not None
    found: dict[str, Listed] = {}
    for line, values in rows:
        name = text(values.get(file))
        if not name:
            raise ValueError(f"{path}: line {line} names no file in the column {file}")
        if name in found:
            raise ValueError(f"{path}: line {line} names {name} again")
        labels = _labels(values.get(label), several=several)
        if not labels and not several:
            raise ValueError(f"{path}: line {line} has nothing in the column {label}")
        part = PARTS_IN_COLUMNS.get(text(values.get(split)).lower(), "") if split else ""
        if split and not part:
            raise ValueError(
                f"{path}: line {line} has {text(values.get(split))!r} in the column {split}, "
                "which should be train, val or test; rename the column if it is no split"
            )
        found[name] = Listed(name, labels, part, line)
    return list(found.values())


def text(value: Any) -> str:
    """A value of a table as text; "" if there is none. Where a column has gaps, pandas makes whole
    numbers floats and the gaps NaN."""
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return "" if value is None else str(value).strip()


def _labels(value: Any, *, several: bool) -> tuple[str, ...]:
    if isinstance(value, list):
        texts = [text(each) for each in value]
    else:
        texts = text(value).split(";") if several else [text(value)]
    # A label that is repeated counts once.
    return tuple(dict.fromkeys(normal(each.strip()) for each in texts if each.strip()))


def normal(text: str) -> str:
    """The text in Unicode's composed form: macOS writes names of files in the other one."""
    return unicodedata.normalize("NFC", text)


def targets(labels: Sequence[tuple[str, ...]]) -> tuple[Targets, tuple[str, ...]]:
    """The targets of images with these labels, and the classes in alphabetical order: int64 [N] if
    every image has exactly one label, else bool [N, K].

    Raises:
        ValueError: there is no label.
    """
    classes = tuple(sorted({label for each in labels for label in each}))
    if not classes:
        raise ValueError("no image has a label")
    index = {label: position for position, label in enumerate(classes)}
    if all(len(each) == 1 for each in labels):
        return np.array([index[label] for (label,) in labels], dtype=np.int64), classes
    spread = np.zeros((len(labels), len(classes)), dtype=np.bool_)
    for row, each in enumerate(labels):
        spread[row, [index[label] for label in each]] = True
    return spread, classes


def moved(targets: Targets, places: NDArray[np.int64], count: int) -> Targets:
    """Targets among `count` classes, for targets among classes that are at `places` of them."""
    if targets.ndim == 1:
        return places[targets.astype(np.int64)]
    spread = np.zeros((len(targets), count), dtype=np.bool_)
    spread[:, places] = targets
    return spread


class Beside:
    """Finds the files that a list names: relative to its folder, or in one folder within it, with
    or without the suffix."""

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, path.parent
        self._known: dict[str, set[str]] | None = None

    def locate(self, row: Listed) -> str | None:
        """The file's name relative to the list's folder; None if there is none.

        Raises:
            ValueError: several files have the name.
        """
        if (self._folder / row.name).is_file():
            return row.name
        found = self._index().get(normal(row.name.replace("\\", "/")), set())
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise ValueError(
                f"{self._path}: line {row.line}: {row.name} may be {first} or {second}; "
                "write the folder and the suffix too"
            )
        return next(iter(found), None)

    def _index(self) -> dict[str, set[str]]:
        if self._known is None:
            self._known = {}
            folders = [""] + [
                f"{entry.name}/"
                for entry in os.scandir(self._folder)
                if entry.is_dir() and not members.is_hidden(entry.name)
            ]
            for folder in folders:
                for entry in os.scandir(self._folder / folder):
                    if members.is_image(entry.name):
                        self._add(folder, entry.name)
        return self._known

    def _add(self, folder: str, file: str) -> None:
        assert self._known is not None
        for name in (file, file.rpartition(".")[0]):
            for key in {normal(name), normal(folder + name)}:
                self._known.setdefault(key, set()).add(folder + file)
