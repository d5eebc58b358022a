"""Data sets whose images are in parquet or Arrow files, in the format of the library `datasets`."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from models.data import datasets, embedded
from models.data.collection import find, has_split
from models.preprocess import CIFAR

LABEL = {"names": ["zebra", "ape"], "_type": "ClassLabel"}
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    shades: list[int], labels: list[Any], feature: Any = LABEL, names: tuple[str, str] = ("", "")
) -> pyarrow.Table:
    image, label = names[0] or "image", names[1] or "label"
    images = pyarrow.array([{"bytes": png(s), "path": None} for s in shades], IMAGE)
    features = {image: {"_type": "Image"}, label: feature}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if feature else {}
    made = pyarrow.table({image: images, label: pyarrow.array(labels)})
    return made.replace_schema_metadata(metadata)


def parquet(path: Path, made: pyarrow.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(made, path, row_group_size=2)
    return path


def saved(folder: Path, shards: list[pyarrow.Table], **state: Any) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{index:05}-of-{len(shards):05}.arrow" for index in range(len(shards))]
    for name, made in zip(names, shards, strict=True):
        with pyarrow.ipc.new_stream(str(folder / name), made.schema) as writer:
            writer.write_table(made, max_chunksize=2)
    (folder / "cache-0.arrow").write_bytes(b"no part of the set")
    state = {"_data_files": [{"filename": name} for name in names]} | state
    (folder / "state.json").write_text(json.dumps(state))


def shades(path: Path, split: Any = None) -> list[tuple[str, int]]:
    data = datasets.read(path, CIFAR, split=split)
    pairs = zip(data.targets.tolist(), data.images[:, 0, 0, 0].tolist(), strict=True)
    return [(data.classes[target], shade) for target, shade in pairs]


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        find(path)
    return str(caught.value)


TRAIN = [("zebra", 1), ("ape", 2), ("ape", 3), ("zebra", 4)]


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"),
        ("default/train/0000", "default/train/0001", "default/test/0000"),
    ],
)
def test_shards_are_parts_by_their_names_or_folders(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    contents = (table([1, 2, 3], [0, 1, 1]), table([4], [0]), table([5], [1]))
    for name, made in zip(names, contents, strict=True):
        parquet(tmp_path / f"{name}.parquet", made)
    (tmp_path / "README.md").write_text("A card.")
    assert shades(tmp_path, "train") == TRAIN
    assert shades(tmp_path, "test") == [("ape", 5)]
    assert len(find(tmp_path)) == 5
    assert find(tmp_path, "test").classes == ("zebra", "ape"), "those of ClassLabel, in its order"
    assert find(tmp_path, "train").images.name(3) == f"{names[1]}.parquet row 1"
    assert (has_split(tmp_path, "test"), has_split(tmp_path, "validation")) == (True, False)
    with pytest.raises(ValueError, match="it has no file or folder named val"):
        find(tmp_path, "validation")


def test_what_save_to_disk_writes_is_read_without_its_library(tmp_path: Path) -> None:
    saved(tmp_path / "train", [table([1, 2, 3], [0, 1, 1]), table([4], [0])])
    saved(tmp_path / "validation", [table([5], [1])])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert shades(tmp_path, "train") == TRAIN
    assert shades(tmp_path, "validation") == [("ape", 5)]
    assert has_split(tmp_path, "validation")
    assert shades(tmp_path / "train") == TRAIN


def test_a_single_file_is_a_set(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", table([7, 8], [1, 0], names=("img", "kind")))
    assert shades(path) == [("ape", 7), ("zebra", 8)]
    images = pickle.loads(pickle.dumps(find(path).images))  # As for a worker.
    assert images.open(1).getpixel((0, 0)) == (8, 0, 0)
    assert not has_split(path, "test")


def test_labels_without_names_are_numbers_in_order_or_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", table([1, 2, 3], [10, 9, 10], None))
    assert find(path).classes == ("9", "10")
    assert find(path).targets.tolist() == [1, 0, 1]
    path = parquet(tmp_path / "y.parquet", table([1, 2], ["cat", "ant"], None))
    assert find(path).classes == ("ant", "cat")


def test_whole_numbers_beside_gaps_are_numbers_of_classes_and_names_may_be_digits(
    tmp_path: Path,
) -> None:
    path = parquet(tmp_path / "x.parquet", table([1, 2], [0.0, 1.0]))
    assert shades(path) == [("zebra", 1), ("ape", 2)]
    path = parquet(tmp_path / "y.parquet", table([1, 2], ["ape", "zebra"]))
    assert shades(path) == [("ape", 1), ("zebra", 2)]
    digits = {"names": ["7", "1", "0"], "_type": "ClassLabel"}
    path = parquet(tmp_path / "z.parquet", table([1, 2], [0, 1], digits))
    assert shades(path) == [("7", 1), ("1", 2)]


def test_lists_of_labels_are_several(tmp_path: Path) -> None:
    feature = {"feature": LABEL, "_type": "List"}
    made = table([1, 2], [[0, 1], []], feature, ("image", "tags"))
    found = find(parquet(tmp_path / "x.parquet", made))
    assert found.targets.tolist() == [[True, True], [False, False]]


def test_an_image_without_bytes_is_named(tmp_path: Path) -> None:
    made = table([1, 2], [0, 1])
    images = pyarrow.array([{"bytes": png(1), "path": ""}, {"bytes": None, "path": "/x"}], IMAGE)
    path = parquet(tmp_path / "x.parquet", made.set_column(0, "image", images))
    assert datasets.read(path, CIFAR, corrupt="skip").skipped == ("x.parquet row 2",)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (table([1], [2]), "row 1 has the label 2, of 2"),
        (table([1, 1], [0, -1]), "row 2 has no label"),
        (table([1], [None], None), "row 1 has no label"),
        (table([1, 2], [1.0, float("nan")], None), "row 2 has no label"),
        (table([1], ["cow"]), "row 1 has the label cow, of 2"),
        (table([1], [0], None, ("image", "caption")), "no column is the label; its columns: image"),
        (table([1], [0]).append_column("b", [[b""]]).rename_columns(["a", "label", "b"]), "encod"),
    ],
)
def test_what_is_no_such_set_is_refused(tmp_path: Path, made: pyarrow.Table, words: str) -> None:
    path = parquet(tmp_path / "x.parquet", made)
    assert refusal(path).startswith(f"{path}: ")
    assert words in refusal(path)


def test_damaged_and_several_sets_are_refused(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a" / "train.parquet", table([1], [0])).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-9])
    assert "cut.parquet: not a whole parquet file (" in refusal(tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").unlink()
    parquet(tmp_path / "b" / "train.parquet", table([1], [0]))
    assert refusal(tmp_path) == f"{tmp_path}: holds 2 data sets: a, b; name one of them"
    saved(tmp_path / "c", [table([1], [0])], _indices_files=[{"filename": "i.arrow"}])
    assert "a file of indices chooses its rows" in refusal(tmp_path / "c")
    (tmp_path / "c" / "state.json").write_text("[]")
    assert "not what save_to_disk writes" in refusal(tmp_path / "c")
    (tmp_path / "c" / "state.json").unlink()
    assert "has Arrow files but no state.json" in refusal(tmp_path / "c")


def test_images_are_unpacked_once(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", table([1], [0]))
    first = embedded.unpacked(path)
    assert embedded.unpacked(path) is first
    parquet(path, table([1, 2], [0, 1]))
    assert len(embedded.unpacked(path).labels) == 2, "but again if the file changes"


def test_processes_share_what_one_has_unpacked(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", table([1, 2], [0, 1]))
    own = embedded.unpacked(path)
    before = own.file.stat()
    code = "import sys, pathlib; from models.data import embedded as e; "
    code += "print(e.unpacked(pathlib.Path(sys.argv[1])).file)"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(own.file)
    after = own.file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
