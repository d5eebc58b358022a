"""Splits, ImageNet's layouts and archives: the same images from wherever they lie."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import labels
from models.data import datasets, imagenet
from models.data.collection import has_split, has_test_set
from models.data.listing import Split, listing
from models.preprocess import CIFAR

SPEC = replace(CIFAR, size=4, resize=4)
SYNSETS = imagenet.synsets()
Files = dict[str, bytes]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def encoded(shade: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, shade, shade)).save(buffer, format)
    return buffer.getvalue()


def folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar(files: Files, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def shades(path: Path, split: Split | None = None) -> list[tuple[str, int]]:
    data = datasets.read(path, SPEC, split=split)
    pairs = zip(data.targets, data.images, strict=True)
    return [(data.classes[target], int(image[0, 0, 0])) for target, image in pairs]


def refusal(path: Path, split: Split | None = None) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        listing(path, split)
    return str(caught.value)


BOTH = {
    "train/cat/0.png": encoded(10),
    "train/dog/0.png": encoded(20),
    "train/dog/1.png": encoded(30),
    "val/cat/0.png": encoded(40),
    "val/dog/0.png": encoded(50),
}
TRAIN = [("cat", 10), ("dog", 20), ("dog", 30)]
VAL = [("cat", 40), ("dog", 50)]


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz", "w:xz"])
@pytest.mark.parametrize("above", ["", "imagenet/", "a/b/"])
def test_a_split_is_what_lies_below_its_folder(tmp_path: Path, kind: str, above: str) -> None:
    files = {above + name: content for name, content in BOTH.items()}
    path = folder(tmp_path / "set", files) if kind == "folder" else tmp_path / "set.tar"
    if kind != "folder":
        path.write_bytes(tar(files, kind))
    assert shades(path, "train") == TRAIN
    assert shades(path, "test") == VAL
    assert sorted(shades(path)) == sorted(TRAIN + VAL)
    assert has_test_set(path)


def test_test_comes_before_val(tmp_path: Path) -> None:
    path = folder(tmp_path, {**BOTH, "test/cat/0.png": encoded(60)})
    assert shades(path, "test") == [("cat", 60)]


def test_a_set_without_such_folders_is_for_training(tmp_path: Path) -> None:
    files = {"cat/0.png": encoded(10), "dog/0.png": encoded(20)}
    path = folder(tmp_path / "set", files)
    assert shades(path, "train") == [("cat", 10), ("dog", 20)]
    assert refusal(path, "test").endswith("no folder test or val with folders named after classes")
    assert not has_test_set(path)
    (tmp_path / "set.tar").write_bytes(tar(files))
    assert not has_test_set(tmp_path / "set.tar")
    assert shades(folder(tmp_path / "val", files), "test") == [("cat", 10), ("dog", 20)]


def test_a_set_of_test_images_only_is_not_trained_on(tmp_path: Path) -> None:
    path = folder(tmp_path, {"test/cat/0.png": encoded(10)})
    assert refusal(path, "train").endswith("no folder train with folders named after classes")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Validation"])
def test_validation_images_have_folders_of_several_names(tmp_path: Path, name: str) -> None:
    files = {
        "Train/cat/0.png": encoded(10),
        f"{name}/cat/0.png": encoded(40),
        "testing/dog/0.png": encoded(50),
    }
    path = folder(tmp_path, files)
    found = [shades(path, split) for split in SPLITS]
    assert found == [[("cat", 10)], [("cat", 40)], [("dog", 50)]]
    assert [has_split(path, split) for split in SPLITS] == [True] * 3
    (path / "testing" / "dog" / "0.png").unlink()
    (path / "testing" / "dog").rmdir()
    (path / "testing").rmdir()
    assert not has_split(path, "test")
    assert has_test_set(path)


def test_a_list_in_a_folder_of_images_without_classes_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path, {"0.png": encoded(10), "labels.csv": b"id,breed\n0,cat\n"})
    assert refusal(path).endswith(
        "0.png is not in a folder named after its class; or give a list of images, labels.csv"
    )
    (path / "0.png").unlink()
    assert refusal(path).endswith("named after classes; or give its list labels.csv")


def test_what_lies_beside_the_split_folders_is_in_neither(tmp_path: Path) -> None:
    path = folder(tmp_path, {**BOTH, "docs/figure.png": encoded(1)})
    assert shades(path, "train") == TRAIN
    assert shades(path, "test") == VAL
    assert listing(path, "train").notes == (
        "1 images are in no part of the set and are left out, such as docs/figure.png",
    )


def test_test_images_without_classes_are_not_those_for_validation(tmp_path: Path) -> None:
    path = folder(tmp_path, {**BOTH, "test/0.png": encoded(60)})
    said = "images in test are not in folders named after classes; or give a list"
    assert said in refusal(path, "test")
    assert shades(path, "train") == TRAIN
    assert shades(path, "validation") == VAL
    assert listing(path, "train").notes == ()


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere", {"cat/0.png": encoded(10)})
    path = folder(tmp_path / "set", {"train/dog/0.png": encoded(20)})
    (path / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (path / "train" / "dog" / "up").symlink_to(path)
    assert shades(path) == [("cat", 10), ("dog", 20)]


def test_links_in_archives_are_what_they_lead_to(tmp_path: Path) -> None:
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("cat/0.png")
        entry.size = len(encoded(10))
        archive.addfile(entry, io.BytesIO(encoded(10)))
        for name, kind, target in (
            ("cat/1.png", tarfile.LNKTYPE, "cat/0.png"),
            ("dog/0.png", tarfile.SYMTYPE, "../cat/1.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    assert shades(path) == [("cat", 10), ("cat", 10), ("dog", 10)]
    files = listing(path)
    assert [files.open(index).getpixel((0, 0)) for index in range(3)] == [(10, 10, 10)] * 3


def test_a_link_in_an_archive_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("cat/0.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(link)
    assert "cat/0.png is a link to 1.png, which is no file in the" in refusal(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", ["folder", "w", "w:gz"])
def test_unreadable_images_are_skipped_by_name_if_that_is_wanted(tmp_path: Path, kind: str) -> None:
    files = {**BOTH, "train/cat/1.png": b"no image", "train/dog/2.png": encoded(7)[:-40]}
    path = folder(tmp_path / "set", files) if kind == "folder" else tmp_path / "set.tar"
    if kind != "folder":
        path.write_bytes(tar(files, kind))
    data = datasets.read(path, SPEC, corrupt="skip", split="train")
    assert sorted(data.skipped) == ["train/cat/1.png", "train/dog/2.png"]
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert [data.classes[target] for target in data.targets] == ["cat", "dog", "dog"]
    with pytest.raises(ValueError, match=r"set(\.tar)?: train/\S+ is not a readable image \("):
        datasets.read(path, SPEC, split="train")
    only = folder(tmp_path / "only", {"cat/0.png": b""})
    with pytest.raises(ValueError, match="none of its 1 images can be read"):
        datasets.read(only, SPEC, corrupt="skip")


def test_all_of_imagenets_synsets_get_our_labels_in_our_order(tmp_path: Path) -> None:
    files = {f"train/{synset}/{synset}_1.JPEG": b"" for synset in reversed(SYNSETS)}
    found = listing(folder(tmp_path, files), "train")
    assert found.classes == labels.read("imagenet1k")
    assert found.targets.tolist() == list(range(1000))
    some = listing(folder(tmp_path / "some", dict(list(files.items())[:2])), "train")
    assert some.classes == (SYNSETS[998], SYNSETS[999])


def test_the_official_archive_of_archives_is_read(tmp_path: Path) -> None:
    inner = {
        f"{synset}.tar": tar(
            {f"{synset}_{i}.JPEG": encoded(10 * (k + 1) + i, "JPEG") for i in range(2)}
        )
        for k, synset in enumerate(SYNSETS[:3])
    }
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar(inner))
    expected = [(SYNSETS[k], 10 * (k + 1) + i) for k in range(3) for i in range(2)]
    assert shades(path, "train") == expected
    files = listing(path)
    assert files.name(3) == f"{SYNSETS[1]}/{SYNSETS[1]}_1.JPEG"
    opened = [files.open(i).getpixel((0, 0)) for i in (5, 0, 3)]
    assert opened == [(31, 31, 31), (10, 10, 10), (21, 21, 21)]
    (tmp_path / "x.tar.gz").write_bytes(tar(inner, "w:gz"))
    assert shades(tmp_path / "x.tar.gz") == expected
    broken = {**inner, "n9.tar": b"no archive"}
    path.write_bytes(tar(broken))
    assert "neither a folder nor a whole tar or zip archive (" in refusal(path)


FLAT = {f"ILSVRC2012_val_{i:08}.JPEG": encoded(10 * i, "JPEG") for i in (1, 2, 3)}
BY_INDEX = b"ILSVRC2012_val_00000001.JPEG 999\nval/ILSVRC2012_val_00000002.JPEG 0\n\n" + (
    b"ILSVRC2012_val_00000003.JPEG 999\n"
)
BY_SYNSET = (
    f"ImageId,PredictionString\nILSVRC2012_val_00000002,{SYNSETS[0]} 85 1 499 272 \n"
    f"ILSVRC2012_val_00000001,{SYNSETS[999]} 1 2 3 4 {SYNSETS[999]} 5 6 7 8 \n"
    f"ILSVRC2012_val_00000003,{SYNSETS[999]} 0 0 1 1 \n"
).encode()


@pytest.mark.parametrize(
    ("images", "truth"),
    [
        ("val", {"val/val.txt": BY_INDEX}),
        ("val", {"val.txt": BY_INDEX}),
        ("val", {"LOC_val_solution.csv": BY_SYNSET}),
        ("ILSVRC/Data/CLS-LOC/val", {"LOC_val_solution.csv": BY_SYNSET}),
    ],
)
def test_flat_validation_images_have_their_classes_from_a_file(
    tmp_path: Path, images: str, truth: Files
) -> None:
    files = {f"{images}/{name}": content for name, content in FLAT.items()}
    root = folder(tmp_path, files | truth)
    for path in (root, root / images):
        data = datasets.read(path, SPEC, split="test")
        assert data.classes == labels.read("imagenet1k")
        assert data.targets.tolist() == [999, 0, 999]
        assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    archive = root / "ILSVRC2012_img_val.tar"
    archive.write_bytes(tar(FLAT))
    if "val.txt" in truth or images == "val":
        (root / "val.txt").write_bytes(BY_INDEX)
        assert listing(archive).targets.tolist() == [999, 0, 999]


def test_training_needs_no_ground_truth_of_validation_images(tmp_path: Path) -> None:
    files = {f"val/{name}": content for name, content in FLAT.items()}
    path = folder(tmp_path, files | {f"train/{SYNSETS[5]}/0.JPEG": encoded(1, "JPEG")})
    assert listing(path, "train").classes == (SYNSETS[5],)
    assert refusal(path, "test") == (
        f"{path / 'val'}: the classes of the validation images are unknown; "
        "put val.txt (FILE INDEX) or LOC_val_solution.csv beside or above them"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ILSVRC2012_validation_ground_truth.txt", b"490\n361\n171\n", "development kit's own"),
        ("val.txt", b"ILSVRC2012_val_00000001.JPEG 1000\n", "line 1 is not FILE INDEX"),
        ("val.txt", b"\nILSVRC2012_val_00000001.JPEG\n", "line 2 is not FILE INDEX"),
        ("val.txt", BY_INDEX[:-33], "it has no line for ILSVRC2012_val_00000003.JPEG"),
        ("val.txt", b"\xff\xfe", "not a text file"),
        ("LOC_val_solution.csv", b"h,h\nILSVRC2012_val_00000001,n1 2\n", "line 2 is not IMAGE,SYN"),
    ],
)
def test_a_wrong_ground_truth_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    files = {f"val/{name}": content for name, content in FLAT.items()}
    path = folder(tmp_path, {**files, name: content})
    assert refusal(path, "test").startswith(f"{path / name}: ")
    assert message in refusal(path, "test")


def test_names_that_are_no_unicode_are_names_too(tmp_path: Path) -> None:
    path = folder(tmp_path, {"cat/0.png": encoded(10)})
    strange = os.fsencode(path / "cat") + b"/\xff.png"
    Path(os.fsdecode(strange)).write_bytes(encoded(20))
    assert shades(path) == [("cat", 10), ("cat", 20)]
    assert np.array_equal(listing(path).targets, [0, 0])
