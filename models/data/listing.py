"""The images of a folder or tar archive, with their classes and the positions of their bytes."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import image_files, labels
from models.data import imagenet, label_list
from models.data.label_list import Targets

Split = Literal["train", "test"]
# Folders above those of the classes that name the part of a set.
PARTS = ("train", "test", "val")
# Pillow's own limit can be disabled for the process.
MAX_PIXELS = 100_000_000
BROKEN_ARCHIVE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
LEVELS_ABOVE = 4  # From ILSVRC/Data/CLS-LOC/val to beside ILSVRC.


class _Member(NamedTuple):
    name: str
    offset: int
    length: int
    read: Callable[[], bytes]


class _Place(NamedTuple):
    """Where an image lies. `part`: the part of the set named by its folders, or "". `flat`: an
    ImageNet validation image outside a folder of its class."""

    folders: tuple[str, ...]
    name: str
    part: str
    flat: bool


class _Labelled(NamedTuple):
    member: _Member
    label: str
    part: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of `path` in order; small enough to copy to worker processes.

    `names`: bytes [N], relative to `path`. `targets`: int64 [N], indices into `classes`; or bool
        [N, K], which of the classes each image belongs to.
    `offsets`, `lengths`: int64 [N], positions of the images in the archive; empty for a folder.
    `compressed`: the images can only be read in order, by `each`.
    """

    path: Path
    names: NDArray[np.bytes_]
    targets: Targets
    classes: tuple[str, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    compressed: bool

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def open(self, index: int) -> Image.Image:
        """Image `index` with its header read; decoding it may still fail.

        Raises:
            Exception: any error of Pillow for a file that is not an image.
        """
        return opened(self._bytes(index))

    def _bytes(self, index: int) -> bytes:
        if not len(self.offsets):
            return (self.path / self.name(index)).read_bytes()
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            return file.read(int(self.lengths[index]))

    def part(self, rows: NDArray[np.int64]) -> Listing:
        """The images at `rows` int64 [n], in ascending order."""
        archive = len(self.offsets) > 0
        return replace(
            self,
            names=self.names[rows],
            targets=self.targets[rows],
            offsets=self.offsets[rows] if archive else self.offsets,
            lengths=self.lengths[rows] if archive else self.lengths,
        )

    def each(self) -> Iterator[Callable[[], Image.Image]]:
        """A function that opens each image, in order; call it before asking for the next."""
        if not self.compressed:
            for index in range(len(self)):
                yield partial(self.open, index)
            return
        position = 0
        for member in _members(self.path):
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
    """The images at `path`; the class of an image is its folder, or the archive within `path`; or
    its classes are those of a list, see `label_list.read`.

    `split` chooses the images below a folder `train`, or below `test` (else `val`); a set without
    such folders is a training set. ImageNet's validation images may share one folder, see
    `imagenet.ground_truth`. Classes are in alphabetical order; ImageNet's 1000 synsets get their
    labels as class names, in the same order.

    Raises:
        ValueError: there are no images, or one has no class; the message names it.
    """
    if label_list.is_list(path):
        return _listed(path)
    ground_truth = cache(imagenet.ground_truth)  # A folder's file is read once.
    images: list[_Labelled] = []
    parts: set[str] = set()
    flat = False
    for member in _members(path):
        place = _place(path, member.name)
        parts.add(place.part)
        if place.part and split and (place.part == "train") != (split == "train"):
            continue
        if place.flat:
            flat, label = True, _synset(place.name, *ground_truth(_around(path, place.folders)))
        elif place.folders and place.folders[-1] != "..":
            label = place.folders[-1]
        else:
            raise ValueError(
                f"{path}: {member.name} is not in a folder named after its class; or give a list "
                f"of images, a {label_list.SUFFIX} file"
            )
        images.append(_Labelled(member._replace(read=bytes), label, place.part))
    if not parts:
        raise ValueError(f"{path}: no images in folders named after classes")
    chosen = _chosen(path, parts, split)
    images = [image for image in images if chosen is None or image.part == chosen]
    names = tuple(sorted({image.label for image in images}))
    if flat and set(names) <= set(imagenet.synsets()):
        names = imagenet.synsets()
    index = {name: position for position, name in enumerate(names)}
    archive = not path.is_dir()
    members = [image.member for image in images]
    return Listing(
        path,
        np.array([os.fsencode(member.name) for member in members]),
        np.array([index[image.label] for image in images], dtype=np.int64),
        labels.read("imagenet1k") if names == imagenet.synsets() else names,
        np.array([member.offset for member in members if archive], dtype=np.int64),
        np.array([member.length for member in members if archive], dtype=np.int64),
        archive and _compressed(path),
    )


def _listed(path: Path) -> Listing:
    """The images of a list, whose files are relative to its folder; it has no parts."""
    names, targets, classes = label_list.read(path)
    nowhere = np.array([], dtype=np.int64)
    encoded = np.array([os.fsencode(name) for name in names])
    return Listing(path.parent, encoded, targets, classes, nowhere, nowhere, compressed=False)


def _place(path: Path, member: str) -> _Place:
    *folders, name = (part for part in member.split("/") if part not in ("", "."))
    flat = bool(imagenet.VALIDATION.fullmatch(name)) and not imagenet.SYNSET.fullmatch(
        folders[-1] if folders else path.name
    )
    above = folders if flat else folders[:-1]
    part = next((folder for folder in reversed(above) if folder in PARTS), "")
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


def _chosen(path: Path, parts: set[str], split: Split | None) -> str | None:
    """The part that is `split`, or None for the whole set."""
    if split is None or (split == "train" and parts == {""}):
        return None
    for part in ("train",) if split == "train" else ("test", "val"):
        if part in parts:
            return part
    if split == "test" and parts == {""} and path.name in ("test", "val"):
        return None
    wanted = "train" if split == "train" else "test or val"
    raise ValueError(f"{path}: it has no folder {wanted} with folders named after classes")


def _members(path: Path) -> Iterator[_Member]:
    """Every image below `path`; those in folders are sorted by name."""
    if path.is_dir():
        for name in sorted(_walk(path), key=lambda name: name.split("/")):
            yield _Member(name, 0, 0, (path / name).read_bytes)
        return
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.lower().endswith(".tar"):
                    yield from _images(archive, [member], "", 0)
                elif file := archive.extractfile(member):
                    above = f"{PurePosixPath(member.name).stem}/"
                    with tarfile.open(fileobj=file) as images:
                        yield from _images(images, images, above, member.offset_data)
    except (*BROKEN_ARCHIVE, LookupError, RecursionError) as error:  # Links may be broken.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: neither a folder nor a whole tar archive ({reason})") from None


def _images(
    archive: tarfile.TarFile,
    members: Sequence[tarfile.TarInfo] | tarfile.TarFile,
    above: str,
    at: int,
) -> Iterator[_Member]:
    for member in members:
        if not is_image(member.name) or member.isdir():
            continue
        # A link has no bytes; its target does.
        target = member if member.isreg() else _target(archive, member)
        read = partial(_content, archive, target)
        yield _Member(above + member.name, at + target.offset_data, target.size, read)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: IO[bytes] | None = archive.extractfile(member)
    return file.read() if file else b""


def _target(archive: tarfile.TarFile, link: tarfile.TarInfo) -> tarfile.TarInfo:
    name = link.linkname
    if link.issym():
        name = os.path.normpath(PurePosixPath(link.name).parent / link.linkname)
    target = archive.getmember(name)
    return target if target.isreg() else _target(archive, target)


def _walk(path: Path) -> Iterator[str]:
    """Names of image files below `path`; follows links to folders, but not in circles."""
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(path, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below = Path(folder).relative_to(path).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for file in files:
            if is_image(file):
                yield prefix + file


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image."""
    # Called a million times; pathlib would take seconds.
    return os.path.splitext(name)[1].lower() in image_files.SUFFIXES  # noqa: PTH122


def _compressed(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return False
    except tarfile.TarError:
        return True
