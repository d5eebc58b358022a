"""ResNets: architectures, weights, training and evaluation. Nothing here needs the service.

>>> network = models.build("preact_resnet50", num_classes=10)
>>> network = models.load("torchvision:resnet18")  # any SPEC, or a bundle's path: evaluation mode
>>> bundle = models.read("builtin:resnet20-cifar10")  # with its labels, preprocessing and origin
>>> models.write(models.from_network(network, name="mine", input=spec, labels=labels), path)

`names` lists the networks that `build` knows, `read` the SPECs. A network whose head was replaced
(`ResNet.set_head`), or with blocks of one's own (`build(..., block=Block)`), can be written and
served too: see `from_network` and `models.own_code`.

The public names are imported on first use, so that a process that only decodes images does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.bundle import Bundle, BundleError, WeightsMismatch, write
    from models.bundling import from_network
    from models.classifier import Classifier
    from models.interchange.opening import load, read
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
    "from_network": "bundling",
    "load": "interchange.opening",
    "names": "variants",
    "read": "interchange.opening",
    "resize_and_crop": "preprocess",
    "variant": "variants",
    "write": "bundle",
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
    "from_network",
    "load",
    "names",
    "read",
    "resize_and_crop",
    "variant",
    "write",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"models.{_HOMES[name]}"), name)
    return found
