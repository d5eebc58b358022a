from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models.bundle import BundleError
from models.interchange import convert
from models.preprocess import IMAGENET
from tests.support import libraries
from tests.support.said import said

PREPARED = {
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 224},
}


def network(**options: Any) -> Any:
    resnet = libraries.import_transformers()
    config = resnet.ResNetConfig(**options)
    return libraries.randomised(resnet.ResNetForImageClassification(config), 64)


def tiny(**options: Any) -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [2, 1]}
    return network(**{**sizes, "num_labels": 3, **options})


def saved(theirs: nn.Module, folder: Path, prepared: dict[str, Any] | None = PREPARED) -> Path:
    saver: Any = theirs
    saver.save_pretrained(folder)
    if prepared is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        convert.convert("huggingface", path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("resnet18", {"layer_type": "basic", "depths": [2, 2, 2, 2]}),
        ("resnet34", {"layer_type": "basic", "depths": [3, 4, 6, 3]}),
        ("resnet50", {"layer_type": "bottleneck", "depths": [3, 4, 6, 3]}),
        ("resnet101", {"layer_type": "bottleneck", "depths": [3, 4, 23, 3]}),
    ],
)
def test_the_published_networks_give_equal_logits(
    tmp_path: Path, variant: str, options: dict[str, Any]
) -> None:
    sizes = [64, 128, 256, 512] if options["layer_type"] == "basic" else [256, 512, 1024, 2048]
    theirs = network(embedding_size=64, hidden_sizes=sizes, num_labels=5, **options)
    made = convert.convert("huggingface", saved(theirs, tmp_path), said(variant=variant))
    assert libraries.difference(made.network(), theirs, 64) <= 1
    assert made.input == replace(IMAGENET, interpolation="bicubic")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize(
    ("kind", "sizes"), [("basic", [32, 64]), ("basic", [8, 16]), ("bottleneck", [32, 64])]
)
def test_where_it_strides_is_data(
    tmp_path: Path, kind: str, inner: bool, first: bool, sizes: list[int]
) -> None:
    theirs = tiny(
        layer_type=kind,
        hidden_sizes=sizes,
        downsample_in_first_stage=first,
        downsample_in_bottleneck=inner,
    )
    made = convert.convert("huggingface", saved(theirs, tmp_path))
    assert libraries.difference(made.network(), theirs, 64) <= 1
    assert made.architecture.stride_stages == ("all" if first else "later")


def test_labels_and_source_are_the_configs(tmp_path: Path) -> None:
    names = {0: "tench", 1: "goldfish", 2: "shark"}
    folder = saved(tiny(id2label=names), tmp_path / "a-net")
    for path in (folder, folder / "model.safetensors"):
        made = convert.convert("huggingface", path)
        assert made.labels == tuple(names.values())
    assert convert.convert("huggingface", folder).name == "a-net"


def test_without_a_preprocessor_the_normalisation_is_open(tmp_path: Path) -> None:
    folder = saved(tiny(), tmp_path, None)
    assert "--mean" in refusal(folder)
    made = convert.convert("huggingface", folder, said(mean=IMAGENET.mean, std=IMAGENET.std))
    assert made.input == IMAGENET


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "prepared by ViTImageProcessor"),
        ({"size": {"shortest_edge": 384}}, "from 384 on they are squashed"),
        ({"do_normalize": False}, "without do_normalize"),
        ({"rescale_factor": 1.0}, "scaled by 1.0"),
        ({"resample": 4}, "filter 4"),
        ({"image_mean": [0.5]}, "mean must be three numbers"),
        ({"crop_pct": 2}, "resize must be at least size"),
    ],
)
def test_other_preparations_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(saved(tiny(), tmp_path, PREPARED | changes))


def test_other_networks_are_refused(tmp_path: Path) -> None:
    assert "activates with gelu" in refusal(saved(tiny(hidden_act="gelu"), tmp_path))
    backbone = tiny().resnet
    assert "a backbone without a head" in refusal(saved(backbone, tmp_path / "b"))
    folder = saved(tiny(), tmp_path / "c")
    (folder / "config.json").unlink()
    assert "needs its config.json" in refusal(folder)
    bare = tmp_path / "model.safetensors"
    bare.write_bytes((folder / "model.safetensors").read_bytes()[:100])
    assert "not a whole safetensors file" in refusal(bare)
