"""Checks a data set before training, and says in plain words what does not suit it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.collection import Collection
from models.preprocess import InputSpec, upright_rgb
from models.suggestions import first_few

FEW = 20  # Images in all.
UNEVEN = 10  # The largest class, in smallest ones.
SAMPLED = 32  # Images that are opened.
THUMBNAIL = 32  # Their side in pixels, for comparing them.
HUGE, TINY = 4.0, 0.75  # The images' shorter side, in the network's.
LEAST = 16  # Pixels of an input that is worth training.
MOSTLY = 0.9
GREY_DIFFERENCE = 6  # Between channels, of 255: JPEGs of grey images are not quite grey.


class _Look(NamedTuple):
    width: int
    height: int
    grey: bool
    pixels: bytes


def check(collection: Collection) -> None:
    """Whether training is possible at all.

    Raises:
        ValueError: images have several labels or none, or all are of one class.
    """
    if not collection.exclusive:
        raise ValueError(
            f"{collection.path}: some of its images have several labels or none; training takes "
            "images with one label each"
        )
    if len(np.unique(collection.targets)) < 2:
        name = collection.classes[int(collection.targets[0])] if len(collection) else ""
        raise ValueError(
            f"{collection.path}: training needs at least two classes; all {len(collection)} images "
            f"are of {name!r}"
        )


def advice(training: Collection, spec: InputSpec, others: Sequence[Collection] = ()) -> list[str]:
    """What the user of a set should know before training a network with the input `spec` on it, in
    a line each; empty if all is well. Opens `SAMPLED` images.

    `others`: the sets for validation and tests. They may lack classes, and are measured on those
    that they have; align them by `other.relabelled(training.classes)`.

    Raises:
        ValueError: see `check`; or another set has classes that training lacks: they are named.
    """
    check(training)
    lines = [*_of_classes(training), *training.notes]
    for other in others:
        aligned = other.relabelled(training.classes)
        present = _present(aligned)
        lacking = [name for name, there in zip(training.classes, present, strict=True) if not there]
        if lacking:
            lines.append(
                f"{other.path.name} has no images of {_listed(lacking)}; "
                "accuracy is that of the other classes"
            )
        lines += other.notes
    looks = list(_looks(training))
    lines += [*_of_sizes(looks, spec), *_of_colours(looks, spec)]
    return list(dict.fromkeys(lines))


def _present(collection: Collection) -> NDArray[np.bool_]:
    """Which classes have images, bool [K]."""
    there = np.zeros(len(collection.classes), dtype=np.bool_)
    there[collection.targets if collection.exclusive else collection.targets.any(axis=0)] = True
    return there


def _of_classes(collection: Collection) -> Iterator[str]:
    counts = np.bincount(collection.targets, minlength=len(collection.classes))
    by_count = dict(zip(collection.classes, counts.tolist(), strict=True))
    if len(collection) < FEW:
        yield f"{len(collection)} images in all are too few to learn from; collect at least {FEW}"
    if none := [name for name, count in by_count.items() if count == 0]:
        yield f"no training images of {_listed(none)}"
    if one := [name for name, count in by_count.items() if count == 1]:
        yield f"a single image of {_listed(one)}, which leaves none for validation; collect more"
    least = min((name for name in by_count if by_count[name]), key=by_count.__getitem__)
    most = max(by_count, key=by_count.__getitem__)
    if by_count[most] >= UNEVEN * by_count[least]:
        yield (
            f"{by_count[most]} images of {most!r} but {by_count[least]} of {least!r}; "
            "--balance loss or --balance sampling makes up for it"
        )


def _listed(names: Sequence[str]) -> str:
    return first_few([*map(repr, names)])


def _looks(collection: Collection) -> Iterator[_Look]:
    """Evenly spaced images, or the first ones of a compressed archive; without unreadable ones."""
    images = collection.images
    openers: Iterator[Callable[[], Image.Image]]
    if images.compressed:
        openers = islice(images.each(), SAMPLED)
    else:
        rows = np.unique(np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int))
        openers = images.part(rows).each()
    for opener in openers:
        try:
            with opener() as image:
                yield _look(image)
        except Exception:  # noqa: BLE001, S112  (damaged data raises any error; training names it)
            continue


def _look(image: Image.Image) -> _Look:
    width, height = image.size
    image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
    small = upright_rgb(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixels = np.asarray(small).astype(np.int16)
    grey = bool(np.ptp(pixels, axis=2).max() <= GREY_DIFFERENCE)
    return _Look(width, height, grey, small.tobytes())


def _of_sizes(looks: Sequence[_Look], spec: InputSpec) -> Iterator[str]:
    if not looks:
        return
    width, height = (int(np.median(sides)) for sides in list(zip(*looks, strict=True))[:2])
    shorter, wanted = min(width, height), min(spec.height, spec.width)
    shown = f"the images are {width} x {height} pixels (median)"
    if shorter < TINY * wanted:
        yield (
            f"{shown} and are enlarged to {spec.width} x {spec.height}; "
            + (
                f"--size {shorter} trains faster"
                if shorter >= LEAST
                else "look for larger originals"
            )
        )
    elif shorter > HUGE * min(spec.box):
        yield (
            f"{shown} for an input of {spec.width} x {spec.height}, and decoding them takes most "
            f"of the time; shrink them once, to a shorter side of {2 * min(spec.box)}"
        )


def _of_colours(looks: Sequence[_Look], spec: InputSpec) -> Iterator[str]:
    if len(looks) > 1 and len({look.pixels for look in looks}) == 1:
        yield f"all of the {len(looks)} images looked at are the same picture"
    grey = sum(look.grey for look in looks)
    if looks and grey >= MOSTLY * len(looks) and spec.shape[2] > 1:
        most = "the images are" if grey == len(looks) else "most images are"
        yield f"{most} grey, and the network sees {spec.channels}; --channels grey needs less"
