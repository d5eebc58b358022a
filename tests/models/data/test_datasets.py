"""Images come from folders and archives alike, or the one that cannot be read is named."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import labels
from models.data import datasets
from models.data.datasets import Dataset
from models.data.streamed import stream
from models.preprocess import CIFAR, resize_and_crop
from service.inference.decoding import decode_image
from tests.support.shared import SHARED, needs_shared

SPEC = replace(CIFAR, size=6, resize=8)


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(seed)
    width, height = size
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(
        mode
    )


def encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


FILES = {
    "frog/1.png": encoded(picture(1), "PNG"),
    "frog/0.JPG": encoded(picture(2), "JPEG"),
    "cat/grey.png": encoded(picture(3, mode="L"), "PNG"),
    "cat/palette.gif": encoded(picture(4, mode="P"), "GIF"),
    "cat/cmyk.jpeg": encoded(picture(5, mode="CMYK"), "JPEG"),
    "ape/alpha.webp": encoded(picture(6, mode="RGBA"), "WEBP"),
    "README.txt": b"not an image",
    "frog/.DS_Store": b"not an image",
}
CLASSES = ("ape", "cat", "frog")


SPECS: list[dict[str, Any]] = [
    {"channels": "grey", "mean": (0.5,), "std": (0.5,)},
    {"channels": "bgr"},
    {"channels": "rgba", "mean": (0.5,) * 4, "std": (0.5,) * 4},
    {"crop": "squash"},
    {"crop": "letterbox", "fill": (10, 20, 30)},
    {"size": (4, 6), "resize": (5, 9)},
]


@pytest.mark.parametrize("changes", SPECS)
def test_images_are_prepared_as_serving_prepares_them(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = replace(SPEC, **changes)
    data = datasets.read(folder(tmp_path), spec)
    assert data.images.shape == (6, *spec.shape)
    names = sorted(name for name in FILES if name.split(".")[-1].lower() in KINDS)
    for name, image in zip(names, data.images, strict=True):
        served = decode_image(FILES[name], spec, 10_000)
        assert np.array_equal(image, served.pixels), name
    streamed = np.concatenate([images for images, _ in stream(tmp_path, spec, batch_size=4)])
    assert np.array_equal(streamed, data.images)


KINDS = ("png", "jpg", "jpeg", "gif", "webp")


def folder(path: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        file = path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path / "data"


def archive(path: Path, name: str, files: dict[str, bytes] = FILES, inside: str = "train/") -> Path:
    compression = {"tar": "w", "xz": "w:xz", "gz": "w:gz"}[name.rpartition(".")[2]]
    with tarfile.open(path / name, compression) as tar:  # type: ignore[call-overload]
        for member, content in files.items():
            entry = tarfile.TarInfo(inside + member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path / name


def by_hand(name: str) -> object:
    with Image.open(io.BytesIO(FILES[name])) as image:
        return resize_and_crop(image.convert("RGB"), SPEC).tolist()


def test_a_folder_holds_its_images_by_class(tmp_path: Path) -> None:
    steps: list[int] = []
    data = datasets.read(folder(tmp_path), SPEC, steps.append)
    assert data.classes == CLASSES
    assert data.source == "data"
    assert data.images.shape == (6, 6, 6, 3)
    assert data.images.dtype == np.uint8
    assert data.targets.dtype == np.int64
    found = [(CLASSES[t], i.tolist()) for t, i in zip(data.targets, data.images, strict=True)]
    images = [name for name in FILES if name not in {"README.txt", "frog/.DS_Store"}]
    expected = [(name.partition("/")[0], by_hand(name)) for name in images]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_folders_are_read_in_the_same_order_everywhere(tmp_path: Path) -> None:
    data = datasets.read(folder(tmp_path), SPEC)
    names = ["ape/alpha.webp", "cat/cmyk.jpeg", "cat/grey.png", "cat/palette.gif"]
    names += ["frog/0.JPG", "frog/1.png"]
    assert data.images.tolist() == [by_hand(name) for name in names]


@pytest.mark.parametrize("name", ["data.tar", "data.tar.xz", "data.tar.gz"])
@pytest.mark.parametrize("inside", ["train/", "", "./", "deep/er/"])
def test_an_archive_holds_the_same_images(tmp_path: Path, name: str, inside: str) -> None:
    data = datasets.read(archive(tmp_path, name, inside=inside), SPEC)
    assert data.classes == CLASSES
    assert data.source == name
    names = [name for name in FILES if name not in {"README.txt", "frog/.DS_Store"}]
    assert data.images.tolist() == [by_hand(name) for name in names]
    assert [CLASSES[t] for t in data.targets] == [name.partition("/")[0] for name in names]


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        datasets.read(path, SPEC)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", FILES["frog/1.png"][:-40], FILES["frog/0.JPG"][:200]],
    ids=["empty", "text", "cut PNG", "cut JPEG"],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, kind: str, content: bytes) -> None:
    files = {"cat/good.png": FILES["cat/grey.png"], "cat/bad.png": content}
    made = folder(tmp_path, files) if kind == "folder" else archive(tmp_path, "x.tar", files)
    inside = "" if kind == "folder" else "train/"
    assert refusal(made).startswith(f"{inside}cat/bad.png is not a readable image (")


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    none = "no images in folders named after classes; JPEG, PNG, "
    assert refusal(folder(tmp_path, {"cat/x.txt": b""})).startswith(none)
    assert refusal(archive(tmp_path, "empty.tar", {})).startswith(none)
    assert refusal(tmp_path / "missing") == "no such file or folder"


def test_an_archive_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, "x.tar")
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(path).startswith("neither a folder nor a whole tar or zip archive (")


def test_relabelling_keeps_every_images_class() -> None:
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, axis=3)
    data = Dataset(images, np.array([0, 1, 1, 2]), ("cat", "dog", "frog"), "x.tar")
    labels = ("frog", "bird", "cat", "dog")
    relabelled = data.relabelled(labels)
    assert relabelled.classes == labels
    assert [labels[t] for t in relabelled.targets] == ["cat", "dog", "dog", "frog"]
    assert relabelled.images is images
    assert data.targets.tolist() == [0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"x\.tar: class 'dog' is not one of the model's labels"):
        data.relabelled(("cat", "frog"))


def test_imagenets_folders_are_named_by_synset() -> None:
    images = np.zeros((2, 1, 1, 3), np.uint8)
    data = datasets.Dataset(images, np.array([0, 1]), ("n01440764", "n02099601"), "val")
    imagenet = labels.read("imagenet1k")
    assert data.relabelled(imagenet).targets.tolist() == [0, imagenet.index("golden retriever")]


@needs_shared
def test_the_lossless_sample_is_read_bit_by_bit() -> None:
    path = SHARED / "data" / "cifar10-lossless-sample.tar"
    data = datasets.read(path, CIFAR)
    assert data.images.shape == (200, 32, 32, 3)
    assert data.classes[3] == "cat"
    with tarfile.open(path) as tar:
        member = tar.extractfile("cat/0000.png")
        assert member is not None
        with Image.open(member) as image:
            assert np.array_equal(data.images[0], np.asarray(image))
    assert data.targets[0] == 3


def test_a_file_that_is_no_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(FILES["frog/1.png"])
    assert refusal(file).startswith("neither a folder nor a whole tar or zip archive (")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.xz"])
def test_a_compressed_archive_that_ends_early_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path, name)
    whole = path.read_bytes()
    for cut in range(100, len(whole), 100):
        path.write_bytes(whole[:cut])
        refusal(path)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_an_image_outside_any_folder_has_no_class(tmp_path: Path, kind: str) -> None:
    files = {"cat/a.png": FILES["cat/grey.png"], "stray.png": FILES["frog/1.png"]}
    made = folder(tmp_path, files) if kind == "folder" else archive(tmp_path, "x.tar", files, "")
    try:
        data = datasets.read(made, SPEC)
    except ValueError as error:
        assert "stray.png" in str(error)  # noqa: PT017
    else:
        assert data.classes == ("cat",)


def test_what_is_no_file_is_skipped_or_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "cat" / "folder.png").mkdir()
    (path / "cat" / "nowhere.png").symlink_to("missing.png")
    try:
        data = datasets.read(path, SPEC)
    except ValueError as error:
        assert "nowhere.png" in str(error)  # noqa: PT017
    else:
        assert len(data.images) == 6


def test_an_image_of_absurd_size_is_named(tmp_path: Path) -> None:
    header = encoded(picture(1), "BMP")
    absurd = header[:18] + (2**20).to_bytes(4, "little") * 2 + header[26:]
    assert "cat/absurd.bmp" in refusal(folder(tmp_path, {"cat/absurd.bmp": absurd}))


def test_images_are_upright_by_exif_as_served_ones_are(tmp_path: Path) -> None:
    image = picture(1)
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    data = datasets.read(folder(tmp_path, {"cat/a.png": buffer.getvalue()}), SPEC)
    upright = resize_and_crop(image.transpose(Image.Transpose.ROTATE_270), SPEC)
    assert np.array_equal(data.images[0], upright)


def test_transparency_is_white_as_in_served_images(tmp_path: Path) -> None:
    image = picture(1)
    image.putalpha(0)
    data = datasets.read(folder(tmp_path, {"cat/a.png": encoded(image, "PNG")}), SPEC)
    assert (data.images == 255).all()
