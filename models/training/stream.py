"""Labelled images of which only a part is in memory at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from models.preprocess import InputSpec
from models.training.datasets import SUFFIXES, Corrupt, Dataset, decoded, labelled

# Of decoded images; what is larger is streamed.
RESIDENT_BYTES = 2**30


def is_large(path: Path, spec: InputSpec) -> bool:
    """Whether the images under `path`, of the spec's size, would take over a GiB of memory.

    An archive's are guessed to take twice its own size: it cannot be counted without reading it.
    """
    if not path.is_dir():
        return path.is_file() and 2 * path.stat().st_size > RESIDENT_BYTES
    count = sum(1 for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return count * spec.size**2 * 3 > RESIDENT_BYTES


def stream(
    path: Path,
    spec: InputSpec,
    count: int,
    *,
    corrupt: Corrupt = "fail",
    skip: Callable[[str], object] = lambda name: None,
) -> Iterator[Dataset]:
    """What `datasets.read` reads of folders named by class, at most `count` images at a time.

    Each part has the classes that are in it. `skip` is told the names of the files that `corrupt`
    leaves out.

    Raises:
        ValueError: see `datasets.read`.
    """
    images = decoded(path, spec, corrupt=corrupt, skip=skip)
    empty = True
    while part := list(islice(images, count)):
        empty = False
        yield labelled(part, path.name)
    if empty:
        raise ValueError(f"{path}: no images in folders named by class")
