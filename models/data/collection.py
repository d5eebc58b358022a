"""Labelled images opened one by one, from a folder, an archive or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models import files, image_files
from models.data import cifar, label_list, members
from models.data.label_list import Targets, moved, normal
from models.data.listing import Split, listing, splits
from models.labels import synsets
from models.preprocess import InputSpec, decode_at_scale, resize_and_crop, upright
from models.suggestions import first_few

Transform = Callable[[Image.Image, int], NDArray[np.uint8]]


class Images(Protocol):
    """An ordered set of images; `compressed` ones can only be opened in order, by `each`."""

    @property
    def compressed(self) -> bool: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> Image.Image: ...

    def each(self) -> Iterator[Callable[[], Image.Image]]: ...

    def part(self, rows: NDArray[np.int64]) -> Images: ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """Decoded images: `pixels` uint8 [N, H, W, 3]."""

    pixels: NDArray[np.uint8]
    compressed: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def encoded(self, index: int) -> bytes:
        """The bytes of the pixels of image `index`."""
        return bytes(self.pixels[index].tobytes())

    def each(self) -> Iterator[Callable[[], Image.Image]]:
        return (partial(self.open, index) for index in range(len(self)))

    def part(self, rows: NDArray[np.int64]) -> InMemory:
        return InMemory(self.pixels[rows])


@dataclass(frozen=True, slots=True)
class Collection:
    """`images`, their path, and their `targets`: int64 [N] as indices into `classes`, or bool
    [N, K] where images have several of the classes, or none. `notes`: what its user may not expect
    of it, in a line each."""

    images: Images
    targets: Targets
    classes: tuple[str, ...]
    path: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def exclusive(self) -> bool:
        """Whether each image has exactly one of the classes."""
        return self.targets.ndim == 1

    def part(self, rows: NDArray[np.int64]) -> Collection:
        """The images at `rows` int64 [n], in ascending order."""
        return replace(self, images=self.images.part(rows), targets=self.targets[rows])

    def relabelled(
        self, labels: Sequence[str], whose: str = "the model's", use: str = ""
    ) -> Collection:
        """The same images with targets as indices into `labels`; an error says `whose` these are,
        and the `use` of the images.

        Raises:
            ValueError: a class is not in `labels`.
        """
        source = f"{self.path.name}, its {use} images" if use else self.path.name
        places = positions(self.classes, labels, source, whose)
        targets = moved(self.targets, places, len(labels))
        return replace(self, targets=targets, classes=tuple(labels))


def positions(
    classes: Sequence[str], labels: Sequence[str], source: str, whose: str = "the model's"
) -> NDArray[np.int64]:
    """The index of each class in `labels`: int64 [K]. Classes may be named by their synsets, and
    `labels` may have classes that are not in `classes`. An error says `whose` the labels are.

    Raises:
        ValueError: classes of `source` are not in `labels`; the message names them.
    """
    index = {normal(label): position for position, label in enumerate(labels)}
    index |= {synset: position for position, synset in enumerate(synsets(labels))}
    unknown = [label for label in classes if normal(label) not in index]
    if len(unknown) == 1:
        raise ValueError(f"{source}: class {unknown[0]!r} is not one of {whose} labels")
    if unknown:
        listed = first_few([*map(repr, unknown)])
        raise ValueError(f"{source}: classes {listed} are not among {whose} labels")
    return np.array([index[normal(label)] for label in classes], dtype=np.int64)


def find(path: Path, split: Split | None = None) -> Collection:
    """The set at `path`: an official CIFAR archive, or whatever `listing.listing` reads.

    Raises:
        ValueError: see `cifar.Archive.read` and `listing.listing`.
    """
    files.check_regular(path)
    archive = None if label_list.is_list(path) else cifar.find(path)
    if archive is not None:
        pixels, targets, classes = archive.read(split)
        return Collection(InMemory(pixels), targets, classes, path)
    found = listing(path, split)
    return Collection(found, found.targets, found.classes, path, found.notes)


def has_split(path: Path, split: Split) -> bool:
    """Whether the set at `path` says which of its images are a split: by folders, by the names of
    its files, or in a list; does not search a folder image by image."""
    files.check_regular(path)
    if not label_list.is_list(path) and cifar.find(path) is not None:
        return split in ("train", "test")
    try:
        return split in splits(path)
    except ValueError:
        return False  # Reading it will raise the error.


def has_test_set(path: Path) -> bool:
    """Whether the set has images to test on: a "test" split, or else one for validation."""
    return has_split(path, "test") or has_split(path, "validation")


@dataclass(frozen=True, slots=True)
class Centre:
    """The transform of serving and evaluation: uint8 of `spec.shape`. `exact`: JPEGs are decoded
    in full, not at a fraction of their size."""

    spec: InputSpec
    exact: bool = False

    def __call__(self, image: Image.Image, seed: int = 0) -> NDArray[np.uint8]:
        if not self.exact:
            decode_at_scale(image, self.spec)
        return resize_and_crop(upright(image, self.spec.channels), self.spec)


def decoded(
    opener: Callable[[], Image.Image], name: str, transform: Transform, seed: int = 0
) -> NDArray[np.uint8]:
    """One image after `transform`: uint8 [H, W, C].

    Raises:
        ValueError: the image cannot be read; the message names it.
    """
    try:
        with opener() as image:
            return transform(image, seed)
    except UnidentifiedImageError:  # Its message names a Python object.
        reason = image_files.why_unknown(name)
        raise ValueError(f"{name} is not a readable image ({reason})") from None
    except Exception as error:  # noqa: BLE001  (damaged data raises any error)
        raise ValueError(f"{name} is not a readable image ({members.damage(error)})") from None
