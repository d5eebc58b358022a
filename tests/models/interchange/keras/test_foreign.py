"""Files that people take for Keras's are named, with the way to make one that is."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from models.bundle import BundleError
from tests.support import keras_reference as reference
from tests.support.keras_reference import converted

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (folder / name).write_bytes(b"\x08\x01")
    (folder / "variables/variables.data-00000-of-00001").write_bytes(b"\0" * 16)
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(path)
    prefix, _, reason = str(caught.value).partition(": ")
    assert prefix == str(path)
    return reason


@pytest.mark.parametrize(
    "part",
    ["", "saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"],
)
def test_a_saved_model_and_its_parts_are_refused_with_the_way(tmp_path: Path, part: str) -> None:
    folder = saved_model(tmp_path / "model")
    reason = refusal(folder / part)
    assert "a TensorFlow SavedModel" in reason
    assert f'`tf.keras.models.load_model("{folder}").save("model.keras")`' in reason
    assert f"`python -m tf2onnx.convert --saved-model {folder} --output model.onnx`" in reason


def test_a_folder_around_a_saved_model_is_refused_with_its_path(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "export" / "1")
    assert f'load_model("{folder}")' in refusal(tmp_path / "export")


def test_a_zip_around_a_saved_model_or_a_file_is_named(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model")
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    assert refusal(path).startswith("a zip file of a TensorFlow SavedModel")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner/model.keras", b"PK")
    assert refusal(path) == "a zip file around inner/model.keras: unpack it, and convert that"


@pytest.mark.parametrize(
    "name", ["model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta"]
)
def test_a_checkpoint_of_tensorflow_is_refused_with_the_way(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\0" * 20)
    assert f'`model.load_weights("{tmp_path / "model.ckpt"}")`' in refusal(path)
    if name.endswith(".index"):
        assert "a folder with a checkpoint of TensorFlow" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(8), "a TensorFlow Lite file"),
        ("frozen.pb", b"\n\x10" + bytes(8), "a frozen graph of TensorFlow"),
        ("model.tar.gz", b"\x1f\x8b\x08" + bytes(8), "compressed by gzip: unpack it"),
        ("model.json", b' {"class_name": 1}', "the description of a model, without its weights"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(reason)


def test_folders_are_refused_by_what_is_in_them(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "a folder without Keras files: name a .keras or .h5 file"
    path = reference.save(reference.small((1, 1), 8), tmp_path / "model.keras")
    assert refusal(tmp_path) == f"a folder: name the file in it, {path}"
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    assert refusal(unpacked) == (
        f"an unpacked .keras file: pack it by `cd {unpacked} && zip -0r ../model.keras .`"
    )
