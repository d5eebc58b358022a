"""Weights of timm's ResNets, in its files and its repositories on the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from models.bundle import BundleError
from models.interchange.imported import Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint, read_json, weights_file
from models.interchange.pytorch.layout import TORCHVISION_RENAMES, Layout, find, shown, to_ours
from models.preprocess import IMAGENET, InputSpec, PerChannel

LAYOUTS = (
    Layout(
        name="timm resnet",
        has=(r"conv1\.", r"layer1\.0\.conv1\.weight"),
        renames=TORCHVISION_RENAMES,
    ),
    Layout(
        name="timm resnetv2",
        has=(r"stem\.conv", r"stages\.0\.blocks\.0\.norm1\."),
        renames=(
            (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
            (r"(\.\d+)\.norm(\d)\.", r"\1.bn\2."),
            (r"\.downsample\.conv\.", ".shortcut.conv."),
            (r"^head\.fc\.", "head."),
        ),
    ),
)

HALF: PerChannel = (0.5, 0.5, 0.5)
# The input without a config.
DEFAULTS = {"timm resnet": IMAGENET, "timm resnetv2": replace(IMAGENET, mean=HALF, std=HALF)}

# Plain networks, which their names tell apart but their weights do not.
PLAIN = re.compile(
    r"(?:(?:tv|ssl|swsl|gluon)_)?(?:wide_)?resnet\d+(?:_\d+)?(?:_v1b)?|resnetv2_\d+", re.ASCII
)
OTHERS = (
    ("resnetblur", "blurs before it strides"),
    ("resnetaa", "averages before it strides"),
    ("resnext", "has grouped convolutions"),
    ("ecaresnet", "has channel attention"),
    ("seresnet", "has squeeze-and-excitation"),
    ("skresnet", "has selective kernels"),
    ("bit", "has standardised convolutions and GroupNorm"),
    ("evos", "has EvoNorm"),
    ("gn", "has GroupNorm"),
)
# Factory arguments that do not change what a trained network computes.
WITHOUT_EFFECT = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "zero_init_last"}
AVERAGING = ("avg", "fast")


def read(path: Path, said: Said) -> Imported:
    """The weights of a plain `resnet*`, `wide_resnet*` or `resnetv2_*`, under our names.

    `path` is a file or a folder. A `config.json` beside the weights determines the input and the
    class names; without one, the input is timm's default for the family.

    Raises:
        BundleError: it cannot be read, or is something else; the message says what.
    """
    file = weights_file(path)
    tensors = read_checkpoint(file, said)
    layout = find(LAYOUTS, tensors)
    if layout is None:
        raise BundleError(f"{path}: not a timm ResNet; its first tensors: {shown(tensors)}")
    renamed, architecture = to_ours(layout, tensors, path)
    if architecture.stem != "imagenet":
        raise BundleError(f"{path}: has a stem for small images, which no timm network has")
    config = read_json(file.with_name("config.json"))
    spec, labels = DEFAULTS[layout.name], None
    if config is not None:
        try:
            _check_plain(config)
            spec = input_spec(_pretrained(config), spec)
            labels = label_names(config, architecture.num_classes)
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{file.with_name('config.json')}: {error}") from None
    return Imported(
        layout=layout.name,
        tensors=renamed,
        architecture=architecture,
        spec=spec,
        said=frozenset({"padding"}),
        labels=labels,
        provenance=_provenance(config or {}),
        file=file,
    )


def input_spec(pretrained: Mapping[str, Any], default: InputSpec) -> InputSpec:
    """The input specification in a `pretrained_cfg`, with missing fields from `default`.

    Raises:
        ValueError: `InputSpec` does not support its crop, or its size is not square.
    """
    if pretrained.get("crop_mode", "center") != "center":
        raise ValueError(f"crop_mode {pretrained['crop_mode']!r}; only center is supported")
    _, height, width = pretrained.get("input_size", (3, default.height, default.width))
    if height != width:
        raise ValueError(f"images of {height}x{width}; only squares are supported")
    crop = pretrained.get("crop_pct", default.height / default.box[0])
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, not {crop!r}")
    return InputSpec(
        size=height,
        resize=math.floor(height / crop),
        interpolation=pretrained.get("interpolation", default.interpolation),
        mean=pretrained.get("mean", default.mean),
        std=pretrained.get("std", default.std),
    )


def label_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...] | None:
    """The class names in a config; descriptions rather than identifiers."""
    pretrained = _pretrained(config)

    def find_entry(name: str) -> Any:
        return config.get(name) or pretrained.get(name)

    names = find_entry("label_names") or find_entry("labels")
    if names is None:
        return None
    if isinstance(names, dict):
        if any(str(index) not in names for index in range(classes)):
            raise ValueError("label_names must name the classes from 0 on")
        names = [names[str(index)] for index in range(classes)]
    descriptions = find_entry("label_descriptions")
    described = descriptions if isinstance(descriptions, dict) else {}
    return tuple(str(described.get(name, name)) for name in names)


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The preprocessing settings; old files have them at the top level."""
    pretrained = config.get("pretrained_cfg", config)
    if not isinstance(pretrained, dict):
        raise TypeError("pretrained_cfg must be an object")
    return cast("Mapping[str, Any]", pretrained)


def _check_plain(config: Mapping[str, Any]) -> None:
    if "architecture" not in config:
        raise ValueError("not a timm config: it names no architecture")
    architecture = str(config["architecture"]).partition(".")[0]
    if not PLAIN.fullmatch(architecture):
        why = next((why for part, why in OTHERS if part in architecture), "is not a plain ResNet")
        raise ValueError(f"timm's {architecture} {why}")
    arguments = dict(config.get("model_args") or {})
    for pool in (config.get("global_pool", "avg"), arguments.pop("global_pool", "avg")):
        if pool not in AVERAGING:
            raise ValueError(f"global_pool {pool!r}; networks here average")
    if changed := [f"{key}={arguments[key]!r}" for key in arguments if key not in WITHOUT_EFFECT]:
        raise ValueError(f"built with {', '.join(changed)}: no longer a plain {architecture}")


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's name and tag."""
    said = {"architecture": config.get("architecture"), "tag": _pretrained(config).get("tag")}
    return {key: value for key, value in said.items() if value}
