from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from models.bundle import BundleError
from models.interchange import convert
from models.interchange.pytorch import timm
from models.preprocess import IMAGENET, InputSpec
from tests.support import libraries

RESNET, RESNETV2 = timm.LAYOUTS


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
        ({"architecture": "resnetblur50"}, "timm's resnetblur50 blurs before it strides"),
        ({"architecture": "resnetaa50.a1h_in1k"}, "timm's resnetaa50 averages before it strides"),
        ({"architecture": "vit_base"}, "vit_base is not a plain ResNet"),
        ({"model_type": "resnet"}, "names no architecture"),
        ({"model_args": {"act_layer": "silu"}}, "built with act_layer='silu'"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "crop_mode 'squash'"),
        ({"pretrained_cfg": {"input_size": [3, 224, 200]}}, "only squares"),
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
