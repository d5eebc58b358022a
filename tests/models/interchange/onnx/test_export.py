"""What we export computes in onnxruntime what our own forward computes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from models import bundling
from models.bundle import Bundle, BundleError
from models.classifier import Classifier
from models.interchange import convert
from models.preprocess import IMAGENET
from models.resnet import ResNet
from models.variants import variant
from tests.support import rounding, tiny
from tests.support.networks import IMAGES, NETWORKS, network
from tests.support.onnx_files import computed
from tests.support.said import said


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


def described(network: ResNet, size: int, **changes: Any) -> Bundle:
    spec = replace(IMAGENET, size=size, resize=size + 8, interpolation="bicubic")
    return bundling.from_network(network, **tiny.described(input=spec, **changes))


def export(made: Bundle, path: Path, **options: Any) -> Path:
    convert.EXPORTERS["onnx"](made, path, options)
    onnx.checker.check_model(path, full_check=True)
    return path


def run(path: Path, images: Any) -> Any:
    return onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_logits_are_equal_at_every_batch_size_and_the_way_back_is_exact(
    tmp_path: Path, name: str
) -> None:
    ours = network(name)
    size = IMAGES[ours.architecture.stem]
    made = described(ours, size)
    path = export(made, tmp_path / "x.onnx")
    for count in (1, 3):
        images = torch.randn(count, 3, size, size)
        with torch.no_grad():
            rounding.assert_near(run(path, images.numpy()), ours(images), ours)
    back = convert.convert("onnx", path)
    assert (back.name, back.input, back.labels) == (made.name, made.input, made.labels)
    if name != "biases":  # Where a norm follows, it has taken them in.
        assert back.architecture == made.architecture
        floats = {k: v for k, v in made.tensors.items() if v.is_floating_point()}
        assert tiny.same_bits({name: back.tensors[name] for name in floats}, floats)


@pytest.mark.parametrize("size", [31, 45, 50])
def test_same_padding_is_that_of_the_exported_size(tmp_path: Path, size: int) -> None:
    ours = network("same")
    path = export(described(ours, size), tmp_path / "x.onnx")
    images = torch.randn(2, 3, size, size)
    back = convert.convert("onnx", path).network()
    with torch.no_grad():
        expected = ours(images)
        rounding.assert_near(run(path, images.numpy()), expected, ours)
        rounding.assert_near(back(images), expected, ours)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "preact_resnet20", "wide_resnet16_2"])
def test_named_networks_are_exported_whole(tmp_path: Path, name: str) -> None:
    row = variant(name)
    ours = tiny.randomised(ResNet(replace(row.architecture, num_classes=10))).eval()
    with torch.no_grad():
        for each in ours.modules():
            if isinstance(each, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(each.weight)
    size = row.input.height
    path = export(described(ours, size), tmp_path / "x.onnx")
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        rounding.assert_near(run(path, images.numpy()), ours(images), ours)
    assert convert.convert("onnx", path).variant == name


def test_with_preprocessing_it_is_the_classifier(tmp_path: Path) -> None:
    ours = network("option A")
    with torch.no_grad():  # So that no class is certain: there, nothing would show.
        ours.head.weight.mul_(0.03)  # type: ignore[operator]
    made = described(ours, 16)
    path = export(made, tmp_path / "x.onnx", with_preprocessing=True)
    pixels = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = Classifier(ours, made.input)(pixels).numpy()
    rounding.assert_probabilities_near(run(path, pixels.numpy()), expected, ours)
    back = convert.convert("onnx", path)
    assert (back.input, back.labels, back.architecture) == (
        made.input,
        made.labels,
        made.architecture,
    )


def test_a_temperature_is_in_the_probabilities_and_beside_the_logits(tmp_path: Path) -> None:
    ours = network("option A")
    with torch.no_grad():
        ours.head.weight.mul_(0.03)  # type: ignore[operator]
    made = described(ours, 16, temperature=2.5, card="# For a test")
    pixels = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    images = Classifier(ours, made.input).normalise(pixels)
    with torch.no_grad():
        expected, logits = made.classifier()(pixels).numpy(), ours(images).numpy()
    whole = export(made, tmp_path / "whole.onnx", with_preprocessing=True)
    rounding.assert_probabilities_near(run(whole, pixels.numpy()), expected, ours)
    plain = export(made, tmp_path / "plain.onnx")
    rounding.assert_near(run(plain, images.numpy()), logits, ours)
    for path, temperature in ((whole, 1.0), (plain, 2.5)):  # Within the head, and beside it.
        back = convert.convert("onnx", path)
        assert (back.temperature, back.card) == (temperature, "# For a test")
        with torch.no_grad():
            rounding.assert_probabilities_near(back.classifier()(pixels), expected, ours)


# Whatever a bundle can say.
BUNDLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "independent": ({}, {"outputs": "independent"}),
    "one independent": ({"num_classes": 1}, {"outputs": "independent", "labels": ("defect",)}),
    "hidden layers": ({"head": (6, 7)}, {}),
    "hidden layers, independent, cooled": (
        {"head": (6,)},
        {"outputs": "independent", "temperature": 1.5},
    ),
    "no head": ({"num_classes": 0}, {"labels": ()}),
    "not square": ({}, {"input": {"size": (16, 12), "resize": (20, 16)}}),
    "letterboxed": ({}, {"input": {"crop": "letterbox", "fill": (114, 114, 114), "size": 16}}),
    "squashed": ({}, {"input": {"crop": "squash", "interpolation": "nearest"}}),
    "grey": ({"in_channels": 1}, {"input": {"channels": "grey", "mean": (0.4,), "std": (0.3,)}}),
    "transparent": (
        {"in_channels": 4},
        {"input": {"channels": "rgba", "mean": (0.4,) * 4, "std": (0.3,) * 4}},
    ),
    "bgr": ({}, {"input": {"channels": "bgr"}}),
    "averages": ({"antialias": "average", "stem": "imagenet"}, {}),
    "blur": ({"antialias": "blur", "stem": "imagenet"}, {}),
    "dilated": ({"blocks": (1, 2), "dilation": (1,)}, {}),
    "3x3 with a pool": ({"pool": "max"}, {}),
    "7x7 without": ({"stem": "imagenet", "pool": "none"}, {}),
}


def bundle_of(name: str) -> Bundle:
    architecture, described = BUNDLES[name]
    ours = tiny.network(**architecture)
    with torch.no_grad():  # So that no class is certain.
        for key, value in ours.state_dict().items():
            if key.startswith("head.") and value.ndim == 2:
                value.mul_(0.3)
    prepared = {"size": 16, "resize": 24, **described.get("input", {})}
    spec = replace(IMAGENET, **prepared)
    return bundling.from_network(ours, **tiny.described(**{**described, "input": spec}))


@pytest.mark.parametrize("optimised", [False, True], ids=["as it is", "optimised"])
@pytest.mark.parametrize("whole", [False, True], ids=["network", "with preprocessing"])
@pytest.mark.parametrize("name", list(BUNDLES))
def test_whatever_a_bundle_says_is_exported_and_read_back(
    tmp_path: Path, name: str, whole: bool, optimised: bool
) -> None:
    made = bundle_of(name)
    path = export(made, tmp_path / "x.onnx", with_preprocessing=whole)
    pixels = torch.randint(256, (2, *made.input.shape), dtype=torch.uint8)
    network, classifier = made.network(), made.classifier()
    headless = not made.labels
    with torch.no_grad():
        normalised = classifier.normalise(pixels)
        features, expected = network(normalised), classifier(pixels)
    given = pixels if whole else normalised.contiguous()
    theirs = computed(path, given, optimised=optimised)
    if whole and not headless:
        rounding.assert_probabilities_near(theirs, expected, made.tensors)
    else:
        rounding.assert_near(theirs, features, made.tensors)
    (output,) = onnx.load(path).graph.output
    assert output.name == ("features" if headless else "probabilities" if whole else "logits")

    back = convert.convert("onnx", path, said(strict=True))  # Nothing is assumed.
    for field in ("name", "input", "labels", "outputs", "architecture", "card", "metrics"):
        assert getattr(back, field) == getattr(made, field), field
    assert "assumed" not in back.provenance
    cooled = whole and made.temperature != 1.0
    assert back.temperature == (1.0 if cooled else made.temperature)
    if not cooled:
        assert tiny.same_bits(back.tensors, made.tensors)
    if not headless:
        with torch.no_grad():
            rounding.assert_probabilities_near(back.classifier()(pixels), expected, made.tensors)


def test_metadata_for_other_channels_is_not_believed(tmp_path: Path) -> None:
    path = export(bundle_of("grey"), tmp_path / "x.onnx")
    model = onnx.load(path)
    kept = {each.key: each.value for each in model.metadata_props}
    changed = {"channels": '"rgb"', "mean": "[0.1, 0.2, 0.3]", "std": "[1, 1, 1]"}
    onnx.helper.set_model_props(model, kept | changed)
    onnx.save(model, path)
    with pytest.raises(BundleError, match="does not say how images were normalised"):
        convert.convert("onnx", path)


def test_metadata_of_other_programs_is_no_temperature(tmp_path: Path) -> None:
    path = export(described(network("option B"), 16), tmp_path / "x.onnx")
    model = onnx.load(path)
    kept = [each for each in model.metadata_props if each.key != "mean"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.helper.set_model_props(
        model, {each.key: each.value for each in kept} | {"temperature": "3"}
    )
    onnx.save(model, path)
    read = convert.convert("onnx", path, said(mean=IMAGENET.mean, std=IMAGENET.std))
    assert read.temperature == 1.0


def test_the_file_says_what_it_is_and_is_the_same_every_time(tmp_path: Path) -> None:
    made = described(network("option B"), 16)
    first, second = (export(made, tmp_path / name) for name in ("a.onnx", "b.onnx"))
    assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob("*.part"))
    model = onnx.load(first)
    said = {each.key: each.value for each in model.metadata_props}
    assert said["name"] == "tiny-cifar10"
    assert json.loads(said["labels"])[0] == "Müsli"
    assert json.loads(said["mean"]) == list(IMAGENET.mean)
    assert json.loads(said["std"]) == list(IMAGENET.std)
    names = {each.name for each in model.graph.initializer}
    assert {"stem.conv.weight", "stages.1.0.bn1.running_var", "head.bias"} <= names


@pytest.mark.parametrize("name", ["no name", "", None])
def test_a_name_that_is_none_gives_way_to_the_files(tmp_path: Path, name: str | None) -> None:
    path = export(described(network("option B"), 16), tmp_path / "my net.v2.onnx")
    model = onnx.load(path)
    kept = {each.key: each.value for each in model.metadata_props if each.key != "name"}
    onnx.helper.set_model_props(model, kept if name is None else kept | {"name": name})
    onnx.save(model, path)
    back = convert.convert("onnx", path)
    assert (back.name, back.labels[0]) == ("my-net", "Müsli")
    assert convert.convert("onnx", path, said(name="given")).name == "given"


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = described(network("option B"), 16)
    for name in [each for each in sys.modules if each.partition(".")[0] == "onnx"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BundleError, match="pip install 'h5py>="):
        convert.EXPORTERS["onnx"](made, tmp_path / "x.onnx", {})


@pytest.mark.parametrize("name", ["option A", "pre-activated bottleneck"])
def test_mirrored_views_are_averaged_within_the_graph(tmp_path: Path, name: str) -> None:
    ours = network(name)
    with torch.no_grad():
        ours.head.weight.mul_(0.03)  # type: ignore[operator]
    size = IMAGES[ours.architecture.stem]
    made = described(ours, size, views="mirrored", temperature=1.5)
    path = export(made, tmp_path / "x.onnx")
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        straight, mirrored = ours(images), ours(images.flip(3))
    rounding.assert_near(run(path, images.numpy()), (straight + mirrored) / 2, ours)
    path = export(made, tmp_path / "whole.onnx", with_preprocessing=True)
    pixels = torch.randint(256, (3, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = made.classifier()(pixels).numpy()
    rounding.assert_probabilities_near(run(path, pixels.numpy()), expected, ours)
    for each in (tmp_path / "x.onnx", path):
        with pytest.raises(
            BundleError, match="averages mirror images; export the bundle with --views plain"
        ):
            convert.convert("onnx", each)
