"""Bundles of every kind of input, head and output, tiny and random."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models import bundle, bundling
from models.bundle import Bundle
from models.classifier import Outputs
from models.preprocess import InputSpec, resize_and_crop, upright
from tests.support import tiny

RGB: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.25)}
SQUARE = InputSpec(size=32, resize=36, **RGB)
GREY = InputSpec(size=28, resize=28, channels="grey", mean=(0.13,), std=(0.31,))
SQUASHED = InputSpec(size=(48, 32), resize=(48, 32), crop="squash", **RGB)
LETTERBOXED = InputSpec(
    size=(40, 56), resize=(40, 56), crop="letterbox", channels="bgr", fill=(10, 120, 230), **RGB
)
RGBA = InputSpec(
    size=24, resize=24, channels="rgba", mean=(0.4, 0.5, 0.6, 0.7), std=(0.3, 0.2, 0.25, 0.4)
)
# By the name of the model: its input, the fields of its architecture, and its outputs.
KINDS: dict[str, tuple[InputSpec, dict[str, Any], Outputs]] = {
    "independent": (SQUARE, {"num_classes": 7}, "independent"),
    "headless": (SQUARE, {"num_classes": 0}, "exclusive"),
    "grey": (GREY, {"in_channels": 1}, "exclusive"),
    "squashed": (SQUASHED, {}, "exclusive"),
    "letterboxed": (LETTERBOXED, {}, "exclusive"),
    "rgba": (RGBA, {"in_channels": 4}, "exclusive"),
    "layers": (SQUARE, {"head": (6,)}, "exclusive"),
    "one": (SQUARE, {"num_classes": 1}, "independent"),
    "mirrored": (SQUARE, {}, "exclusive"),
}


def made(name: str) -> Bundle:
    spec, changes, outputs = KINDS[name]
    network = tiny.network(**changes)
    labels = tuple(f"label {index}" for index in range(network.architecture.num_classes))
    return bundling.from_network(
        network,
        name=name,
        input=spec,
        labels=labels,
        outputs=outputs,
        views="mirrored" if name == "mirrored" else "plain",
        storage="fp16" if name == "mirrored" else "fp32",
        metrics={"a set": {"top1": 0.5, "per_class": [{"label": labels[0]}]}} if labels else {},
        provenance={"source": "a test"},
    )


def write(folder: Path, *names: str) -> dict[str, Bundle]:
    """The bundles of these kinds, written to NAME.safetensors."""
    bundles = {name: made(name) for name in names}
    for name, each in bundles.items():
        bundle.write(each, folder / f"{name}.safetensors")
    return bundles


def options(folder: Path, *names: str) -> list[str]:
    """Flags of `serve` for these kinds, written before."""
    return [part for name in names for part in ("--model", f"{folder / name}.safetensors")]


def pixels(file: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    """An encoded image as the network sees it, uint8 [H, W, C]."""
    return resize_and_crop(upright(Image.open(io.BytesIO(file)), spec.channels), spec)


def probabilities(made: Bundle, seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Float32 [K] of one image, by plain PyTorch."""
    with torch.inference_mode():
        found: NDArray[np.float32] = made.classifier()(torch.from_numpy(seen)[None])[0].numpy()
    return found


def features(made: Bundle, seen: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Float32 [C] of one image, by plain PyTorch."""
    with torch.inference_mode():
        _, maps = made.classifier().with_maps(torch.from_numpy(seen)[None])
        found: NDArray[np.float32] = maps.mean((2, 3))[0].numpy()
    return found
