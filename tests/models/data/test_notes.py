"""What a user may not expect of folders and classes is said, and nothing else."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from models.data.collection import find
from models.data.notes import of_classes

APART = unicodedata.normalize("NFD", "löwe")


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (["train/cat/0.png", "train/dog/0.png", "val/cat/0.png"], []),
        (["cat/0.png", "Cat/0.png"], ["'Cat' and 'cat' differ in case or spaces only"]),
        (["dogs/brown/0.png", "cats/brown/0.png"], ["are one class, 'brown'"]),
        (["cat/0.png", "cat/kitten/1.png"], ["'kitten' lies in the folder of the class 'cat'"]),
        (
            ["cat/0.png", "dog/0.png", "owl/", "x/y/"],
            ["folders without images are no classes: owl"],
        ),
    ],
)
def test_the_unexpected_is_said(tmp_path: Path, names: list[str], notes: list[str]) -> None:
    for name in names:
        folder = tmp_path / name.rpartition("/")[0]
        folder.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            Image.new("L", (4, 4)).save(tmp_path / name)
    found = find(tmp_path).notes
    assert len(found) == len(notes), found
    for said, words in zip(found, notes, strict=True):
        assert words in said


def test_both_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    for folder in ("löwe", APART, "katze"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / folder / "0.png")
    found = find(tmp_path)
    assert (found.classes, len(found), found.notes) == (("katze", "löwe"), 3, ())
    assert found.relabelled((APART, "katze")).targets.tolist() == [1, 0, 0]
    assert [found.images.open(index).size for index in range(3)] == [(4, 4)] * 3


def test_classes_that_differ_otherwise_are_as_they_are() -> None:
    assert of_classes(("cat", "cats", "dog")) == ()
