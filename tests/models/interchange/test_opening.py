from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest

from models import bundle
from models.bundle import BundleError
from models.interchange import convert, opening
from models.preprocess import IMAGENET


def test_a_random_network_is_the_same_every_time_and_says_it_is_untrained() -> None:
    first, second = opening.find("random:resnet20"), opening.find("random:resnet20")
    for name, tensor in first.bundle.tensors.items():
        assert tensor.equal(second.bundle.tensors[name])
    assert "untrained" in first.bundle.provenance["source"]
    assert (first.source, first.sha256) == ("random:resnet20", None)


def test_a_bundles_file_is_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    bundle.write(opening.find("random:resnet20").bundle, path)
    loaded = opening.find(str(path))
    assert loaded.source == "x.safetensors"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_stands_for_the_one_file_in_it_that_can_be_served(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing to serve")
    with pytest.raises(
        BundleError, match=r"\A[^\n]*exactly one .safetensors or .onnx file; it has none\Z"
    ):
        opening.find(str(tmp_path))
    bundle.write(opening.find("random:resnet20").bundle, tmp_path / "x.safetensors")
    loaded = opening.find(str(tmp_path))
    assert (loaded.source, loaded.bundle.name) == ("x.safetensors", "resnet20")
    (tmp_path / "y.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"it has x.safetensors, y.onnx\Z"):
        opening.find(str(tmp_path))


def test_a_random_network_can_be_changed_or_described() -> None:
    changed = opening.find("random:resnet20", {"shortcut": "C", "num_classes": 7}).bundle
    assert (changed.architecture.shortcut, changed.labels[-1]) == ("C", "class 6")
    described = {"block": "basic", "blocks": [1], "planes": [4], "stem": "imagenet"}
    own = opening.find("random:", described | {"num_classes": 2}).bundle
    assert (own.variant, own.input) == (None, IMAGENET)


@pytest.mark.parametrize(
    ("spec", "architecture", "words"),
    [
        ("random:resnet19", None, ["random:resnet19", "nearest", "resnet18"]),
        ("random:resnet20", {"shortcut": "D"}, ["shortcut must be one of A, B, C, conv"]),
        ("random:resnet20", {"shortcuts": "A"}, ["did you mean shortcut?"]),
        (
            "random:",
            {"block": "basic"},
            ["random: architecture: it lacks blocks, planes, stem, num_classes"],
        ),
        ("random:", {"blok": "basic"}, ["no field 'blok'; did you mean block?"]),
        ("builtin:x", None, ["builtin:x: no such embedded model"]),
        ("onnx-zoo:resnet50", None, ["onnx-zoo:resnet50", "did you mean resnet50-v"]),
        ("onnx-zoo:resnet50-v1-12-qdq", None, ["quantised to int8", "onnx-zoo:resnet50-v1-12"]),
        ("onnx-zo:resnet50-v1-7", None, ["no such file", "did you mean onnx-zoo:resnet50-v1-7?"]),
        ("torchvison:resnet18", None, ["did you mean torchvision:resnet18?"]),
        ("resnet18", None, ["did you mean torchvision:resnet18 or random:resnet18?"]),
        ("ResNet50", None, ["did you mean torchvision:resnet50 or random:resnet50?"]),
        ("resnet20", None, ["did you mean builtin:resnet20-cifar10 or random:resnet20?"]),
        ("resnet10-cifar", None, ["did you mean builtin:resnet10-cifar10?"]),
        ("nowhere", None, ["nowhere", "no such file", "random:VARIANT"]),
        ("microsoft/resnet-50", None, ["did you mean hf:microsoft/resnet-50?"]),
        ("hub:x", None, ["hub:x", "no such file"]),
        ("builtin:resnet20-cifar10", {"block": "basic"}, ["only random networks"]),
    ],
)
def test_what_is_wrong_with_a_spec_is_one_line(
    spec: str, architecture: dict[str, object] | None, words: list[str]
) -> None:
    with pytest.raises(BundleError) as caught:
        opening.find(spec, architecture)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["mine.onnx", "min.safetensors", "mine.safetensor", "mine"])
def test_a_file_with_a_similar_name_is_meant(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.txt").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        opening.find(str(tmp_path / name))
    meant = tmp_path / "mine.safetensors"
    assert str(caught.value).endswith(f"no such file; did you mean {meant}?")


def test_an_onnx_graph_is_converted(tmp_path: Path) -> None:
    ours = opening.find("builtin:resnet20-cifar10").bundle
    for name in ("x.onnx", "without-a-suffix"):
        path = tmp_path / name
        convert.EXPORTERS["onnx"](ours, path, {})
        loaded = opening.find(str(path))
        found = loaded.bundle
        assert (found.architecture, found.labels) == (ours.architecture, ours.labels)
        assert (found.variant, found.input) == (ours.variant, ours.input)
        for tensor, value in found.tensors.items():
            if value.is_floating_point():
                assert value.equal(ours.tensors[tensor])
        assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_onnx_graph_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"\A[^\n]*x.onnx: not an ONNX file[^\n]*\Z"):
        opening.find(str(path))

    ours = opening.find("random:resnet20").bundle
    convert.EXPORTERS["onnx"](ours, path, {})
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"resnet-serve convert --from onnx.* makes a bundle"):
        opening.find(str(path))


def test_a_file_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BundleError, match=r"\A[^\n]*Permission denied\Z"):
        opening.find(str(path))
