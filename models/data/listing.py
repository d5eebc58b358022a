"""Which images a folder or tar archive holds, of which class, and where their bytes are."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models import labels
from models.data import imagenet

Split = Literal["train", "test"]
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
# Folders above those of the classes that say which part of a set they hold.
PARTS = ("train", "test", "val")
# Pillow has a limit too, but one that a process may have lifted.
MAX_PIXELS = 100_000_000
BROKEN_ARCHIVE = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)
LEVELS_ABOVE = 4  # From ILSVRC/Data/CLS-LOC/val to beside ILSVRC.


class _Member(NamedTuple):
    name: str
    offset: int
    length: int
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """Images of `path` in their order there; a worker process is given a copy.

    `names`: bytes [N], below `path`. `targets`: int64 [N] into `classes`. `offsets`, `lengths`:
    int64 [N], of an image's bytes in the archive; empty for a folder. `compressed`: they can only
    be read in their order, by `contents`.
    """

    path: Path
    names: NDArray[np.bytes_]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    compressed: bool

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def open(self, index: int) -> Image.Image:
        """Image `index`, its header read; whoever decodes it may find that it is broken.

        Raises:
            Exception: whatever Pillow makes of what is no image.
        """
        return opened(self._bytes(index))

    def _bytes(self, index: int) -> bytes:
        if not len(self.offsets):
            return (self.path / self.name(index)).read_bytes()
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            return file.read(int(self.lengths[index]))

    def part(self, rows: NDArray[np.int64]) -> Listing:
        """The images `rows` int64 [n], which rise."""
        archive = len(self.offsets) > 0
        return replace(
            self,
            names=self.names[rows],
            targets=self.targets[rows],
            offsets=self.offsets[rows] if archive else self.offsets,
            lengths=self.lengths[rows] if archive else self.lengths,
        )

    def each(self) -> Iterator[Callable[[], Image.Image]]:
        """What opens each image, in order, to be called before the next is asked for."""
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
        ValueError: it has more pixels than any photograph.
        Exception: whatever else Pillow makes of what is no image.
    """
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    return image


def _read_and_open(read: Callable[[], bytes]) -> Image.Image:
    return opened(read())


def listing(path: Path, split: Split | None = None) -> Listing:
    """The images under `path`: an image's class is the folder it lies in, or the inner archive.

    `split` chooses the images below a folder `train`, or those below `test`, else `val`; a set
    without such folders is one for training. ImageNet's validation images may lie in one folder:
    see `imagenet.ground_truth`. Classes are in alphabetical order; all of ImageNet's 1000 synsets
    get our labels, which have the same order.

    Raises:
        ValueError: there are none, or one has no class; the message names it.
    """
    found: list[tuple[_Member, str, str]] = []
    truths: dict[Path, tuple[Path, dict[str, str]]] = {}
    parts: set[str] = set()
    flat = False
    for member in _members(path):
        *folders, name = (part for part in member.name.split("/") if part not in ("", "."))
        validation = bool(imagenet.VALIDATION.fullmatch(name)) and not imagenet.SYNSET.fullmatch(
            folders[-1] if folders else path.name
        )
        above = folders if validation else folders[:-1]
        part = next((each for each in reversed(above) if each in PARTS), "")
        parts.add(part)
        if part and split and (part == "train") != (split == "train"):
            continue
        if validation:
            folder = path.joinpath(*folders) if path.is_dir() else path.parent
            if folder not in truths:
                around = [folder, *list(folder.resolve().parents)[:LEVELS_ABOVE]]
                truths[folder] = imagenet.ground_truth(around)
            file, truth = truths[folder]
            if PurePosixPath(name).stem not in truth:
                raise ValueError(f"{file}: it has no line for {name}")
            label, flat = truth[PurePosixPath(name).stem], True
        elif folders and folders[-1] != "..":
            label = folders[-1]
        else:
            raise ValueError(f"{path}: {member.name} lies in no folder named by its class")
        found.append((member._replace(read=bytes), label, part))
    if not parts:
        raise ValueError(f"{path}: no images in folders named by class")
    chosen = _chosen(path, parts, split)
    found = [each for each in found if chosen is None or each[2] == chosen]
    classes = tuple(sorted({label for _, label, _ in found}))
    if flat and set(classes) <= set(imagenet.synsets()):
        classes = imagenet.synsets()
    index = {label: position for position, label in enumerate(classes)}
    if classes == imagenet.synsets():
        classes = labels.read("imagenet1k")
    archive = not path.is_dir()
    return Listing(
        path,
        np.array([os.fsencode(member.name) for member, *_ in found]),
        np.array([index[label] for _, label, _ in found], dtype=np.int64),
        classes,
        np.array([member.offset for member, *_ in found if archive], dtype=np.int64),
        np.array([member.length for member, *_ in found if archive], dtype=np.int64),
        archive and _compressed(path),
    )


def _chosen(path: Path, parts: set[str], split: Split | None) -> str | None:
    """Which of `parts` is `split`, or None if that is all there is."""
    if split is None or (split == "train" and parts == {""}):
        return None
    for part in ("train",) if split == "train" else ("test", "val"):
        if part in parts:
            return part
    if split == "test" and parts == {""} and path.name in ("test", "val"):
        return None
    wanted = "train" if split == "train" else "test or val"
    raise ValueError(f"{path}: it has no folder {wanted} with folders named by class")


def _members(path: Path) -> Iterator[_Member]:
    """Every image below `path`, those of folders sorted by their names."""
    if path.is_dir():
        for name in sorted(_walk(path), key=lambda name: name.split("/")):
            yield _Member(name, 0, 0, (path / name).read_bytes)
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.lower().endswith(".tar"):
                    yield from _images(archive, [member], "", 0)
                elif file := archive.extractfile(member):
                    above = f"{PurePosixPath(member.name).stem}/"
                    with tarfile.open(fileobj=file) as images:
                        yield from _images(images, images, above, member.offset_data)
    except (*BROKEN_ARCHIVE, LookupError, RecursionError) as error:  # Links may lead nowhere.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: neither a folder nor a whole tar archive ({reason})") from None


def _images(
    archive: tarfile.TarFile,
    members: Sequence[tarfile.TarInfo] | tarfile.TarFile,
    above: str,
    at: int,
) -> Iterator[_Member]:
    for member in members:
        if not _is_image(member.name) or member.isdir():
            continue
        # A link has no bytes of its own; what it leads to has.
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
    """Names of image files below `path`; links to folders are followed, but not in circles."""
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
            if _is_image(file):
                yield prefix + file


def _is_image(name: str) -> bool:
    # Asked a million times, of which pathlib would make seconds.
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _compressed(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return False
    except tarfile.TarError:
        return True
