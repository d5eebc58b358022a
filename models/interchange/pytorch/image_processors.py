"""The input specification in a `preprocessor_config.json` of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.preprocess import BY_COUNT, CHANNELS, InputSpec, Interpolation, PerChannel, Sides

INTERPOLATION: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
KIND = re.compile(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)", re.ASCII)
# Those that resize, crop, scale and normalise as their fields say, and nothing else.
PLAIN = ("Bit", "CLIP", "ConvNext", "DeiT", "ViT")
# Of ConvNext: from here on it squashes images rather than crop them.
SQUASHED = 384


def input_spec(prepared: Mapping[str, Any]) -> InputSpec:
    """What images become.

    Raises:
        ValueError: `InputSpec` cannot say it.
    """
    kind = str(prepared.get("image_processor_type") or prepared.get("feature_extractor_type"))
    match = KIND.fullmatch(kind)
    if match is None or match[1] not in PLAIN:
        raise ValueError(f"images are prepared by {kind}, which is not supported")
    if prepared.get("do_resize", True) is not True:
        raise ValueError("images are prepared without do_resize: their size would be the network's")
    resample = prepared.get("resample", 2 if match[1] == "ViT" else 3)
    if resample not in INTERPOLATION:
        raise ValueError(f"images are resized by filter {resample!r}, which is not supported")
    mean, std = _normalisation(prepared)
    geometry = _convnext(prepared) if match[1] == "ConvNext" else _sides(prepared, match[1])
    return InputSpec(
        **geometry,
        interpolation=INTERPOLATION[resample],
        mean=mean,
        std=std,
        channels=BY_COUNT.get(len(mean), "rgb"),
    )


def _convnext(prepared: Mapping[str, Any]) -> dict[str, Any]:
    size = prepared["size"]
    size = size.get("shortest_edge") if isinstance(size, dict) else size
    if type(size) is not int:
        raise ValueError(f"images of size {size!r}")
    if size >= SQUASHED:
        return {"size": size, "resize": size, "crop": "squash"}
    resize = int(size / prepared.get("crop_pct", 224 / 256))
    return {"size": size, "resize": resize, "crop": "center_truncate"}


def _sides(prepared: Mapping[str, Any], kind: str) -> dict[str, Any]:
    size = prepared["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if kind == "ViT" else {"shortest_edge": size}
    crop = None
    if prepared.get("do_center_crop", kind != "ViT"):
        crop = _both(prepared["crop_size"])
    if "height" in size and "width" in size:
        box = _both(size)
        return {"size": crop or box, "resize": box, "crop": "squash"}
    if type(size.get("shortest_edge")) is not int or size.keys() != {"shortest_edge"}:
        raise ValueError(f"images of size {size!r}")
    if crop is None:
        raise ValueError("images are prepared without do_center_crop: their sizes would differ")
    return {"size": crop, "resize": size["shortest_edge"], "crop": "center_truncate"}


def _both(size: Any) -> Sides:
    return (size["height"], size["width"]) if isinstance(size, dict) else size


def _normalisation(prepared: Mapping[str, Any]) -> tuple[PerChannel, PerChannel]:
    """Mean and deviation on [0, 1]: (x * factor - mean) / std for pixels x from 0 to 255."""
    factor = prepared.get("rescale_factor", 1 / 255) if prepared.get("do_rescale", True) else 1
    if type(factor) not in (int, float) or factor <= 0:
        raise ValueError(f"images are scaled by {factor!r}")
    scale = factor * 255
    if abs(scale - 1) < 1e-6:
        scale = 1
    if prepared.get("do_normalize", True):
        mean, std = prepared["image_mean"], prepared["image_std"]
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    for name, values in (("image_mean", mean), ("image_std", std)):
        numbers = isinstance(values, list | tuple) and len(values) in CHANNELS.values()
        if not numbers or not all(type(value) in (int, float) for value in values):
            raise ValueError(f"{name} must be numbers, one for each channel, not {values!r}")
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)
