"""Hugging Face's image folders: images beside a table `metadata` that has their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from models.data import label_list, tables
from models.data.label_list import PARTS, Listed

STEM = "metadata"


def is_metadata(name: str) -> bool:
    """Whether a file in a set is such a table, by its name."""
    path = PurePosixPath(name)
    return path.stem == STEM and path.suffix in tables.SUFFIXES


def read(path: Path, names: Sequence[str]) -> list[Listed]:
    """The images of the tables at `names` below `path`, with names relative to `path`. Files in a
    table are relative to it; their part is that of its `split`, or that of their folders. Tables
    without labels, such as those of captions, do not count: there, folders are classes.

    Raises:
        ValueError: see `label_list.read`; or a table names a file that is not there.
    """
    found = []
    for name in names:
        if not label_list.labels_in(path / name):
            continue
        folder = PurePosixPath(name).parent
        for row in label_list.read(path / name):
            file = folder / row.name
            if not (path / file).is_file():
                raise ValueError(f"{path / name}: line {row.line}: there is no file {row.name}")
            parts = [PARTS[each.lower()] for each in file.parts[:-1] if each.lower() in PARTS]
            part = row.part or (parts[-1] if parts else "")
            found.append(row._replace(name=str(file), part=part))
    return found
