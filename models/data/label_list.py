"""Lists of images with any number of labels each, as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUFFIX = ".csv"
FILE, LABELS = "file", "labels"
# Int64 [N], a class for each image; or bool [N, K], whether it has each of the K labels.
Targets = NDArray[np.int64] | NDArray[np.bool_]
FORM = f"a list of images begins with the line {FILE},{LABELS}"


def is_list(path: Path) -> bool:
    """Whether `path` is a list, by its name."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def read(path: Path) -> tuple[list[str], Targets, tuple[str, ...]]:
    """The files of a list as they are written, their targets, and the labels in alphabetical order.

    The list is a CSV file in UTF-8 with the columns `file` and `labels`; others are ignored. The
    labels of an image are separated by ";"; an image may have none. Targets are int64 [N] if every
    image has exactly one label, else bool [N, K].

    Raises:
        ValueError: the list is not in this form, or names no image or one twice; the message names
            the line.
    """
    rows: dict[str, tuple[str, ...]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not {FILE, LABELS} <= set(reader.fieldnames or ()):
                raise ValueError(f"{path}: {FORM}")
            for row in reader:
                name, text = (row[FILE] or "").strip(), row[LABELS]
                if not name or text is None:
                    raise ValueError(f"{path}: line {reader.line_num} is not FILE,LABEL;LABEL")
                if name in rows:
                    raise ValueError(f"{path}: line {reader.line_num} names {name} again")
                # A label that is repeated counts once.
                rows[name] = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(";")))))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file or folder") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    labels = tuple(sorted({label for each in rows.values() for label in each}))
    if not labels:
        raise ValueError(f"{path}: it names no {'label' if rows else 'image'}; {FORM}")
    index = {label: position for position, label in enumerate(labels)}
    if all(len(each) == 1 for each in rows.values()):
        classes = [index[label] for (label,) in rows.values()]
        return list(rows), np.array(classes, dtype=np.int64), labels
    targets = np.zeros((len(rows), len(labels)), dtype=np.bool_)
    for row_number, each in enumerate(rows.values()):
        targets[row_number, [index[label] for label in each]] = True
    return list(rows), targets, labels
