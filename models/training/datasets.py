"""Labelled images as uint8 arrays, from folders or tar archives laid out `CLASS/FILE`."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.labels import synsets
from models.preprocess import InputSpec, decode_at_scale, resize_and_crop, upright_rgb

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
Corrupt = Literal["fail", "skip"]
# Pillow has a limit too, but one that a process may have lifted.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Dataset:
    """`images` uint8 [N, H, W, 3], `targets` int64 [N] into `classes`, and where they came from.

    `skipped`: the names of files that could not be read.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()

    def relabelled(self, labels: Sequence[str]) -> Dataset:
        """The same images with targets that index `labels`.

        Raises:
            ValueError: a class is none of `labels`.
        """
        index = {label: position for position, label in enumerate(labels)}
        index |= {synset: position for position, synset in enumerate(synsets(labels))}
        unknown = [label for label in self.classes if label not in index]
        if unknown:
            raise ValueError(f"{self.source}: class {unknown[0]!r} is no label of the model")
        positions = np.array([index[label] for label in self.classes], dtype=np.int64)
        return replace(self, targets=positions[self.targets], classes=tuple(labels))


def read(
    path: Path,
    spec: InputSpec,
    progress: Callable[[int], object] = lambda count: None,
    *,
    corrupt: Corrupt = "fail",
) -> Dataset:
    """Every image under `path`, resized and cropped by `spec`; classes in alphabetical order.

    `path` is a folder or a tar archive (plain or compressed); an image's class is the name of
    the folder it lies in. `progress` is called with the number of images read so far. With
    `corrupt` "skip", files that cannot be read are left out.

    Raises:
        ValueError: there are no images, or one cannot be read; the message names it.
    """
    found: list[tuple[str, NDArray[np.uint8]]] = []
    skipped: list[str] = []
    for each in decoded(path, spec, corrupt, skipped.append):
        found.append(each)
        progress(len(found))
    if not found:
        raise ValueError(f"{path}: no images in folders named by class")
    return labelled(found, path.name, skipped)


def decoded(
    path: Path, spec: InputSpec, corrupt: Corrupt, skip: Callable[[str], object]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The class and the pixels of each image, as `read` reads them; `skip` is told why each of the
    others is left out."""
    for name, data in _files(path):
        if not PurePosixPath(name).parent.name:
            raise ValueError(f"{path}: {name} lies in no folder named by its class")
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels")  # noqa: TRY301
                decode_at_scale(image, spec)
                pixels = resize_and_crop(upright_rgb(image), spec)
        except Exception as error:  # noqa: BLE001  (PIL raises whatever broken data leads to)
            reason = f"{name} is no readable image ({error})"
            if corrupt == "fail":
                raise ValueError(f"{path}: {reason}") from None
            skip(reason)
            continue
        yield PurePosixPath(name).parent.name, pixels


def labelled(
    found: Sequence[tuple[str, NDArray[np.uint8]]], source: str, skipped: Sequence[str] = ()
) -> Dataset:
    """The data set of images with their classes."""
    classes = tuple(sorted({label for label, _ in found}))
    index = {label: i for i, label in enumerate(classes)}
    images = np.stack([pixels for _, pixels in found])
    targets = np.array([index[label] for label, _ in found], dtype=np.int64)
    return Dataset(images, targets, classes, source, tuple(skipped))


def names(path: Path) -> list[str]:
    """The names of the images under `path`."""
    return [name for name, _ in _files(path, read=False)]


def _files(path: Path, *, read: bool = True) -> Iterator[tuple[str, bytes]]:
    """The images' names and, unless `read` is false, their bytes."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes() if read else b""
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                suffix = PurePosixPath(member.name).suffix.lower()
                content = archive.extractfile(member) if suffix in SUFFIXES else None
                if content is not None:
                    yield member.name, content.read() if read else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: neither a folder nor a whole tar archive ({reason})") from None
