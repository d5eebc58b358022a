"""Lists of images with any number of labels, or the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data import datasets, label_list
from models.data.collection import find, has_test_set
from models.data.source import held_out, open_source
from models.data.streamed import stream
from models.preprocess import CIFAR


def written(path: Path, text: str) -> Path:
    for shade, name in enumerate(("a.png", "in/b.png", "c, d.png")):
        (path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(path / name)
    (path / "list.csv").write_text(text, "utf-8")
    return path / "list.csv"


SEVERAL = 'file,labels,split\nin/b.png, zebra ; ape,x\n"c, d.png",,x\na.png,ape,x\n'


def test_an_image_has_the_labels_of_its_line(tmp_path: Path) -> None:
    names, targets, labels = label_list.read(written(tmp_path, SEVERAL))
    assert names == ["in/b.png", "c, d.png", "a.png"]
    assert labels == ("ape", "zebra")
    assert targets.dtype == np.bool_
    assert targets.tolist() == [[True, True], [False, False], [True, False]]


def test_images_are_read_in_the_order_of_the_list_from_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, "﻿" + SEVERAL)
    data = datasets.read(path, CIFAR)
    assert data.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert data.source == "list.csv"
    other = data.relabelled(("zebra", "cow", "ape"))
    assert other.targets.tolist() == [[True, False, True], [False] * 3, [False, False, True]]
    batches = stream(path, CIFAR, batch_size=2).relabelled(("zebra", "cow", "ape"))
    assert not batches.exclusive
    assert np.concatenate([targets for _, targets in batches]).tolist() == other.targets.tolist()
    with pytest.raises(ValueError, match="class 'zebra' is not one of the model's labels"):
        data.relabelled(("ape",))
    assert not has_test_set(path)


def test_with_one_label_each_it_is_a_set_of_classes(tmp_path: Path) -> None:
    path = written(tmp_path, 'labels,file\ndog,a.png\ncat,in/b.png\ndog;dog,"c, d.png"\n')
    found = find(path, "train")
    assert (found.classes, found.targets.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert found.exclusive
    assert len(open_source(path, CIFAR, "cpu")) == 3


def test_training_takes_one_label_each(tmp_path: Path) -> None:
    path = written(tmp_path, SEVERAL)
    for refused in (lambda: open_source(path, CIFAR, "cpu"), lambda: held_out(path, CIFAR, 1)):
        with pytest.raises(ValueError, match="training takes images with one label each"):
            refused()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "file,labels\na.png,x\nnowhere.png,y\n")
    with pytest.raises(ValueError, match=r"nowhere\.png is not a readable image \(.*No such file"):
        datasets.read(path, CIFAR)
    assert datasets.read(path, CIFAR, corrupt="skip").skipped == ("nowhere.png",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with the line file,labels"),
        ("a.png,cat\n", "begins with the line file,labels"),
        ("file,labels\n", "it names no image"),
        ("file,labels\na.png,\n", "it names no label"),
        ("file,labels\na.png,x\na.png,y\n", "line 3 names a.png again"),
        ("file,labels\na.png\n", "line 2 is not FILE,LABEL;LABEL"),
        ("file,labels\n,cat\n", "line 2 is not FILE,LABEL;LABEL"),
        ('file,labels\n"a.png,x\n', "not a CSV file"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"\A\S+x\.csv: [^\n]*{words}[^\n]*\Z"):
        label_list.read(tmp_path / "x.csv")


def test_what_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"file,labels\n\xff\xfe,\n")
    with pytest.raises(ValueError, match=r"x\.csv: not a CSV file in UTF-8"):
        label_list.read(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"y\.csv: no such file"):
        find(tmp_path / "y.csv")
    (tmp_path / "z.csv").mkdir()
    assert not label_list.is_list(tmp_path / "z.csv")
