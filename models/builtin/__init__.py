"""The bundles that ship with the package, trained by `resnet-serve train`."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

DEFAULT_SPEC = "builtin:resnet10-cifar10"


def file(name: str) -> Traversable:
    """The bundle of that name."""
    return resources.files(__name__).joinpath(f"{name}.safetensors")


def names() -> list[str]:
    """The names that may follow `builtin:` in a SPEC."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".safetensors") for f in files if "safetensors" in f.name)
