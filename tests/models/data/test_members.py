"""Hidden files are no images anywhere; zip archives are read like tar archives."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from models.data import datasets, members
from models.data.collection import find, has_split
from models.data.members import damage
from models.preprocess import CIFAR

HIDDEN = (
    "._x.jpg",
    "__MACOSX/cat/._0.png",
    "__MACOSX/cat/0.png",
    "cat/._0.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png",
    "cat/@eaDir/0.png",
    ".thumbnails/0.png",
    "cat/.DS_Store",
    "cat/Thumbs.db",
)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def made(kind: str, root: Path, files: dict[str, bytes]) -> Path:
    if kind == "zip":
        return zipped(root / "x.zip", files)
    if kind == "tar":
        with tarfile.open(root / "x.tar", "w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return root / "x.tar"
    for name, content in files.items():
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / name).write_bytes(content)
    return root / "set"


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        datasets.read(path, CIFAR)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_hidden_files_are_no_images(tmp_path: Path, kind: str) -> None:
    files = {"cat/0.PNG": png(1), "./dog/0.png": png(2)} | dict.fromkeys(HIDDEN, b"none")
    data = datasets.read(made(kind, tmp_path, files), CIFAR)
    assert (data.classes, data.images[:, 0, 0, 0].tolist()) == (("cat", "dog"), [1, 2])


BOTH = {
    "x/train/cat/0.png": png(1),
    "x/train/dog/0.png": png(2),
    "x/valid/dog/0.png": png(3),
    "x/README.txt": b"",
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_is_a_set(tmp_path: Path, method: int) -> None:
    path = zipped(tmp_path / "x.zip", BOTH, method)
    data = datasets.read(path, CIFAR, split="train")
    assert (data.classes, data.images[:, 0, 0, 0].tolist()) == (("cat", "dog"), [1, 2])
    assert find(path, "validation").images.name(0) == "x/valid/dog/0.png"
    assert has_split(path, "validation")
    images = pickle.loads(pickle.dumps(find(path).images))  # As for a worker.
    assert not images.compressed
    assert [images.open(index).getpixel((0, 0))[0] for index in (2, 0, 1)] == [3, 1, 2]


def test_names_with_backslashes_are_folders(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"cat\\0.png": png(1), "dog\\0.png": png(2)})
    assert find(path).classes == ("cat", "dog")


def test_names_that_macos_wrote_in_utf_8_without_saying_so_are_read_as_that(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"caf\u00e9/0.png": png(1), "th\u00e9/0.png": png(2)})
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for part in range(2):
            at = [i for i in range(len(content)) if content.startswith(signature, i)][part]
            content[at + flags + 1] &= ~0x08
    path.write_bytes(content)
    assert find(path).classes == ("caf\u00e9", "th\u00e9")
    data = datasets.read(path, CIFAR)
    assert data.images[:, 0, 0, 0].tolist() == [1, 2]


def test_names_in_the_code_page_of_dos_are_read_as_that(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"caf?/0.png": png(1), "tea/0.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"caf?", "caf\u00e9".encode("cp437")))
    assert find(path).classes == ("caf\u00e9", "tea")


def test_images_of_formats_that_are_not_read_are_counted(tmp_path: Path) -> None:
    files = {"cat/0.png": png(1), "dog/0.PPM": b"P6", "dog/1.ppm": b"P6", "dog/._1.ppm": b""}
    said = "files that are not read: 2 .ppm; convert them to PNG"
    path = made("folder", tmp_path, files)
    assert said in find(path).notes
    (path / "cat" / "0.png").unlink()
    assert said in refusal(path)


def test_what_is_no_whole_zip_archive_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", BOTH)
    path.write_bytes(path.read_bytes()[:-30])
    assert refusal(path).startswith("not a whole zip archive (")


def test_other_methods_and_encryption_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", BOTH, zipfile.ZIP_LZMA)
    assert "x/train/cat/0.png is compressed by method 14; stored and deflated" in refusal(path)
    content = bytearray(zipped(path, BOTH).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "x/train/cat/0.png is encrypted" in refusal(path)


def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.zip", {"cat/0.png": bytes(10_000_000)})
    monkeypatch.setattr("models.data.stores.LARGEST", 5_000_000)
    assert refusal(path) == "cat/0.png would unpack to 10 MB, too much for an image"


def test_images_are_known_by_suffix() -> None:
    assert members.is_image("a/b.JPeG")
    assert not members.is_image("a/.b.jpg")
    assert not members.is_image("a.jpg/b")


def test_the_damage_of_a_file_is_one_line_and_never_none() -> None:
    assert damage(EOFError()) == "cut off"
    assert damage(tarfile.ReadError("not opened:\n- method gz: ...")) == "not opened"
