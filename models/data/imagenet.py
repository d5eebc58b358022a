"""ImageNet's synsets, and the classes of its validation images in a flat folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from models import labels

VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.jpe?g", re.IGNORECASE)
SYNSET = re.compile(r"n\d{8}")
# Caffe's file has indices into the sorted synsets, Kaggle's has synsets.
BY_INDEX, BY_SYNSET = "val.txt", "LOC_val_solution.csv"
DEVKIT = "ILSVRC2012_validation_ground_truth.txt"


def synsets() -> tuple[str, ...]:
    """The 1000 synsets in alphabetical order, which is the order of the labels."""
    return labels.synsets(labels.read("imagenet1k"))


def ground_truth(folders: Sequence[Path]) -> tuple[Path, dict[str, str]]:
    """The first file in `folders` with the classes of the validation images, and the synset of
    each image by its name without suffix.

    Raises:
        ValueError: there is no such file, or a line is invalid; the message names it.
    """
    for folder in folders:
        for name, parse in ((BY_INDEX, _by_index), (BY_SYNSET, _by_synset)):
            if (folder / name).is_file():
                return folder / name, parse(folder / name)
    wanted = f"put {BY_INDEX} (FILE INDEX) or {BY_SYNSET} beside or above them"
    for folder in folders:
        if (folder / DEVKIT).is_file():
            raise ValueError(
                f"{folder / DEVKIT}: its numbers are the development kit's own, not positions "
                f"among the sorted synsets; {wanted}"
            )
    raise ValueError(f"{folders[0]}: the classes of the validation images are unknown; {wanted}")


def _by_index(file: Path) -> dict[str, str]:
    known, classes = synsets(), {}
    for number, line in enumerate(_lines(file), 1):
        match line.split():
            case []:
                pass
            case [name, index] if index.isdecimal() and int(index) < len(known):
                classes[Path(name).stem] = known[int(index)]
            case _:
                raise ValueError(
                    f"{file}: line {number} is not FILE INDEX, with an index below 1000"
                )
    return classes


def _by_synset(file: Path) -> dict[str, str]:
    known, classes = set(synsets()), {}
    for number, row in enumerate(csv.reader(_lines(file)), 1):
        synset = row[1].split()[:1] if len(row) > 1 else []
        if synset and synset[0] in known:
            classes[row[0]] = synset[0]
        elif row and number > 1:  # The first line may be a header.
            raise ValueError(f"{file}: line {number} is not IMAGE,SYNSET with one of the 1000")
    return classes


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: not a text file") from None
