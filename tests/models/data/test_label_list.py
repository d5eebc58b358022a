"""Lists of images with their labels, or the line that is wrong."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from models.data import datasets, label_list
from models.data.collection import find, has_split, has_test_set
from models.data.source import held_out, open_source
from models.data.streamed import stream
from models.preprocess import CIFAR


def written(path: Path, text: str, name: str = "list.csv") -> Path:
    for shade, file in enumerate(("a.png", "in/b.png", "c, d.png")):
        (path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(path / file)
    (path / name).write_text(text, "utf-8")
    return path / name


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        find(path)
    return str(caught.value)


SEVERAL = 'file,labels,note\nin/b.png, zebra ; ape,x\n"c, d.png",,x\na.png,ape,x\n'


def test_an_image_has_the_labels_of_its_line(tmp_path: Path) -> None:
    found = find(written(tmp_path, SEVERAL))
    assert [found.images.name(i) for i in range(3)] == ["in/b.png", "c, d.png", "a.png"]
    assert found.classes == ("ape", "zebra")
    assert found.targets.dtype == np.bool_
    assert found.targets.tolist() == [[True, True], [False, False], [True, False]]


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


@pytest.mark.parametrize(
    "columns",
    [
        "image,label",
        "filename,label",
        "path,class",
        "id,breed",
        "image_id,target",
        "File Path,Class Name",
        "img,category",
        "image_name,species",
        "file_name;label",
        "Filepaths\tlabels",
    ],
)
def test_the_usual_columns_are_understood(tmp_path: Path, columns: str) -> None:
    separator = next(each for each in ";\t," if each in columns)
    rows = [("a.png", "cat"), ("in/b.png", "dog")]
    text = "\n".join([columns, *(separator.join(row) for row in rows)])
    found = find(written(tmp_path, text))
    assert (found.classes, found.targets.tolist()) == (("cat", "dog"), [0, 1])


def test_names_of_classes_are_preferred_to_their_numbers(tmp_path: Path) -> None:
    text = "id,file,label,label_name\n7,a.png,1,cat\n8,in/b.png,0,dog\n"
    found = find(written(tmp_path, text))
    assert (found.classes, found.targets.tolist()) == (("cat", "dog"), [0, 1])


def test_one_label_may_have_a_semicolon(tmp_path: Path) -> None:
    found = find(written(tmp_path, "file,label\na.png,a;b\nin/b.png,c\n"))
    assert found.classes == ("a;b", "c")
    assert found.exclusive


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_other_tables_are_lists_too(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.png", "class": "cat"},
        {"image": "in/b.png", "class": "dog"},
    ]
    text = {
        "tsv": "image\tclass\na.png\tcat\nin/b.png\tdog\n",
        "jsonl": "".join(json.dumps(row) + "\n\n" for row in rows),
        "parquet": "",
    }[kind]
    path = written(tmp_path, text, f"list.{kind}")
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = datasets.read(path, CIFAR)
    assert (data.classes, data.targets.tolist()) == (("cat", "dog"), [0, 1])
    assert data.images[:, 0, 0, 0].tolist() == [0, 1]


def test_whole_numbers_and_arrays_are_labels(tmp_path: Path) -> None:
    path = written(tmp_path, "", "list.parquet")
    rows = [{"file": "a.png", "label": 1.0}, {"file": "in/b.png", "label": 0.0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert find(path).classes == ("0", "1")
    rows = [{"file": "a.png", "labels": ["x", "y"]}, {"file": "in/b.png", "labels": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert find(path).targets.tolist() == [[True, True], [False, False]]


def test_no_number_is_no_label(tmp_path: Path) -> None:
    path = written(tmp_path, '{"file": "a.png", "label": NaN}', "list.jsonl")
    assert "line 1 has nothing in the column label" in refusal(path)


def test_a_column_says_the_split(tmp_path: Path) -> None:
    text = 'file,label,split\na.png,x,train\nin/b.png,y,TRAIN\n"c, d.png",y,valid\n'
    path = written(tmp_path, text)
    assert [len(find(path, split)) for split in ("train", "validation", "test", None)] == [
        *(2, 1, 1, 3)
    ]
    assert find(path, "test").images.name(0) == "c, d.png"
    assert (has_split(path, "validation"), has_split(path, "test")) == (True, False)
    assert has_test_set(path)
    path.write_text("file,label,split\na.png,x,train\n")
    with pytest.raises(ValueError, match=r"list\.csv: it has no rows of test or val\Z"):
        find(path, "test")
    path.write_text("file,label,set\na.png,x,7\n")
    assert "line 2 has '7' in the column set, which should be train, val or test" in refusal(path)


def test_files_are_found_without_suffix_and_in_a_folder_beside_the_list(tmp_path: Path) -> None:
    found = find(written(tmp_path, "id,breed\nb,cat\na,dog\n"))
    assert [found.images.name(i) for i in range(2)] == ["in/b.png", "a.png"]
    path = written(tmp_path, "id,breed\nin\\b.png,cat\na,dog\n")
    assert find(path).images.name(0) == "in/b.png"
    (tmp_path / "b.gif").write_bytes(b"")
    path = written(tmp_path, "id,breed\nb,cat\na,dog\n")
    assert "line 2: b may be b.gif or in/b.png; write the folder" in refusal(path)


def test_names_are_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "löwe")
    Image.new("RGB", (4, 4)).save(tmp_path / f"{apart}.png")
    path = written(tmp_path, f"file,label\nlöwe.png,löwe\na.png,{apart}\nin/b.png,x\n")
    found = find(path)
    assert found.classes == ("löwe", "x")
    assert found.images.open(0).size == (4, 4)


def test_a_file_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "file,labels\na.png,x\nnowhere.png,y\n")
    said = r"nowhere\.png is not a readable image \(No such file, says line 3 of list\.csv\)"
    with pytest.raises(ValueError, match=said):
        datasets.read(path, CIFAR)
    assert datasets.read(path, CIFAR, corrupt="skip").skipped == ("nowhere.png",)
    assert find(path).notes == ("1 of 2 files are not there, the first is nowhere.png in line 3",)
    path.write_text("file,labels\nx/a.png,x\n")
    assert refusal(path).endswith(
        "none of its 1 files is there, such as x/a.png; they are looked for relative to the list"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column is the image; its columns: none"),
        ("a.png,cat\n", "no column is the image; its columns: a.png, cat; a list has a column"),
        ("file,healthy,rust\n", "no column is the label; its columns: file, healthy, rust"),
        ("file,labels\n", "it names no image"),
        ("file,labels\na.png,\n", "no image has a label"),
        ("file,label\na.png,\n", "line 2 has nothing in the column label"),
        ("file,labels\na.png,x\na.png,y\n", "line 3 names a.png again"),
        ("file,labels\na.png,x\n./a.png,y\n", "line 2: another line names a.png too"),
        ("file,labels\na.png,x\na,y\n", "line 2: another line names a.png too"),
        ("file,labels,split\na.png,x,train\n./a.png,x,test\n", "line 2: another line names a.png"),
        ("file,labels\na.png\n", "line 2 has 1 fields, not 2"),
        ("file,labels\na.png,b,c\n", "line 2 has 3 fields, not 2"),
        ("file,labels\n,cat\n", "line 2 names no file in the column file"),
        ('file,labels\n"a.png,x\n', "not a CSV file"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    said = refusal(written(tmp_path, text))
    assert said.startswith(f"{tmp_path / 'list.csv'}: ")
    assert words in said


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl", "x.parquet"):
        assert refusal(tmp_path / name) == f"{tmp_path / name}: no such file or folder"
    (tmp_path / "z.csv").mkdir()
    assert not label_list.is_list(tmp_path / "z.csv")
