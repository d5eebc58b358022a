from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.bundle import BundleError
from models.interchange import convert
from models.preprocess import IMAGENET
from tests.support import libraries
from tests.support import tiny as small
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
    assert made.input == replace(IMAGENET, interpolation="bicubic", crop="center_truncate")


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


@pytest.mark.parametrize("prepared", [{"image_processor_type": "PvtImageProcessor"}, {"size": 3}])
def test_what_the_user_says_counts_where_the_preprocessor_is_unknown(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    folder = saved(tiny(), tmp_path, prepared)
    assert refusal(folder).endswith("; give --size, --crop, --mean and --std instead")
    options = said(mean=IMAGENET.mean, std=IMAGENET.std, size=128, crop="squash")
    made = convert.convert("huggingface", folder, options)
    assert made.input == replace(IMAGENET, size=128, resize=128, crop="squash")
    (note,) = made.provenance["notes"]
    assert note.startswith("preprocessor_config.json is not followed: images are prepared by ")
    assert "interpolation" in made.provenance["assumed"]


def test_a_preprocessor_leaves_no_input_to_assume(tmp_path: Path) -> None:
    made = convert.convert("huggingface", saved(tiny(), tmp_path))
    assert made.provenance["assumed"] == {"outputs": "exclusive"}


@pytest.mark.parametrize(
    ("problem", "classes", "outputs"),
    [
        ("multi_label_classification", 3, "independent"),
        ("multi_label_classification", 1, "independent"),
        ("single_label_classification", 3, "exclusive"),
    ],
)
def test_the_problem_says_what_the_outputs_are(
    tmp_path: Path, problem: str, classes: int, outputs: str
) -> None:
    theirs = tiny(num_labels=classes, problem_type=problem)
    made = convert.convert("huggingface", saved(theirs, tmp_path))
    if classes > 1:
        assert libraries.difference(made.network(), theirs, 64) <= 1
        assert made.outputs == outputs
        assert "assumed" not in made.provenance
    else:  # The sigmoid of one logit, as the softmax of two.
        assert (made.outputs, made.architecture.num_classes) == ("exclusive", 2)


@pytest.mark.parametrize(
    ("problem", "classes", "words"),
    [
        ("regression", 3, "a network for regression, whose outputs (3) are values, not classes"),
        ("regression", 1, "a network for regression, whose outputs (1) are values, not classes"),
        (None, 1, "a network for regression, whose outputs (1) are values, not classes"),
    ],
)
def test_regression_is_refused_by_name(
    tmp_path: Path, problem: str | None, classes: int, words: str
) -> None:
    folder = saved(tiny(num_labels=classes, problem_type=problem), tmp_path)
    advice = "; if they are logits, give --outputs independent"
    assert refusal(folder) == f"{folder}: {words}{advice}"
    made = convert.convert("huggingface", folder, said(outputs="independent"))
    assert (made.outputs, made.architecture.num_classes) == ("independent", classes)


def test_one_channel_has_one_mean(tmp_path: Path) -> None:
    theirs = tiny_grey()
    folder = saved(theirs, tmp_path, PREPARED | {"image_mean": [0.4], "image_std": [0.3]})
    made = convert.convert("huggingface", folder)
    assert (made.input.channels, made.input.mean, made.input.std) == ("grey", (0.4,), (0.3,))
    images = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(images).logits
        torch.testing.assert_close(made.network()(images), expected, rtol=1e-4, atol=1e-4)


def tiny_grey() -> Any:
    resnet = libraries.import_transformers()
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [2, 1]}
    config = resnet.ResNetConfig(num_channels=1, num_labels=3, **sizes)
    return small.randomised(resnet.ResNetForImageClassification(config)).eval()


def test_a_sharded_folder_is_read(tmp_path: Path) -> None:
    theirs = tiny()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPARED))
    made = convert.convert("huggingface", tmp_path)
    assert libraries.difference(made.network(), theirs, 64) <= 1


def test_a_backbone_has_features(tmp_path: Path) -> None:
    theirs = tiny().resnet
    made = convert.convert("huggingface", saved(theirs, tmp_path))
    assert (made.labels, made.architecture.num_classes) == ((), 0)
    with torch.inference_mode():
        images = libraries.images(64)
        expected = theirs(images).pooler_output.flatten(1)
        torch.testing.assert_close(made.network()(images), expected, rtol=1e-4, atol=1e-4)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    assert "activates with gelu" in refusal(saved(tiny(hidden_act="gelu"), tmp_path))
    folder = saved(tiny(), tmp_path / "c")
    (folder / "config.json").unlink()
    assert "needs its config.json" in refusal(folder)
    bare = tmp_path / "model.safetensors"
    bare.write_bytes((folder / "model.safetensors").read_bytes()[:100])
    assert "not a whole safetensors file" in refusal(bare)
