from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from models import bundling, labels, variants
from models.bundle import Bundle, BundleError
from models.interchange import convert
from models.preprocess import IMAGENET
from models.resnet import ResNet, build
from tests.support import libraries, tiny


@functools.lru_cache(maxsize=1)
def made_bundle(variant: str, **changes: Any) -> Bundle:
    """The same one to whoever asks next: nobody changes it."""
    network = build(variant, **changes)
    return bundling.from_network(
        libraries.randomised(network, 64),
        name="r",
        input=IMAGENET,
        labels=labels.default(network.architecture.num_classes),
        provenance={"source": "a test"},
    )


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("library", "variant"),
    [
        ("torchvision", "resnet18"),
        ("torchvision", "resnet50"),
        ("torchvision", "wide_resnet50_2"),
        ("timm", "resnet18"),
        ("timm", "resnet50"),
        ("timm", "preact_resnet18"),
        ("timm", "preact_resnet50"),
    ],
)
def test_a_round_trip_keeps_every_bit(
    tmp_path: Path, library: str, variant: str, suffix: str
) -> None:
    written, path = made_bundle(variant, num_classes=7), tmp_path / f"w{suffix}"
    convert.export_to(library, written, path)
    assert [path] == list(tmp_path.iterdir())
    again = convert.convert(library, path)
    assert again.architecture == written.architecture
    assert tiny.same_bits(again.tensors, written.tensors)

    if library == "torchvision":
        theirs = libraries.import_torchvision().models.get_model(variant, num_classes=7)
    else:
        name = variant.replace("preact_resnet", "resnetv2_")
        theirs = libraries.import_timm().create_model(name, num_classes=7)
    theirs.load_state_dict(read(path))
    assert libraries.difference(written.network(), theirs.eval(), 64) <= 1


@pytest.mark.parametrize("changes", [{"num_classes": 0}, {"num_classes": 7, "in_channels": 1}])
@pytest.mark.parametrize(
    ("library", "variant", "name"),
    [
        ("torchvision", "resnet18", "resnet18"),
        ("timm", "resnet18", "resnet18"),
        ("timm", "preact_resnet18", "resnetv2_18"),
    ],
)
def test_a_network_without_classes_or_with_grey_images_is_what_another_library_computes(
    tmp_path: Path, library: str, variant: str, name: str, changes: dict[str, Any]
) -> None:
    network = build(variant, **changes).eval()
    classes, channels = changes["num_classes"], changes.get("in_channels", 3)
    spec = (
        replace(IMAGENET, channels="grey", mean=(0.5,), std=(0.2,)) if channels == 1 else IMAGENET
    )
    written = bundling.from_network(network, name="r", input=spec, labels=labels.default(classes))
    convert.export_to(library, written, tmp_path / "r.pth")
    if library == "timm":
        theirs = libraries.import_timm().create_model(name, num_classes=classes, in_chans=channels)
    else:
        theirs = libraries.import_torchvision().models.get_model(name, num_classes=classes or 1)
        theirs.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        theirs.fc = theirs.fc if classes else nn.Identity()
    theirs.load_state_dict(read(tmp_path / "r.pth"))
    images = torch.rand(2, channels, 64, 64)
    with torch.inference_mode():
        expected = network(images) if classes else network.features(images)
        torch.testing.assert_close(theirs.eval()(images), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("library", "variant", "changes", "words"),
    [
        ("torchvision", "preact_resnet18", {}, "no pre-activation networks; timm has"),
        ("torchvision", "resnet20", {}, "stages have (64, 128, 256, 512) planes"),
        ("torchvision", "resnet18_small", {}, "whose stem is 'small'"),
        ("torchvision", "resnet18", {"shortcut": "A"}, "whose shortcut is 'A'"),
        ("torchvision", "resnet50", {"stride_at": "1x1"}, "whose stride_at is '1x1'"),
        ("torchvision", "resnet18", {"width": 2}, "widens bottlenecks only"),
        ("torchvision", "resnet18", {"eps": 1e-3}, "whose eps is 0.001"),
        ("timm", "resnet18", {"padding": "same"}, "whose padding is 'same'"),
        ("timm", "resnet18", {"biases": ["conv1"]}, "whose biases is ('conv1',)"),
        ("timm", "preact_wide_resnet50_2", {}, "resnetv2 has no width of 2"),
        ("timm", "preact_resnet18", {"preact_shortcut": "raw"}, "whose preact_shortcut is 'raw'"),
        ("timm", "preact_resnet18", {"final_norm": False}, "whose final_norm is False"),
        ("torchvision", "resnet18", {"head": (5,)}, "whose head is (5,)"),
        ("torchvision", "resnet18", {"pool": "none"}, "whose pool is 'none'"),
        ("torchvision", "resnet50", {"dilation": (3,)}, "whose dilation is (3,)"),
        ("timm", "resnet50", {"antialias": "blur"}, "whose antialias is 'blur'"),
        ("timm", "resnet18", {"stem_channels": 32}, "whose stem_channels is 32"),
        ("caffe", "resnet18", {}, "no format to write is called 'caffe'"),
    ],
)
def test_what_another_library_lacks_is_refused(
    tmp_path: Path, library: str, variant: str, changes: dict[str, Any], words: str
) -> None:
    network = ResNet(variants.override(variants.variant(variant).architecture, **changes))
    classes = network.architecture.num_classes
    other = bundling.from_network(network, name="r", input=IMAGENET, labels=labels.default(classes))
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.export_to(library, other, tmp_path / "r.pth")
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_options_and_places_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    made = made_bundle("resnet18")
    with pytest.raises(BundleError, match="--to timm has no option opset"):
        convert.export_to("timm", made, tmp_path / "r.pth", opset=17)
    for suffix in (".pth", ".safetensors"):
        with pytest.raises(OSError, match="nowhere"):
            convert.export_to("timm", made, tmp_path / "nowhere" / f"r{suffix}")
