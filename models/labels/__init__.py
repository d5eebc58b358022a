"""Class names, one per line in the order of the network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from models import files

NAMES = ("cifar10", "cifar100", "imagenet1k")


def read(source: str) -> tuple[str, ...]:
    """Labels by name ("cifar10", "cifar100", "imagenet1k") or from a text file, one per line.

    Raises:
        ValueError: `source` is neither such a name nor a readable file, or a label is empty.
    """
    if source in NAMES:
        text = resources.files(__name__).joinpath(f"{source}.txt").read_text("utf-8")
    else:
        try:
            text = files.read_text(Path(source))
        except UnicodeDecodeError:
            raise ValueError(f"labels {source!r}: the file is not text in UTF-8") from None
        except OSError as error:
            choices = ", ".join(NAMES)
            raise ValueError(
                f"labels {source!r} are neither {choices} nor a file that can be read "
                f"({error.strerror})"
            ) from None
    labels = tuple(line.strip() for line in text.splitlines())
    if not labels or not all(labels):
        raise ValueError(f"labels {source!r} have an empty line or none at all")
    return labels


def default(num_classes: int) -> tuple[str, ...]:
    """The labels of the usual data set with this many classes, or else "class 0" and so on."""
    known = {10: "cifar10", 100: "cifar100", 1000: "imagenet1k"}
    if num_classes in known:
        return read(known[num_classes])
    return tuple(f"class {index}" for index in range(num_classes))


def synsets(labels: Sequence[str]) -> tuple[str, ...]:
    """WordNet's ids ("n01440764") of `labels` in order, if they are ImageNet's; else ().

    ImageNet's folders have these names.
    """
    if tuple(labels) != read("imagenet1k"):
        return ()
    text = resources.files(__name__).joinpath("imagenet1k_synsets.txt").read_text("utf-8")
    return tuple(text.split())
