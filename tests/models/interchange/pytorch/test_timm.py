from __future__ import annotations

import functools
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from models.bundle import BundleError
from models.interchange import convert
from models.interchange.pytorch import timm
from models.preprocess import IMAGENET, InputSpec, resize_and_crop
from tests.support import libraries, rounding, tiny
from tests.support.said import said

RESNET, RESNETV2, _ = timm.LAYOUTS


@functools.lru_cache(maxsize=1)
def network(name: str, **options: Any) -> nn.Module:
    """The same one to whoever asks next: nobody changes it."""
    made: nn.Module = libraries.import_timm().create_model(name, **options)
    return libraries.randomised(made, 64)


@functools.cache
def narrow() -> nn.Module:
    """A network whose file is small."""
    made: nn.Module = libraries.import_timm().create_model("resnet18", channels=(64, 8, 8, 8))
    return made


def saved(theirs: nn.Module, folder: Path, config: dict[str, Any] | None = None) -> Path:
    """As timm itself saves it for the hub."""
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.convert("timm", path)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet26",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnet200",
        "wide_resnet50_2",
        "wide_resnet101_2",
        "resnetv2_18",
        "resnetv2_34",
        "resnetv2_50",
        "resnetv2_101",
        "resnetv2_152",
    ],
)
def test_every_plain_network_gives_equal_logits(name: str) -> None:
    theirs = network(name)
    layout = RESNETV2 if "v2" in name else RESNET
    converted = libraries.ours(layout, theirs)
    assert converted.architecture.preact == ("v2" in name)
    assert libraries.difference(converted, theirs, 64) <= 1


@pytest.mark.parametrize(
    ("name", "dilation"), [("resnet18", ()), ("resnet50", (2, 3)), ("resnetv2_18", ())]
)
def test_stages_give_timms_features(name: str, dilation: tuple[int, ...]) -> None:
    theirs: Any = network(name, output_stride=32 // 2 ** len(dilation))
    layout = RESNETV2 if "v2" in name else RESNET
    made = libraries.ours(layout, theirs, dilation=dilation)
    rows = (
        theirs.feature_info if isinstance(theirs.feature_info, list) else theirs.feature_info.info
    )
    assert list(made.stage_channels) == [row["num_chs"] for row in rows]
    assert list(made.stage_strides) == [row["reduction"] for row in rows]
    images = libraries.images(64)
    with torch.inference_mode():
        expected = theirs.forward_intermediates(images, intermediates_only=True)
        found = made.features(images, range(5))
    for ours, other in zip(found, expected, strict=True):
        rounding.assert_near(ours, other, made)


def test_names_are_those_of_torchvisions_networks() -> None:
    models = libraries.import_torchvision().models
    for name in ("resnet18", "wide_resnet50_2"):
        with torch.device("meta"):
            theirs = libraries.import_timm().create_model(name).state_dict()
            other = models.get_model(name).state_dict()
        assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18"])
def test_a_folder_as_timm_saves_it_becomes_a_bundle(tmp_path: Path, name: str) -> None:
    theirs = network(name, num_classes=3)
    names = {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "cat", "n3": "dog"}}
    hub = libraries.import_timm().models
    hub.save_for_hf(theirs, str(tmp_path), model_config=names, safe_serialization="both")
    for path in (tmp_path, tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors"):
        made = convert.convert("timm", path)
        assert libraries.difference(made.network(), theirs, 64) <= 1
        assert made.labels == ("cat", "n2", "dog")
        prepared = libraries.import_timm().data.resolve_model_data_config(theirs)
        assert made.input == InputSpec(
            size=prepared["input_size"][1],
            resize=math.floor(prepared["input_size"][1] / prepared["crop_pct"]),
            interpolation=prepared["interpolation"],
            mean=prepared["mean"],
            std=prepared["std"],
        )
    assert made.provenance["architecture"] == name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"interpolation": "bicubic", "resize": 235}),
        ({"crop_pct": 1.0}, {"interpolation": "bicubic", "resize": 224}),
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, {"resize": 256}),
        ({"input_size": [3, 288, 288], "crop_pct": 1}, {"size": 288, "resize": 288}),
        ({"mean": [0.5, 0.5, 0.5]}, {"mean": (0.5, 0.5, 0.5), "resize": 235}),
        ({"test_input_size": [3, 288, 288], "test_crop_pct": 1.0}, {"resize": 235}),
        ({"crop_mode": "squash"}, {"crop": "squash", "resize": 235}),
        (
            {"crop_mode": "border", "crop_pct": 1.0},
            {"crop": "letterbox", "resize": 224, "fill": (124, 116, 104)},
        ),
        (
            {"input_size": [3, 160, 224], "crop_pct": 0.9},
            {"size": (160, 224), "resize": (177, 248)},
        ),
    ],
)
def test_a_config_says_how_images_are_prepared(
    changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    base = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95}
    wanted = {"interpolation": changes.get("interpolation", "bicubic"), **expected}
    assert timm.input_spec(base | changes, IMAGENET) == replace(IMAGENET, **wanted)


def test_without_a_config_images_are_as_timm_defaults(tmp_path: Path) -> None:
    path = saved(network("resnetv2_18"), tmp_path)
    assert convert.convert("timm", path).input == replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert convert.convert("timm", saved(network("resnet18"), tmp_path)).input == IMAGENET


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18d", "a deep stem"),
        ("resnet10t", "a deep stem"),
        ("resnet50s", "a deep stem"),
        ("resnet50c", "a deep stem"),
        ("resnetv2_18d", "a deep stem"),
        ("resnext26ts", "not a timm ResNet"),
        ("resnext50_32x4d", "32 groups (ResNeXt)"),
        ("seresnet18", "attention"),
        ("ecaresnet50t", "attention"),
        ("resnet50_gn", "GroupNorm"),
        ("resnetv2_50x1_bit", "GroupNorm"),
        ("resnetv2_50d_evos", "EvoNorm"),
        ("legacy_seresnet18", ""),
        ("resnest14d", ""),
    ],
)
def test_other_networks_are_refused_by_what_they_are(tmp_path: Path, name: str, words: str) -> None:
    assert words in refusal(saved(libraries.import_timm().create_model(name), tmp_path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "resnetblur50d"}, "timm's resnetblur50d has a deep stem"),
        ({"architecture": "resnetaa34d.a1h_in1k"}, "timm's resnetaa34d has a deep stem"),
        ({"model_args": {"aa_layer": "blurpc"}}, "aa_layer 'blurpc'; supported are avg, avgpool"),
        ({"model_args": {"output_stride": 12}}, "output_stride must be one of 8, 16 and 32"),
        ({"architecture": "vit_base"}, "vit_base is not a plain ResNet"),
        ({"model_type": "resnet"}, "names no architecture"),
        ({"model_args": {"act_layer": "silu"}}, "built with act_layer='silu'"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"pretrained_cfg": {"crop_mode": "random"}}, "crop_mode 'random'"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation must be one of"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop_pct must be"),
        ({"pretrained_cfg": []}, "pretrained_cfg must be an object"),
        ({"label_names": {"0": "a"}}, "label_names must name the classes from 0 on"),
    ],
)
def test_a_config_of_another_network_is_refused(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    base = {} if "model_type" in config else {"architecture": "resnet18"}
    assert words in refusal(saved(narrow(), tmp_path, {**base, **config}))


def test_a_damaged_config_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    assert "a folder without model.safetensors" in refusal(tmp_path)
    path = saved(narrow(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in refusal(path)
    (tmp_path / "config.json").write_text("[]")
    assert "not a JSON object" in refusal(path)


@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [[3, 224, 224], [3, 160, 224]], ids=str)
def test_images_become_what_timm_makes_of_them(mode: str, size: list[int], crop: float) -> None:
    libraries.import_timm()
    transforms = importlib.import_module("timm.data.transforms_factory")
    config = {"input_size": size, "crop_mode": mode, "crop_pct": crop, "interpolation": "bicubic"}
    config |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    spec = timm.input_spec(config, IMAGENET)
    prepare = transforms.transforms_imagenet_eval(
        tuple(size[1:]),
        crop_pct=crop,
        crop_mode=mode,
        interpolation="bicubic",
        mean=config["mean"],
        use_prefetcher=True,
    )
    random = np.random.default_rng(0)
    for width, height in ((300, 411), (411, 300), (160, 160), (101, 640), (640, 333)):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        theirs = np.asarray(prepare(image)).transpose(1, 2, 0)
        np.testing.assert_array_equal(resize_and_crop(image, spec), theirs)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnetblur18", {}),
        ("resnetaa50", {}),
        ("resnet18", {"aa_layer": "avg"}),
        ("resnet18", {"aa_layer": "blur"}),
        ("resnet18", {"output_stride": 16}),
        ("resnet26", {"output_stride": 8}),
        ("resnetv2_18", {"output_stride": 16}),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_only_the_config_says_of_a_network(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    library = libraries.import_timm()
    layers = {"avg": nn.AvgPool2d, "blur": library.layers.BlurPool2d}
    # timm takes a class where its config can only have the name.
    options = {name: layers.get(value, value) for name, value in arguments.items()}
    theirs = library.create_model(name, num_classes=3, **options)
    libraries.randomised(theirs, 96)
    path = saved(theirs, tmp_path, {"architecture": name, "model_args": arguments})
    made = convert.convert("timm", path)
    assert libraries.difference(made.network(), theirs, 96) <= 1
    assert made.provenance["assumed"] == {"labels": "class 0 to class 2", "outputs": "exclusive"}
    # Without the config it is another network, and what may differ is listed.
    (tmp_path / "config.json").unlink()
    other = convert.convert("timm", path)
    assert libraries.difference(other.network(), theirs, 96) > 1
    assert {"dilation", "pool"} <= other.provenance["assumed"].keys()


def test_the_test_size_is_a_note(tmp_path: Path) -> None:
    config = {"architecture": "resnet18", "pretrained_cfg": {"test_input_size": [3, 288, 288]}}
    config["pretrained_cfg"] |= {"test_crop_pct": 0.95, "input_size": [3, 224, 224]}  # type: ignore[operator]
    path = saved(narrow(), tmp_path, config)
    made = convert.convert("timm", path)
    assert made.input.size == 224
    assert made.provenance["notes"] == ["timm tests it at 288 pixels: --size 288 --resize 303"]
    wanted = convert.convert("timm", path, said(size=288, resize=303))
    assert (wanted.input.size, wanted.input.resize) == (288, 303)


def test_one_channel_is_asked_for_its_normalisation(tmp_path: Path) -> None:
    theirs = libraries.import_timm().create_model("resnet18", in_chans=1, num_classes=3)
    tiny.randomised(theirs, 2).eval()
    config = {"architecture": "resnet18", "model_args": {"in_chans": 1}}
    path = saved(theirs, tmp_path, {**config, "pretrained_cfg": {"mean": [0.4, 0.4, 0.4]}})
    assert "give --mean" in refusal(path)
    made = convert.convert("timm", path, said(mean=(0.4,), std=(0.3,)))
    assert made.input.channels == "grey"
    config["pretrained_cfg"] = {"mean": [0.4], "std": [0.3]}
    path = saved(theirs, tmp_path, config)
    assert convert.convert("timm", path).input == made.input
