"""Hugging Face's image folders: labels in a table `metadata` beside the images."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from models.data.collection import find, has_split

ROWS = [("0.png", "cat"), ("in/1.png", "dog")]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def metadata(folder: Path, kind: str, rows: list[tuple[str, str]] = ROWS) -> None:
    for name, _ in rows:
        image(folder / name)
    path = folder / f"metadata.{kind}"
    if kind == "parquet":
        made = [{"file_name": name, "label": label} for name, label in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), path)
        return
    form = '{{"file_name": "{}", "label": "{}"}}\n' if kind == "jsonl" else "{},{}\n"
    header = "" if kind == "jsonl" else "file_name,label\n"
    path.write_text(header + "".join(form.format(*row) for row in rows))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_are_those_of_the_table_in_each_part(tmp_path: Path, kind: str) -> None:
    metadata(tmp_path / "train", kind)
    metadata(tmp_path / "validation", kind, [("9.png", "dog")])
    found = find(tmp_path, "train")
    assert [found.images.name(i) for i in range(2)] == ["train/0.png", "train/in/1.png"]
    assert (found.classes, found.targets.tolist()) == (("cat", "dog"), [0, 1])
    assert found.images.open(1).size == (4, 4)
    assert find(tmp_path, "validation").images.name(0) == "validation/9.png"
    assert has_split(tmp_path, "validation")
    assert not has_split(tmp_path, "test")


def test_one_table_may_describe_all_parts(tmp_path: Path) -> None:
    metadata(tmp_path, "csv", [("train/0.png", "cat"), ("test/0.png", "dog")])
    assert find(tmp_path, "train").classes == ("cat",)
    assert find(tmp_path, "test").classes == ("dog",)


def test_images_that_are_not_in_the_table_are_left_out_and_counted(tmp_path: Path) -> None:
    metadata(tmp_path, "csv")
    image(tmp_path / "in" / "2.png")
    assert find(tmp_path).notes == ("1 images are not in metadata.csv and are left out",)


def test_the_table_that_lacks_an_image_is_not_said_to_be_that_of_another_part(
    tmp_path: Path,
) -> None:
    metadata(tmp_path / "train", "csv")
    metadata(tmp_path / "test", "csv")
    image(tmp_path / "train" / "in" / "2.png")
    assert find(tmp_path).notes == ("1 images are not in metadata.csv and are left out",)


def test_a_table_without_labels_leaves_the_classes_to_folders(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "0.png")
    image(tmp_path / "dog" / "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/0.png,a cat\n")
    assert find(tmp_path).classes == ("cat", "dog")


def test_a_file_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    metadata(tmp_path, "csv")
    (tmp_path / "in" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"metadata\.csv: line 3: there is no file in/1\.png"):
        find(tmp_path)
