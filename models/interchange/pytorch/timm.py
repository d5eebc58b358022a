"""Weights of timm's ResNets, in its files and its repositories on the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from models.architecture import Antialias
from models.bundle import BundleError
from models.interchange.imported import BODY, INPUT, Imported, Said
from models.interchange.normalisations import HALF
from models.interchange.pytorch.checkpoint import read_checkpoint, read_json, weights_file
from models.interchange.pytorch.layout import (
    CHILDREN,
    TORCHVISION_BODY,
    TORCHVISION_RENAMES,
    Layout,
)
from models.interchange.pytorch.location import locate
from models.preprocess import BY_COUNT, IMAGENET, Crop, InputSpec

LAYOUTS = (
    Layout(
        name="timm resnet",
        body=TORCHVISION_BODY,
        has=(r"conv1\.",),
        renames=TORCHVISION_RENAMES,
    ),
    Layout(
        name="timm resnetv2",
        body=r"stages\.0\.blocks\.0\.conv1\.weight",
        has=(r"stem\.conv", r"stages\.0\.blocks\.0\.norm1\."),
        renames=(
            (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
            (r"(\.\d+)\.norm(\d)\.", r"\1.bn\2."),
            (r"\.downsample\.conv\.", ".shortcut.conv."),
            (r"^head\.fc\.", "head."),
        ),
    ),
    CHILDREN,
)

# The input without a config.
DEFAULTS = {"timm resnetv2": replace(IMAGENET, mean=HALF[0], std=HALF[1])}

# Plain networks, which their names tell apart but their weights do not.
PLAIN = re.compile(
    r"(?:(?:tv|ssl|swsl|gluon)_)?(?:wide_)?resnet\d+(?:_\d+)?(?:_v1b)?|resnet(?:aa|blur)\d+"
    r"|resnetv2_\d+",
    re.ASCII,
)
OTHERS = (
    ("resnetaa", "has a deep stem and shortcuts that average"),
    ("resnetblur", "has a deep stem and shortcuts that average"),
    ("resnext", "has grouped convolutions"),
    ("ecaresnet", "has channel attention"),
    ("seresnet", "has squeeze-and-excitation"),
    ("skresnet", "has selective kernels"),
    ("bit", "has standardised convolutions and GroupNorm"),
    ("evos", "has EvoNorm"),
    ("gn", "has GroupNorm"),
)
# Factory arguments that do not change what a trained network computes, or that shapes reveal.
WITHOUT_EFFECT = {
    "base_width",
    "channels",
    "drop_path_rate",
    "drop_rate",
    "in_chans",
    "layers",
    "num_classes",
    "zero_init_last",
}
AVERAGING = ("avg", "fast")
ANTIALIAS: dict[str, Antialias] = {
    "avg": "average",
    "avgpool": "average",
    "blur": "blur",
    "blurpool": "blur",
}
CROPS: dict[str, Crop] = {"center": "center", "squash": "squash", "border": "letterbox"}
# The stages that dilate instead of striding.
STRIDES: dict[int, tuple[int, ...]] = {32: (), 16: (3,), 8: (2, 3)}


def read(path: Path, said: Said) -> Imported:
    """The weights of a plain `resnet*`, `wide_resnet*` or `resnetv2_*`, under our names.

    `path` is a file or a folder. A `config.json` beside the weights determines the input and the
    class names; without one, timm's defaults for the family are assumed.

    Raises:
        BundleError: it cannot be read, or is something else; the message says what.
    """
    file = weights_file(path)
    located = locate(LAYOUTS, read_checkpoint(file, said), path, said, "not a timm ResNet")
    layout = located.layout
    config = read_json(file.with_name("config.json"))
    try:
        numerics = {} if config is None else _numerics(config)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{file.with_name('config.json')}: {error}") from None
    tensors, architecture, notes = located.to_ours(said, **numerics)
    if architecture.stem != "imagenet":
        raise BundleError(
            f"{path}: has a stem for small images, which no timm network has; use --from cifar"
        )
    spec, known = located.prepared(DEFAULTS.get(layout.name, IMAGENET))
    labels = None
    if config is not None:
        try:
            spec, known = input_spec(_pretrained(config), spec), frozenset((*INPUT, *BODY))
            labels = label_names(config, architecture.num_classes)
            notes += _test_size(_pretrained(config), spec)
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{file.with_name('config.json')}: {error}") from None
    return Imported(
        layout=layout.name,
        tensors=tensors,
        architecture=architecture,
        spec=spec,
        said=known | {"padding", "stem_padding"},
        notes=notes,
        labels=labels,
        provenance=_provenance(config or {}),
        file=file,
    )


def input_spec(pretrained: Mapping[str, Any], default: InputSpec) -> InputSpec:
    """The input specification in a `pretrained_cfg`, with missing fields from `default`.

    Raises:
        ValueError: `InputSpec` does not support it.
    """
    mode = pretrained.get("crop_mode") or "center"
    if mode not in CROPS:
        raise ValueError(f"crop_mode {mode!r}; supported are {', '.join(CROPS)}")
    _, *sides = pretrained.get("input_size", (3, default.height, default.width))
    height, width = sides
    crop = pretrained.get("crop_pct", default.height / default.box[0])
    if type(crop) not in (int, float) or not 0 < crop <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, not {crop!r}")
    mean = tuple(pretrained.get("mean", default.mean))
    return InputSpec(
        size=(height, width),
        resize=(math.floor(height / crop), math.floor(width / crop)),
        crop=CROPS[mode],
        interpolation=pretrained.get("interpolation", default.interpolation),
        mean=mean,
        std=tuple(pretrained.get("std", default.std)),
        channels=BY_COUNT.get(len(mean), "rgb"),
        fill=tuple(round(255 * value) for value in mean) if mode == "border" else (),
    )


def _test_size(pretrained: Mapping[str, Any], spec: InputSpec) -> tuple[str, ...]:
    """How to have the resolution that timm publishes some networks' accuracy for; it serves them
    at the resolution of their training, unless asked."""
    size = pretrained.get("test_input_size")
    if not isinstance(size, list | tuple) or len(size) != 3:
        return ()
    crop = pretrained.get("test_crop_pct") or pretrained.get("crop_pct", 0.875)
    if (size[1], size[2]) == (spec.height, spec.width) or size[1] != size[2]:
        return ()
    return (
        f"timm tests it at {size[1]} pixels: --size {size[1]} --resize "
        f"{math.floor(size[1] / crop)}",
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


def _numerics(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Architecture` that a config says and names of tensors do not.

    Raises:
        ValueError: it is another network.
    """
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
    numerics: dict[str, Any] = {}
    for family, antialias in (("resnetaa", "average"), ("resnetblur", "blur")):
        if architecture.startswith(family):
            numerics["antialias"] = antialias
    layer = arguments.pop("aa_layer", None)
    if layer:
        if layer not in ANTIALIAS:
            raise ValueError(f"aa_layer {layer!r}; supported are {', '.join(ANTIALIAS)}")
        numerics["antialias"] = ANTIALIAS[layer]
    stride = arguments.pop("output_stride", 32)
    if stride not in STRIDES:
        raise ValueError(f"output_stride must be one of 8, 16 and 32, not {stride!r}")
    if STRIDES[stride]:
        numerics["dilation"] = STRIDES[stride]
    if changed := [f"{key}={arguments[key]!r}" for key in arguments if key not in WITHOUT_EFFECT]:
        raise ValueError(f"built with {', '.join(changed)}: no longer a plain {architecture}")
    return numerics


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's name and tag."""
    said = {"architecture": config.get("architecture"), "tag": _pretrained(config).get("tag")}
    return {key: value for key, value in said.items() if value}
