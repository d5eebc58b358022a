"""The ONNX model zoo's table, and its files recognised by their checksums."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from models import files, variants
from models.interchange import onnx_zoo
from tests.support import gluon
from tests.support.shared import SHARED, needs_shared


def test_every_v1_and_v2_is_there_with_its_figures() -> None:
    served = {row.name: row for row in onnx_zoo.MODELS if not row.refusal}
    assert served.keys() == {*gluon.PREFIXES, "resnet50-v1-12"}
    for row in served.values():
        assert row.top1
        assert row.top5
        assert 69 < row.top1 < row.top5 < 95
        assert row.variant
        assert row.variant in tuple(variants.names())
        assert ("preact" in row.variant) == ("-v2" in row.name)
        assert row.metrics["imagenet1k-val"]["measured_by"] == "onnx-zoo"
    assert served["resnet50-v1-7"].metrics["imagenet1k-val"]["top1"] == 0.7493


def test_checksums_are_whole_and_differ() -> None:
    sums = [s for row in onnx_zoo.MODELS for s in (row.sha256, row.archive_sha256)]
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in sums)
    assert len(set(sums)) == 2 * len(onnx_zoo.MODELS)


@needs_shared
def test_the_table_is_the_published_one() -> None:
    text = (SHARED / "reference" / "RESNETS.md").read_text("utf-8")
    rows = re.findall(r"\| (resnet\S+)\.onnx \| (\d+) \| (\w{64}) \|", text)
    assert {(r.name, str(r.size), r.sha256) for r in onnx_zoo.MODELS} == set(rows)
    for row in onnx_zoo.MODELS:
        name = row.name.removesuffix("-7")
        figures = re.search(rf"\| {name} \| ([\d.]+) \| ([\d.]*) ?\|", text)
        assert bool(figures) == (row.top1 is not None)
        if figures:
            assert row.top1 == float(figures[1])
            assert row.top5 == (float(figures[2]) if figures[2] else None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50-v1-12-int8", "quantised to int8, which is not read; the same network in fp32"),
        ("resnet50-v1-12-qdq", "onnx-zoo:resnet50-v1-12"),
        ("resnet50-caffe2-v1-9", "the zoo does not say how its images are prepared; download http"),
        ("resnet50-v1", "no ResNet called 'resnet50-v1'; did you mean resnet50-v1-7?"),
    ],
)
def test_what_is_not_served_says_why(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        onnx_zoo.find(name)
    assert words in str(caught.value)


def test_a_file_is_recognised_by_its_checksum_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.bin"
    path.write_bytes(b"a file")
    assert onnx_zoo.of_file(path) is None
    row = replace(onnx_zoo.MODELS[0], size=6, sha256=files.sha256(path))
    monkeypatch.setattr(onnx_zoo, "MODELS", (row,))
    assert onnx_zoo.of_file(path) == row
    path.write_bytes(b"a fila")
    assert onnx_zoo.of_file(path) is None


def test_files_of_other_sizes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("it read the file"))
    assert onnx_zoo.of_file(tmp_path / "a") is None


def test_images_are_prepared_by_the_zoos_formula() -> None:
    spec = onnx_zoo.INPUT
    assert (spec.size, spec.resize, spec.crop, spec.channels) == (224, 256, "center_floor", "rgb")
    assert spec.mean == (0.485, 0.456, 0.406)
