"""The command `convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import bundle
from models.resnet import build
from service.repository import catalog
from tests.support.commands import run


def test_convert_makes_a_bundle_that_loads(tmp_path: Path) -> None:
    network = build("resnet20", shortcut="A")
    names = {"stem.conv": "conv1", "stem.norm": "bn1", "head": "linear"}
    state = {}
    for name, value in network.state_dict().items():
        theirs = name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        for stage in range(3):
            theirs = theirs.replace(f"stages.{stage}.", f"layer{stage + 1}.")
        state[f"module.{theirs}"] = value
    torch.save({"state_dict": state, "best_prec1": 91.2}, tmp_path / "r.th")
    said = run("convert", "--from", "cifar", tmp_path / "r.th", tmp_path / "r.safetensors").stdout
    assert "resnet20, shortcut option A" in said
    converted = bundle.read(tmp_path / "r.safetensors")
    assert converted.name == "r"
    for name, value in network.state_dict().items():
        assert converted.tensors[name].equal(value)


def test_convert_shows_what_differs(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "r.th")
    done = run("convert", "--from", "cifar", tmp_path / "r.th", tmp_path / "out", status=2)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_convert_makes_an_onnx_graph_and_reads_it_back(tmp_path: Path) -> None:
    graph, back = tmp_path / "r.onnx", tmp_path / "r.safetensors"
    arguments = ("--to", "onnx", "--with-preprocessing", "builtin:resnet20-cifar10", graph)
    assert "resnet20" in run("convert", *arguments).stdout
    said = run("convert", "--from", "onnx", graph, back).stdout
    assert "layout ONNX graph, without its softmax" in said
    ours = catalog.load("builtin:resnet20-cifar10").bundle
    found = bundle.read(back)
    assert (found.input, found.labels) == (ours.input, ours.labels)
    assert found.tensors["head.weight"].equal(ours.tensors["head.weight"])


def test_convert_writes_for_another_library_and_reads_it_back(tmp_path: Path) -> None:
    for library, variant in (("torchvision", "resnet18"), ("timm", "preact_resnet18")):
        theirs, ours = tmp_path / "w.pth", tmp_path / "w.safetensors"
        said = run("convert", "--to", library, f"random:{variant}", theirs).stdout
        assert f"layout {library}" in said
        run("convert", "--from", library, theirs, ours)
        expected = catalog.load(f"random:{variant}").bundle.tensors
        converted = bundle.read(ours).tensors
        assert all(converted[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "torchvision", "random:preact_resnet18"], "no pre-activation networks"),
        (["--to", "caffe", "random:resnet18"], "--to caffe: use one of onnx"),
        (["--to", "torchvison", "random:resnet18"], "--to torchvison: did you mean torchvision?"),
        (["--from", "tensorflow", "nowhere"], "--from tensorflow: use one of cifar, flax"),
        (["--set", "eps=0.001", "random:resnet18"], "--set: only with --from"),
        (["--labels", "cifar10", "random:resnet18"], "--labels: only with --from"),
        (["--from", "onnx", "--with-preprocessing", "x"], "only with --to onnx"),
        (["--from", "onnx", "nowhere.onnx"], "nowhere.onnx: No such file"),
        (["torchvision:resnet19"], "torchvision publishes no weights for 'resnet19'"),
        (["nowhere"], "nowhere: no such file"),
        (["--from", "timm", "nowhere"], "nowhere: No such file or directory"),
    ],
)
def test_convert_says_what_is_wrong_in_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    line = run("convert", *arguments, tmp_path / "out", status=2).stderr
    assert line.count("\n") == 1
    assert words in line
    assert not list(tmp_path.iterdir())
