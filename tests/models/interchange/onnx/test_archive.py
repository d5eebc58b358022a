"""ONNX files with their test data: read as the model zoo hands them out, and checked."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from models import files
from models.bundle import BundleError
from models.interchange import convert, onnx_zoo
from models.interchange.assumptions import InputUnknown
from models.interchange.imported import Said
from tests.support import gluon

SMALL = (8, 16, 32, 64)
NAME = "resnet50-v1-7"


def with_data(folder: Path, model: Path, sets: int = 2, *, wrong: bool = False) -> None:
    """Random inputs, as the zoo's are, and what onnxruntime computes of them."""
    session = onnxruntime.InferenceSession(str(model))
    generator = np.random.default_rng(0)
    for number in range(sets):
        images = generator.random((1, 3, 224, 224), np.float32)
        output = session.run(None, {session.get_inputs()[0].name: images})[0]
        target = folder / f"test_data_set_{number}"
        target.mkdir()
        for name, array in (("input_0", images), ("output_0", output + wrong)):
            content = numpy_helper.from_array(array).SerializeToString()
            (target / f"{name}.pb").write_bytes(content)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network named and packed like the zoo's ResNet-50."""
    folder = tmp_path_factory.mktemp("zoo") / "resnet50v1"
    folder.mkdir()
    model = folder / "resnet50v1.onnx"
    onnx.save(gluon.Zoo(NAME, widths=SMALL).model, model)
    with_data(folder, model)
    return folder


def packed(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.fixture
def row(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> onnx_zoo.ZooModel:
    """The table, as if the small network were the published one."""
    model = unpacked / "resnet50v1.onnx"
    row = replace(
        next(row for row in onnx_zoo.MODELS if row.name == NAME),
        size=model.stat().st_size,
        sha256=files.sha256(model),
    )
    monkeypatch.setattr(onnx_zoo, "MODELS", (row,))
    return row


def test_an_archive_is_read_and_checked_with_its_test_data(unpacked: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "resnet50v1.tar.gz", unpacked)
    bundle = convert.convert("onnx", path)
    checked = bundle.provenance["checked"]
    assert checked["pairs"] == ["test_data_set_0", "test_data_set_1"]
    assert checked["relative"] < 1e-5
    assert bundle.provenance["file"] == "resnet50v1/resnet50v1.onnx"
    assert bundle.provenance["sha256"] == files.sha256(path)
    assert bundle.name == "resnet50v1"
    assert convert.recognise(path) == "onnx"
    folder = convert.convert("onnx", unpacked)
    assert folder.provenance["checked"] == checked
    assert folder.provenance["sha256"] == files.sha256(unpacked / "resnet50v1.onnx")
    assert all(folder.tensors[k].equal(v) for k, v in bundle.tensors.items())


def test_a_network_that_differs_from_its_test_data_is_refused(
    unpacked: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.tar.gz"
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "m.onnx").write_bytes((unpacked / "resnet50v1.onnx").read_bytes())
    with_data(folder, folder / "m.onnx", 1)
    bundle = convert.convert("onnx", packed(path, folder))
    assert bundle.architecture.stride_at == "1x1"
    with pytest.raises(convert.Differs, match=r"\A[^\n]+\Z") as caught:
        convert.convert("onnx", path, Said(numerics={"stride_at": "3x3"}))
    assert "other.tar.gz: the network differs from test_data_set_0: 1 image" in str(caught.value)
    assert "would fit: --set stride_at=1x1 (largest difference" in str(caught.value)


def test_a_published_file_is_recognised_whatever_its_name(
    unpacked: Path, tmp_path: Path, row: onnx_zoo.ZooModel
) -> None:
    copy = tmp_path / "mine.onnx"
    copy.write_bytes((unpacked / "resnet50v1.onnx").read_bytes())
    bundle = convert.convert("onnx", copy, Said(strict=True))  # Nothing is assumed.
    assert bundle.input == onnx_zoo.INPUT
    assert bundle.metrics == row.metrics
    assert bundle.provenance["weights"] == NAME
    assert bundle.name == NAME
    assert "assumed" not in bundle.provenance


def test_published_figures_hold_only_for_what_was_measured(
    unpacked: Path, row: onnx_zoo.ZooModel
) -> None:
    model = unpacked / "resnet50v1.onnx"
    for said in (Said(input={"crop": "squash"}), Said(numerics={"pool": "none"})):
        changed = convert.convert("onnx", model, said)
        assert changed.metrics == {}
        assert changed.provenance["weights"] == NAME


@pytest.mark.parametrize("packs", [False, True])
def test_a_published_int8_file_is_named_and_refused(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: bool
) -> None:
    quantised = next(row for row in onnx_zoo.MODELS if row.name == "resnet50-v1-12-qdq")
    model = unpacked / "resnet50v1.onnx"
    same: Any = {"size": model.stat().st_size, "sha256": files.sha256(model)}
    monkeypatch.setattr(onnx_zoo, "MODELS", (replace(quantised, **same),))
    path = packed(tmp_path / "m.tar.gz", unpacked) if packs else model
    with pytest.raises(BundleError, match="resnet50-v1-12-qdq of the ONNX model zoo is quantised"):
        convert.convert("onnx", path)


def test_caffe2s_preprocessing_is_asked_for(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caffe2 = next(row for row in onnx_zoo.MODELS if row.kind == "caffe2")
    model = unpacked / "resnet50v1.onnx"
    same: Any = {"size": model.stat().st_size, "sha256": files.sha256(model)}
    monkeypatch.setattr(onnx_zoo, "MODELS", (replace(caffe2, **same),))
    with pytest.raises(InputUnknown, match="give --channels rgb or --channels bgr"):
        convert.convert("onnx", model)
    said: dict[str, Any] = {"channels": "bgr", "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert convert.convert("onnx", model, Said(input=said)).metrics == {}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "must hold exactly one .onnx file; it has none"),
        (["a.onnx", "b/c.onnx"], "must hold exactly one .onnx file; it has a.onnx, b/c.onnx"),
        (["a.onnx"], "m.tar.gz/a.onnx: not an ONNX file"),
        (["A.ONNX"], "m.tar.gz/A.ONNX: not an ONNX file"),
    ],
)
def test_an_archive_without_one_network_is_one_line(
    tmp_path: Path, names: list[str], words: str
) -> None:
    path = tmp_path / "m.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            (tmp_path / "content").write_bytes(b"no graph")
            archive.add(tmp_path / "content", name)
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.convert("onnx", path)
    assert words in str(caught.value)


def test_a_folder_without_test_data_says_so(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes((unpacked / "resnet50v1.onnx").read_bytes())
    bundle = convert.convert("onnx", tmp_path)
    assert bundle.provenance["notes"] == ["there is no test data beside the model"]
    assert "checked" not in bundle.provenance
