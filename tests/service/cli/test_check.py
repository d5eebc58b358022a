"""The command `check`."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models import bundle, bundling
from models.bundle import Bundle
from models.interchange import alternatives
from tests.support import tiny
from tests.support.commands import run


def made(**changes: Any) -> Bundle:
    described = tiny.described(input=replace(tiny.INPUT, size=32, resize=32))
    return bundling.from_network(tiny.network(**changes), **described)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A bundle, with a pair of its own network and one of the same network with a pool."""
    path = tmp_path / "m.safetensors"
    bundle.write(made(), path)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, changes in (("same", {}), ("pooled", {"pool": "max"})):
            output = made(**changes).network()(images).numpy()
            np.savez(tmp_path / f"{name}.npz", input=images.numpy(), output=output)
    np.save(tmp_path / "x.npy", images.numpy())
    np.save(tmp_path / "y.npy", output)
    return path


def test_a_model_that_agrees_is_said_with_its_difference(model: Path, tmp_path: Path) -> None:
    line, note = run("check", model, tmp_path / "same.npz").stdout.splitlines()
    assert "agrees with same.npz: 2 images (as the network sees them), logits; largest" in line
    assert "top-1 equal for 2 of 2" in line
    assert note == (
        "note: same.npz is normalised already: it does not tell mean, std and "
        "the order of the channels"
    )


def test_a_model_that_differs_ends_with_1_and_names_what_would_fit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 10)
    said = run("check", model, tmp_path / "same.npz", tmp_path / "pooled.npz", status=1).stdout
    assert "agrees with same.npz" in said
    assert "differs from pooled.npz" in said
    # One network cannot compute both.
    assert "known alternatives would fit" in said
    for pair in (["pooled.npz"], ["x.npy", "y.npy"]):
        said = run("check", model, *(tmp_path / name for name in pair), status=1).stdout
        assert "would fit: --set pool=max (largest difference" in said


def test_a_check_as_json(model: Path, tmp_path: Path) -> None:
    found = json.loads(run("check", "--json", model, tmp_path / "same.npz").stdout)
    assert found["agrees"] is True
    assert found["tolerance"] == 1e-4
    assert found["pairs"][0]["pair"] == "same.npz"
    assert found["pairs"][0]["relative"] < 1e-5
    assert found["fits"] == []
    found = json.loads(run("check", "--json", model, tmp_path / "pooled.npz", status=1).stdout)
    assert found["agrees"] is False
    assert found["fits"][0]["options"] == ["--set pool=max"]
    assert found["tried"] > 10


def test_the_tolerance_decides(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 1)
    pair = dict(np.load(tmp_path / "same.npz"))
    pair["output"][0, 0] += 0.001 * np.abs(pair["output"]).max()
    np.savez(tmp_path / "near.npz", **pair)
    assert "tolerance 0.0001" in run("check", model, tmp_path / "near.npz", status=1).stdout
    said = run("check", "--tolerance", "0.01", model, tmp_path / "near.npz").stdout
    assert "tolerance 0.01" in said


def test_a_pair_that_tells_nothing_is_no_agreement(tmp_path: Path) -> None:
    of = made()
    of.tensors["head.weight"] *= 0
    of.tensors["head.bias"] *= 0
    bundle.write(of, tmp_path / "m.safetensors")
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "zero.npz", input=images, output=np.zeros((2, 10), np.float32))
    for flags in ([], ["--json"]):
        done = run("check", *flags, tmp_path / "m.safetensors", tmp_path / "zero.npz", status=1)
        assert ('"blind": true' if flags else "cannot be judged by zero.npz") in done.stdout
        assert "would fit" not in done.stdout


def test_an_archive_that_leaves_its_images_open_is_to_be_converted(tmp_path: Path) -> None:
    plain = tmp_path / "m.onnx"
    run("convert", "--to", "onnx", "random:resnet20", plain)
    graph = onnx.load(plain)
    del graph.metadata_props[:]
    onnx.save(graph, plain)
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as archive:
        archive.add(plain, "m.onnx")
    said = run("check", tmp_path / "m.tar.gz", status=2).stderr
    assert "give --mean r,g,b and --std r,g,b; `resnet-serve convert --from onnx` makes a" in said


def test_any_spec_can_be_checked(tmp_path: Path) -> None:
    from service.repository import catalog

    of = catalog.load("random:resnet20").bundle
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with torch.no_grad():
        probabilities = of.classifier()(torch.from_numpy(pixels)).numpy()
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "p.json").write_text(json.dumps(probabilities.tolist()))
    said = run("check", "random:resnet20", tmp_path / "pixels.npy", tmp_path / "p.json").stdout
    assert "2 images (pixels), probabilities (softmax)" in said
    assert "note" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["builtin:resnet20-cifar10"], "name at least one PAIR; a pair is a file with both"),
        (["builtin:resnet20-cifar10", "nowhere.npz"], "nowhere.npz: No such file"),
        (["builtin:nowhere", "x.npy"], "x.npy: its output is missing"),
        (["onnx-zoo:resnet50-v1"], "did you mean resnet50-v1-7?"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    line = run("check", *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line
