"""ResNets: architectures, weights, training and evaluation. Nothing here needs the service.

>>> network = models.build("preact_resnet50", num_classes=10)
>>> network = models.load("resnet20.safetensors")

The public names are imported on first use, so that a process that only decodes images does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.bundle import Bundle, BundleError, WeightsMismatch, load
    from models.classifier import Classifier
    from models.preprocess import InputSpec, resize_and_crop
    from models.resnet import ResNet, build
    from models.summary import count_layers, count_macs, count_parameters
    from models.variants import Variant, names, variant

_HOMES = {
    "Architecture": "architecture",
    "Bundle": "bundle",
    "BundleError": "bundle",
    "Classifier": "classifier",
    "InputSpec": "preprocess",
    "ResNet": "resnet",
    "Variant": "variants",
    "WeightsMismatch": "bundle",
    "build": "resnet",
    "count_layers": "summary",
    "count_macs": "summary",
    "count_parameters": "summary",
    "load": "bundle",
    "names": "variants",
    "resize_and_crop": "preprocess",
    "variant": "variants",
}

__all__ = [
    "Architecture",
    "Bundle",
    "BundleError",
    "Classifier",
    "InputSpec",
    "ResNet",
    "Variant",
    "WeightsMismatch",
    "build",
    "count_layers",
    "count_macs",
    "count_parameters",
    "load",
    "names",
    "resize_and_crop",
    "variant",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.{_HOMES[name]}"), name)
