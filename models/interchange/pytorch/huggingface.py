"""Weights of transformers' `ResNetForImageClassification`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.bundle import BundleError
from models.interchange.imported import INPUT, NORMALISATION, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint, read_json, weights_file
from models.interchange.pytorch.layout import Layout, find, shown, to_ours
from models.preprocess import IMAGENET, InputSpec, Interpolation

LAYOUT = Layout(
    name="transformers resnet",
    has=(r"(?:resnet\.)?encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",),
    renames=(
        (r"^resnet\.", ""),
        (r"^embedder\.embedder\.convolution\.", "stem.conv."),
        (r"^embedder\.embedder\.normalization\.", "stem.norm."),
        (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.\2."),
        (r"\.layer\.(\d)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
        (r"\.layer\.(\d)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
        (r"\.shortcut\.convolution\.", ".shortcut.conv."),
        (r"\.shortcut\.normalization\.", ".shortcut.bn."),
        (r"^classifier\.1\.", "head."),
    ),
    # It projects where the shape changes, also where a stage strides without widening.
    numerics={"shortcut": "B"},
)
INTERPOLATION: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(path: Path, said: Said) -> Imported:
    """The weights in a folder, or in a file beside its `config.json`, under our names.

    A `preprocessor_config.json` beside them determines the input; it is unknown without.

    Raises:
        BundleError: it cannot be read, has no config, or is something else.
    """
    file = weights_file(path)
    tensors = read_checkpoint(file, said)
    if find([LAYOUT], tensors) is None:
        raise BundleError(f"{path}: not a transformers ResNet; its first tensors: {shown(tensors)}")
    config = read_json(file.with_name("config.json"))
    if config is None:
        raise BundleError(f"{path}: needs its config.json, which says where it strides")
    if config.get("hidden_act", "relu") != "relu":
        raise BundleError(f"{path}: activates with {config['hidden_act']}, not with relu")
    renamed, architecture = to_ours(
        LAYOUT,
        tensors,
        path,
        stride_at="1x1" if config.get("downsample_in_bottleneck") else "3x3",
        stride_stages="all" if config.get("downsample_in_first_stage") else "later",
    )
    spec = None
    prepared = read_json(file.with_name("preprocessor_config.json"))
    try:
        if prepared is not None:
            spec = input_spec(prepared)
        labels = _labels(config)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path}: {error}") from None
    return Imported(
        layout=LAYOUT.name,
        tensors=renamed,
        architecture=architecture,
        spec=spec or IMAGENET,
        said=frozenset({"stride_at", "padding", "stem_stride", "pool", *(INPUT if spec else ())}),
        asked=frozenset() if spec else NORMALISATION,
        labels=labels,
        file=file,
    )


def input_spec(prepared: Mapping[str, Any]) -> InputSpec:
    """The input specification in a `preprocessor_config.json` of `ConvNextImageProcessor`.

    Below 384 pixels it resizes the shorter side to size / crop_pct and crops; from 384 on it
    squashes the image, which `InputSpec` cannot express.

    Raises:
        ValueError: it prepares images differently.
    """
    kind = str(prepared.get("image_processor_type") or prepared.get("feature_extractor_type"))
    if not kind.startswith("ConvNext"):
        raise ValueError(f"images are prepared by {kind}, which is not supported")
    size = prepared["size"]
    size = size.get("shortest_edge") if isinstance(size, dict) else size
    if type(size) is not int or size >= 384:
        raise ValueError(f"images of size {size!r}; from 384 on they are squashed")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if prepared.get(step, True) is not True:
            raise ValueError(f"images are prepared without {step}")
    if not math.isclose(prepared.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"images are scaled by {prepared['rescale_factor']}, not by 1/255")
    resample = prepared.get("resample", 2)
    if resample not in INTERPOLATION:
        raise ValueError(f"images are resized by filter {resample!r}, which is not supported")
    return InputSpec(
        size=size,
        resize=int(size / prepared.get("crop_pct", 224 / 256)),
        interpolation=INTERPOLATION[resample],
        mean=prepared["image_mean"],
        std=prepared["image_std"],
    )


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict):
        return None
    indices = [str(index) for index in range(len(names))]
    if set(indices) != set(names):
        raise ValueError("id2label must name the classes from 0 on")
    return tuple(str(names[index]) for index in indices)
