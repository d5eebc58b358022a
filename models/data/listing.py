"""The images of a folder, an archive or a list, with their classes and where their bytes are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import image_files, labels
from models.data import embedded, imagefolder, imagenet, label_list, members, notes, stores, tables
from models.data.label_list import PARTS, Targets, normal

Split = Literal["train", "validation", "test"]
# The parts that a split may be, the first that is there.
WANTED = {"train": ("train",), "validation": ("val",), "test": ("test", "val")}
# Pillow's own limit can be disabled for the process.
MAX_PIXELS = 100_000_000
NOTHING_ELSE = members.Found([], [], [], Counter())
LEVELS_ABOVE = 4  # From ILSVRC/Data/CLS-LOC/val to beside ILSVRC.
DEEPEST_PART = 3  # Folders of parts are looked for in so many levels, not image by image.


class _Place(NamedTuple):
    """Where an image lies. `part`: the part of the set named by its folders, or "". `flat`: an
    ImageNet validation image outside a folder of its class."""

    folders: tuple[str, ...]
    name: str
    part: str
    flat: bool


class _Labelled(NamedTuple):
    name: str
    place: tuple[int, ...]
    label: str
    part: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of `path` in order; small enough to copy to worker processes.

    `names`: bytes [N], relative to `path`. `targets`: int64 [N], indices into `classes`; or bool
        [N, K], which of the classes each image belongs to.
    `store`: reads any of them; None: they can only be read in order, by `each`.
    `notes`: what its user may not expect, in a line each.
    """

    path: Path
    names: NDArray[np.bytes_]
    targets: Targets
    classes: tuple[str, ...]
    store: stores.Store | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def compressed(self) -> bool:
        """Whether the images can only be read in order."""
        return self.store is None

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def open(self, index: int) -> Image.Image:
        """Image `index` with its header read; decoding it may still fail.

        Raises:
            Exception: any error of Pillow for a file that is not an image.
        """
        return opened(self.encoded(index))

    def encoded(self, index: int) -> bytes:
        """The bytes of the file of image `index`.

        Raises:
            OSError: it cannot be read.
            ValueError: the archive is damaged there, or is compressed.
        """
        if self.store is None:
            raise ValueError("images in a compressed archive can only be read in order")
        return self.store.read(index)

    def part(self, rows: NDArray[np.int64]) -> Listing:
        """The images at `rows` int64 [n], in ascending order."""
        store = self.store.part(rows) if self.store else None
        return replace(self, names=self.names[rows], targets=self.targets[rows], store=store)

    def each(self) -> Iterator[Callable[[], Image.Image]]:
        """A function that opens each image, in order; call it before asking for the next."""
        if not self.compressed:
            for index in range(len(self)):
                yield partial(self.open, index)
            return
        position = 0
        for member in members.in_archive(self.path):
            if position < len(self) and os.fsencode(member.name) == self.names[position]:
                position += 1
                yield partial(_read_and_open, member.read)


def opened(data: bytes) -> Image.Image:
    """The image in `data`, not decoded yet.

    Raises:
        ValueError: it has more than `MAX_PIXELS` pixels.
        Exception: any error of Pillow for data that is not an image.
    """
    image = image_files.opened(data)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    return image


def _read_and_open(read: Callable[[], bytes]) -> Image.Image:
    return opened(read())


def listing(path: Path, split: Split | None = None) -> Listing:
    """The images at `path`, in a folder, or a tar or zip archive. The class of an image is its
    innermost folder, or the tar archive within `path`. Or `path` is a list, see `label_list.read`,
    a folder with lists named `metadata`, see `imagefolder.read`, or has the images in tables, see
    `embedded`.

    `split` chooses the images below a folder `train`, `validation` (or `val`, `valid`) or `test`,
    and below `validation` where "test" is wanted and not there; a set without such folders is a
    training set. ImageNet's validation images may share one folder, see
    `imagenet.ground_truth`. Classes are in alphabetical order, and in Unicode's composed form;
    ImageNet's 1000 synsets get their labels as class names, in the same order. Hidden files are
    left out, see `members`.

    Raises:
        ValueError: there are no images, or one has no class; the message names it.
    """
    if label_list.is_list(path):
        if path.suffix.lower() == tables.PARQUET and path.is_file() and embedded.has_images(path):
            return _embedded(path, [embedded.Shard(path, path.name, "")], split)
        return _listed(path, label_list.read(path), split)
    if not path.is_dir():
        found = ((member.name, member.place) for member in members.in_archive(path))
        return _by_folder(path, found, split)
    inside = members.in_folder(path)
    lists = [name for name in inside.tables if imagefolder.is_metadata(name)]
    if inside.images and (rows := imagefolder.read(path, lists)):
        left = len(inside.images) - len(rows)
        table = PurePosixPath(lists[0]).name
        said = (f"{left} images are not in {table} and are left out",) if left > 0 else ()
        return _rows(path, path, rows, split, said)
    if not inside.images and (shards := embedded.shards(path, inside.tables)):
        return _embedded(path, shards, split)
    return _by_folder(path, ((name, ()) for name in inside.images), split, inside)


def _by_folder(
    path: Path,
    found: Iterator[tuple[str, tuple[int, ...]]],
    split: Split | None,
    inside: members.Found = NOTHING_ELSE,
) -> Listing:
    """The images of a folder or archive: their names and places. `inside`: what else is in the
    folder, such as a list that the user may mean."""
    given = next((name for name in inside.tables if label_list.is_list(Path(name))), "")
    unread = notes.of_unread(inside.unread)
    ground_truth = cache(imagenet.ground_truth)  # A folder's file is read once.
    images: list[_Labelled] = []
    parts: set[str] = set()
    flat = False
    for name, at in found:
        place = _place(path, name)
        parts.add(place.part)
        if place.part and split and (place.part == "train") != (split == "train"):
            continue
        if place.flat:
            flat, label = True, _synset(place.name, *ground_truth(_around(path, place.folders)))
        elif place.folders and place.folders[-1] != "..":
            label = normal(place.folders[-1])
        else:
            raise ValueError(
                f"{path}: {name} is not in a folder named after its class; or give a list of "
                f"images, {given or 'a .csv file'}"
            )
        images.append(_Labelled(name, at, label, place.part))
    if not parts:
        hint = f"or give its list {given}" if given else f"{image_files.listed()} are read"
        raise ValueError(
            f"{path}: no images in folders named after classes; {'; '.join((*unread, hint))}"
        )
    outside = [image for image in images if not image.part]
    if unlabelled := _unlabelled(parts, {image.label for image in outside}, split):
        raise ValueError(
            f"{path}: images in {' and '.join(unlabelled)} are not in folders named after classes; "
            f"or give a list of images, {given or 'a .csv file'}"
        )
    chosen = _chosen(path, parts, split)
    images = [image for image in images if chosen is None or image.part == chosen]
    names = tuple(sorted({image.label for image in images}))
    if flat and set(names) <= set(imagenet.synsets()):
        names = imagenet.synsets()
    index = {name: position for position, name in enumerate(names)}
    encoded = np.array([os.fsencode(image.name) for image in images])
    places = np.array([image.place for image in images], dtype=np.int64)
    return Listing(
        path,
        encoded,
        np.array([index[image.label] for image in images], dtype=np.int64),
        labels.read("imagenet1k") if names == imagenet.synsets() else names,
        _store(path, encoded, places),
        (
            *unread,
            *notes.of_folders([image.name for image in images], inside.empty, PARTS),
            *(notes.of_outside([each.name for each in outside], PARTS) if chosen else ()),
        ),
    )


def _unlabelled(parts: set[str], labels: set[str], split: Split | None) -> list[str]:
    """The folders that a split would be read from, had they class folders inside.

    `parts`: the parts with class folders. `labels`: the names of all other folders with images.
    """
    bare = {PARTS[label.lower()]: label for label in labels if label.lower() in PARTS}
    if parts == {""}:
        return sorted(labels) if all(label.lower() in PARTS for label in labels) else []
    wanted = WANTED[split] if split else ()
    first = next((part for part in wanted if part in parts or part in bare), "")
    return [bare[first]] if first and first not in parts else []


def _store(path: Path, names: NDArray[np.bytes_], places: NDArray[np.int64]) -> stores.Store | None:
    if path.is_dir():
        return stores.Files(path, names, np.array([], dtype=np.int64))
    if members.is_zip(path):
        return stores.Zipped(path, places)
    return None if members.is_compressed(path) else stores.Slices((path,), places)


def _listed(path: Path, rows: Sequence[label_list.Listed], split: Split | None) -> Listing:
    """The images of a list, whose files are relative to its folder."""
    beside = label_list.Beside(path)
    located = [beside.locate(row) for row in rows]
    if not any(located):
        raise ValueError(
            f"{path}: none of its {len(rows)} files is there, such as {rows[0].name}; they are "
            "looked for relative to the list"
        )
    there = [row._replace(name=name or row.name) for row, name in zip(rows, located, strict=True)]
    missing = [row for row, name in zip(rows, located, strict=True) if name is None]
    said: tuple[str, ...] = ()
    if missing:
        first = f"{missing[0].name} in line {missing[0].line}"
        said = (f"{len(missing)} of {len(rows)} files are not there, the first is {first}",)
    return _rows(path, path.parent, there, split, said)


def _rows(
    path: Path,
    folder: Path,
    rows: Sequence[label_list.Listed],
    split: Split | None,
    said: tuple[str, ...],
) -> Listing:
    """The images that lists describe, with files relative to `folder`."""
    # In all parts together: an image of the test must not be trained on under another spelling.
    counts = Counter(os.path.normpath(row.name) for row in rows)
    if twice := next((row for row in rows if counts[os.path.normpath(row.name)] > 1), None):
        raise ValueError(f"{path}: line {twice.line}: another line names {twice.name} too")
    parts = {row.part for row in rows}
    # A list without parts is whatever it is given for.
    chosen = None if parts == {""} else _chosen(path, parts, split, "it has no rows of {}")
    rows = [row for row in rows if chosen is None or row.part == chosen]
    try:
        targets, classes = label_list.targets([row.labels for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = np.array([os.fsencode(row.name) for row in rows])
    lines = np.array([row.line for row in rows], dtype=np.int64)
    store = stores.Files(folder, names, lines, path.name)
    return Listing(folder, names, targets, classes, store, (*said, *notes.of_classes(classes)))


def _embedded(path: Path, shards: Sequence[embedded.Shard], split: Split | None) -> Listing:
    """The images in the tables of a set."""
    parts = {shard.part for shard in shards}
    form = "it has no file or folder named {}"
    chosen = _chosen(path, parts, split, form) if path.is_dir() else None
    wanted = [shard for shard in shards if chosen is None or shard.part == chosen]
    unpacked = [embedded.unpacked(shard.file) for shard in wanted]
    rows = [row for each in unpacked for row in each.labels]
    try:
        targets, classes = label_list.targets(rows)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    orders = {each.classes for each in unpacked}
    if len(orders) == 1 and (order := orders.pop()):
        places = {name: position for position, name in enumerate(order)}
        order_of = np.array([places[name] for name in classes], dtype=np.int64)
        targets, classes = label_list.moved(targets, order_of, len(order)), order
    names = [
        f"{shard.name} row {row}"
        for shard, each in zip(wanted, unpacked, strict=True)
        for row in range(1, len(each.labels) + 1)
    ]
    at = np.concatenate(
        [np.insert(each.places, 2, index, axis=1) for index, each in enumerate(unpacked)]
    )
    store = stores.Slices(tuple(each.file for each in unpacked), at)
    encoded = np.array([os.fsencode(name) for name in names])
    return Listing(path, encoded, targets, classes, store, notes.of_classes(classes))


def splits(path: Path) -> frozenset[Split]:
    """The parts of the set at `path` that are said to be "train", "validation" or "test"; does not
    search a folder image by image.

    Raises:
        ValueError: a list is invalid.
    """
    names: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
    return frozenset(names[part] for part in _parts(path) if part)


def _parts(path: Path) -> set[str]:
    if label_list.is_list(path):
        if path.suffix.lower() == tables.PARQUET and path.is_file() and embedded.has_images(path):
            return set()
        return {row.part for row in label_list.read(path)}
    if not path.is_dir():
        return {_place(path, member.name).part for member in members.in_archive(path)}
    found: set[str] = set()
    shards: list[str] = []
    for folder, inner, files in os.walk(path):
        below = Path(folder).relative_to(path)
        found |= {PARTS[name.lower()] for name in inner if name.lower() in PARTS}
        lists = [(below / file).as_posix() for file in files if imagefolder.is_metadata(file)]
        found |= {row.part for row in imagefolder.read(path, lists)}
        shards += [
            (below / file).as_posix()
            for file in files
            if file.endswith(tables.PARQUET) and not imagefolder.is_metadata(file)
        ]
        deepest = len(below.parts) >= DEEPEST_PART
        inner[:] = [
            name
            for name in inner
            if not deepest and name.lower() not in PARTS and not members.is_hidden(name)
        ]
    return found | {shard.part for shard in embedded.shards(path, shards)}


def _place(path: Path, member: str) -> _Place:
    *folders, name = (part for part in member.split("/") if part not in ("", "."))
    flat = bool(imagenet.VALIDATION.fullmatch(name)) and not imagenet.SYNSET.fullmatch(
        folders[-1] if folders else path.name
    )
    above = folders if flat else folders[:-1]
    part = next((PARTS[each.lower()] for each in reversed(above) if each.lower() in PARTS), "")
    return _Place(tuple(folders), name, part, flat)


def _around(path: Path, folders: tuple[str, ...]) -> tuple[Path, ...]:
    """The folders that may have the ground truth of images in `folders`: there, or above."""
    folder = path.joinpath(*folders) if path.is_dir() else path.parent
    return (folder, *list(folder.resolve().parents)[:LEVELS_ABOVE])


def _synset(name: str, file: Path, synsets: dict[str, str]) -> str:
    stem = PurePosixPath(name).stem
    if stem not in synsets:
        raise ValueError(f"{file}: it has no line for {name}")
    return synsets[stem]


def _chosen(
    path: Path,
    parts: set[str],
    split: Split | None,
    form: str = "it has no folder {} with folders named after classes",
) -> str | None:
    """The part that is `split`, or None for the whole set; `form` says that there is none."""
    if split is None or (split == "train" and parts == {""}):
        return None
    for part in WANTED[split]:
        if part in parts:
            return part
    if parts == {""} and PARTS.get(path.name.lower()) in WANTED[split]:
        return None
    wanted = " or ".join(WANTED[split])
    raise ValueError(f"{path}: {form.format(wanted)}")
