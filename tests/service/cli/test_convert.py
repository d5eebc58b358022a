"""The command `convert`."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch

from models import bundle, variants
from models.classifier import Outputs
from models.interchange import alternatives
from models.preprocess import CHANNELS, RESAMPLING, Crop, InputSpec
from models.resnet import build
from models.storage import Storage
from models.views import Views
from service.config import choices
from service.repository import catalog
from tests.support import tiny
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


def test_one_output_of_an_onnx_graph_is_chosen(tmp_path: Path) -> None:
    path, dst = tmp_path / "r.onnx", tmp_path / "r.safetensors"
    run("convert", "--to", "onnx", "random:resnet20", path)
    model = onnx.load(path)
    (logits,) = (value.name for value in model.graph.output)
    model.graph.node.append(onnx.helper.make_node("Softmax", [logits], ["p"]))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("p"))
    onnx.save(model, path)
    said = run("convert", "--from", "onnx", path, dst, status=2).stderr
    assert f"2 outputs ({logits}, p); --key NAME takes the one" in said
    assert "softmax" in run("convert", "--from", "onnx", "--key", "p", path, dst).stdout


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
        theirs, ours = tmp_path / f"{library}.pth", tmp_path / f"{library}.safetensors"
        said = run("convert", "--to", library, f"random:{variant}", theirs).stdout
        assert f"layout {library}" in said
        run("convert", "--from", library, theirs, ours)
        expected = catalog.load(f"random:{variant}").bundle.tensors
        converted = bundle.read(ours).tensors
        assert all(converted[name].equal(value) for name, value in expected.items())


# What a user says.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 whose classes and images no library determines."""
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    run("convert", "--to", "torchvision", "random:resnet18", path)
    return path


def test_images_are_prepared_as_the_options_say(checkpoint: Path, tmp_path: Path) -> None:
    options = "--size 64,96 --crop letterbox --fill 3,2,1 --interpolation lanczos --channels bgr"
    options += " --mean 0.1,0.2,0.3 --std 0.4,0.5,0.6 --outputs independent"
    out = tmp_path / "out"
    said = run("convert", "--from", "torchvision", *options.split(), checkpoint, out).stdout
    made = bundle.read(out)
    assert made.outputs == "independent"
    assert made.input == InputSpec(
        size=(64, 96),
        resize=(64, 96),
        crop="letterbox",
        fill=(3, 2, 1),
        interpolation="lanczos",
        channels="bgr",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    wrote, assumed = said.splitlines()
    assert (
        "1000 independent classes, layout torchvision, channels bgr, mean 0.1,0.2,0.3, std "
        "0.4,0.5,0.6, size 64x96, crop letterbox, interpolation lanczos, fill 3,2,1"
    ) in wrote
    # It follows the size.
    assert assumed.startswith("assumed: --labels imagenet1k --resize 64,96 --set")
    assert "channels" not in assumed


def test_what_is_assumed_is_listed_and_kept(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("convert", "--from", "torchvision", checkpoint, out).stdout
    wrote, assumed = said.splitlines()
    assert wrote.endswith(": resnet18, shortcut option B, 1000 classes, layout torchvision")
    assert assumed == (
        "assumed: --outputs exclusive --labels imagenet1k --channels rgb --mean 0.485,0.456,0.406 "
        "--std 0.229,0.224,0.225 --size 224 --resize 256 --crop center --interpolation bilinear "
        "--set pool=max --set stem_stride=2 --set antialias=none --set 'dilation=[]'"
    )  # No stride_at, which basic blocks do not have.
    # The options that it names say the same.
    options = shlex.split(assumed.removeprefix("assumed: "))
    again = ("convert", "--from", "torchvision", "--overwrite", checkpoint, out)
    assert "assumed:" not in run(*again, "--strict", *options).stdout
    found = json.loads(run(*again, "--json").stdout)
    assert found["assumed"] == bundle.read(out).provenance["assumed"]
    assert found["input"]["size"] == 224
    # A SPEC says what its file left open when it was converted.
    assert assumed in run("convert", out, tmp_path / "again").stdout


def test_strict_refuses_to_assume(checkpoint: Path, tmp_path: Path) -> None:
    strict = ("convert", "--strict")
    line = run(*strict, "--from", "torchvision", checkpoint, tmp_path / "a", status=2).stderr
    assert "neither the file nor an option says what --strict asks for; give it, as in --o" in line
    run("convert", "--from", "torchvision", checkpoint, tmp_path / "b")
    line = run(*strict, tmp_path / "b", tmp_path / "c", status=2).stderr
    assert "was made with assumptions, which --strict refuses: --outputs exclusive" in line
    run(*strict, "builtin:resnet20-cifar10", tmp_path / "d")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "c").exists()


def test_notes_are_printed_and_kept(tmp_path: Path) -> None:
    bundle.write(catalog.load("builtin:resnet20-cifar10").bundle, tmp_path / "a")
    made = bundle.read(tmp_path / "a")
    made.provenance["notes"] = ["took the averaged weights"]
    bundle.write(made, tmp_path / "a")
    assert run("convert", tmp_path / "a", tmp_path / "b").stdout.endswith(
        "\nnote: took the averaged weights\n"
    )


def pair(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """What the checkpoint's network computes, with fields of its architecture changed."""
    made = catalog.load("random:resnet18").bundle
    architecture = variants.override(made.architecture, **changes)
    network = replace(made, variant=None, architecture=architecture).network()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.save(folder / "y.npy", network(images).numpy())
    np.save(folder / "x.npy", images.numpy())
    return folder / "x.npy", folder / "y.npy"


def test_a_checked_file_is_written_with_the_result(checkpoint: Path, tmp_path: Path) -> None:
    files, out = pair(tmp_path), tmp_path / "out"
    said = run("convert", "--from", "torchvision", "--check", *files, checkpoint, out).stdout
    assert "checked with x.npy: largest difference" in said.splitlines()[-1]
    assert bundle.read(out).provenance["checked"]["relative"] < 1e-5


def test_a_file_that_differs_is_not_written_until_the_named_option_is_given(
    checkpoint: Path, tmp_path: Path
) -> None:
    files, out = pair(tmp_path, pool="none"), tmp_path / "out"
    command = ("convert", "--from", "torchvision", "--check", *files)
    done = run(*command, checkpoint, out, status=1)
    assert "would fit: --set pool=none" in done.stdout
    assert done.stderr == f"{out} is not written\n"
    assert not out.exists()
    run(*command, "--set", "pool=none", checkpoint, out)
    assert bundle.read(out).architecture.pool == "none"


def test_a_spec_can_be_checked_too(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 1)
    files = pair(tmp_path)
    run("convert", "--check", *files, "random:resnet18", tmp_path / "out")
    done = run("convert", "--check", *files, "random:resnet34", tmp_path / "other", status=1)
    assert "differs from x.npy" in done.stdout
    assert not (tmp_path / "other").exists()


def test_words_are_those_of_the_library() -> None:
    assert get_args(Crop) == choices.CROPS
    assert tuple(RESAMPLING) == choices.INTERPOLATIONS
    assert tuple(CHANNELS) == choices.CHANNELS
    assert get_args(Outputs) == choices.OUTPUTS
    assert get_args(Views) == choices.VIEWS
    assert get_args(Storage) == choices.STORAGES


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    made = tiny.made_bundle(temperature=2.0)
    made.tensors["stem.conv.weight"][0] *= 1e-6
    path = tmp_path / "measured.safetensors"
    bundle.write(made, path)
    return path


def test_a_bundle_gets_other_views_and_its_metrics_are_not_claimed_for_them(
    tmp_path: Path, measured: Path
) -> None:
    mirrored, back = tmp_path / "m.safetensors", tmp_path / "b.safetensors"
    said = run("convert", "--views", "mirrored", measured, mirrored).stdout.splitlines()
    assert "mirrored views" in said[0]
    assert said[-2:] == [
        "note: measured with other views: cifar10-test; run evaluate for DST",
        "note: the temperature was fitted with other views; fit it again",
    ]
    found = bundle.read(mirrored)
    assert (found.views, found.metrics, found.temperature) == ("mirrored", {}, 2.0)
    run("convert", mirrored, back)
    assert bundle.read(back).views == "mirrored", "unless told otherwise, they stay"
    run("convert", "--views", "plain", "--overwrite", mirrored, back)
    assert back.read_bytes() == measured.read_bytes()


def test_a_bundle_is_stored_in_16_bits_and_what_is_not_is_named(
    tmp_path: Path, measured: Path
) -> None:
    half, copy = tmp_path / "half.safetensors", tmp_path / "copy.safetensors"
    said = run("convert", "--storage", "fp16", measured, half).stdout.splitlines()
    assert "weights in 16 bits" in said[0]
    assert said[-2:] == [
        "note: measured before rounding: cifar10-test",
        "note: kept in 32 bits, beyond the range of 16: stem.conv.weight",
    ]
    assert half.stat().st_size < measured.stat().st_size
    found = json.loads(run("convert", half, copy, "--json").stdout)
    assert (found["storage"], found["views"]) == ("fp16", "plain")
    assert copy.read_bytes() == half.read_bytes()
    run("convert", "--storage", "fp32", "--overwrite", half, copy)
    assert bundle.read(copy).storage == "fp32"


def test_other_libraries_get_the_network_alone_and_are_told(tmp_path: Path) -> None:
    source, theirs = tmp_path / "m.safetensors", tmp_path / "r.pth"
    run("convert", "--views", "mirrored", "random:resnet18", source)
    said = run("convert", "--to", "torchvision", source, theirs).stdout
    assert "torchvision has the network alone: average the mirror images there" in said
    for options, words in (
        (("--to", "torchvision", "--views", "mirrored"), "--views: has no effect with"),
        (("--to", "onnx", "--storage", "fp16"), "--storage: has no effect with --to onnx"),
    ):
        assert words in run("convert", *options, source, tmp_path / "x", status=2).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "timm", "--crop", "centre", "x"], "--crop centre: did you mean center?"),
        (["--from", "timm", "--interpolation", "cubic", "x"], "did you mean bicubic?"),
        (["--from", "timm", "--channels", "gray", "x"], "--channels gray: did you mean grey?"),
        (["--from", "timm", "--outputs", "softmax", "x"], "use one of exclusive, independent"),
        (
            ["--from", "onnx", "--prefix", "a.", "x"],
            "--prefix: has no effect with --from onnx; only",
        ),
        (["--from", "keras", "--key", "ema", "x"], "--key: has no effect with --from keras; only"),
        (["--size", "64", "random:resnet18"], "--size: only with --from"),
        (["--check", "x.npy", "y.npy", "random:resnet18"], "x.npy: No such file"),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mean", "0.5"], "--mean has 1 value; the images have 3 channels (rgb)"),
        (["--channels", "grey"], "takes images of 3 channels, and grey has 1; give --channels rgb"),
        (["--size", "0"], "'0' is neither a side in pixels nor HEIGHTxWIDTH"),
        (["--size", "a,b"], "'a,b' is neither a side in pixels nor HEIGHTxWIDTH"),
        (["--fill", "red"], "'red' is not whole numbers separated by commas"),
        (["--fill", "1,2,3"], "fill is only for the crop letterbox"),
        (["--mean", "a"], "'a' is not numbers separated by commas"),
        (["--resize", "100"], "resize must be at least size (224), not 100"),
    ],
)
def test_what_does_not_fit_the_file_is_said(
    checkpoint: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    out = tmp_path / "out"
    done = run("convert", "--from", "torchvision", *arguments, checkpoint, out, status=2)
    assert words in done.stderr
    assert not out.exists()


def test_what_is_said_of_images_is_an_option_and_no_field(tmp_path: Path) -> None:
    said = run(
        "convert", "--from", "torchvision", "--set", "size=64", "a", tmp_path / "b", status=2
    )
    line = "--set size: it is not a field of the network; use --size"
    assert said.stderr == f"resnet-serve: {line}\n"
