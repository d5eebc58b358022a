"""What the user of a set of images may not expect of its folders and classes, in a line each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from models.data.label_list import normal
from models.suggestions import first_few


def of_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Classes whose names differ in case or in spaces only."""
    alike = defaultdict(list)
    for name in classes:
        alike["".join(name.casefold().split())].append(name)
    return tuple(
        f"the classes {names[0]!r} and {names[1]!r} differ in case or spaces only; they are two "
        "classes"
        for names in alike.values()
        if len(names) > 1
    )


def of_unread(suffixes: Mapping[str, int]) -> tuple[str, ...]:
    """A note that counts the images in formats that are not read, by suffix."""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
    return (f"files that are not read: {listed}; convert them to PNG",) if listed else ()


def of_outside(names: Sequence[str], parts: Collection[str]) -> tuple[str, ...]:
    """Images that are in none of a set's parts; those in a folder called like one are without
    class."""
    left = [name for name in names if f"/{name}".split("/")[-2].lower() not in parts]
    if not left:
        return ()
    return (f"{len(left)} images are in no part of the set and are left out, such as {left[0]}",)


def of_folders(
    names: Sequence[str], empty: Sequence[str], parts: Collection[str]
) -> tuple[str, ...]:
    """What is unusual in the folders of images whose names are given. `empty`: folders without
    images. `parts`: names of folders that are no classes but parts of the set."""
    # Many images share a folder.
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names)
    above: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        *outer, label = folder.split("/")
        above[normal(label)].add("/".join(each for each in outer if each.lower() not in parts))
    notes = []
    for label, outer_folders in above.items():
        if len(outer_folders) > 1:
            first, second = (f"{each or '.'}/{label}" for each in sorted(outer_folders)[:2])
            notes.append(f"{first} and {second} are one class, {label!r}, after the inner folder")
        for each in outer_folders:
            outer_label = normal(each.rpartition("/")[2])
            if outer_label in above:
                notes.append(
                    f"{label!r} lies in the folder of the class {outer_label!r}, and is a class of "
                    "its own"
                )
    beside = {folder.rpartition("/")[0] for folder in folders}
    lacking = [name for name in empty if name.rpartition("/")[0] in beside and name not in folders]
    if lacking:
        notes.append(f"folders without images are no classes: {first_few(lacking)}")
    return (*dict.fromkeys(notes), *of_classes(tuple(above)))
