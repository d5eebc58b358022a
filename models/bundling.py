"""Bundles of networks: of a user's own, and of random weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Required, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn

from models import heads, labels, own_code, variants
from models.architecture import Architecture
from models.blocks import BLOCKS
from models.bundle import Bundle, BundleError, check_fit
from models.classifier import Outputs
from models.draws import DrawsFrom
from models.modes import evaluating
from models.own_code import OwnCode
from models.preprocess import InputSpec, for_channels
from models.resnet import ResNet
from models.storage import Storage, checksum
from models.views import Views

COMPILER = "torch._dynamo"
# The names of tensors that torch makes weights of: parametrisations, pruning, and norms of weights.
COMPUTED = re.compile(r"\bparametrizations\b|\b(weight|bias)_(orig|mask|g|v)$")
PLAIN = (
    "it has weights that are computed from others; make them plain first, by "
    "remove_parametrizations, prune.remove, remove_weight_norm or remove_spectral_norm of "
    "torch.nn.utils"
)


class Described(TypedDict, total=False):
    """What `from_network` takes beside the network: the other fields of `Bundle`."""

    name: Required[str]
    input: Required[InputSpec]
    labels: Required[Sequence[str]]
    provenance: dict[str, Any]
    metrics: dict[str, Any]
    calibration: dict[str, Any]
    temperature: float
    card: str
    outputs: Outputs
    views: Views
    storage: Storage


def from_network(network: ResNet, **described: Unpack[Described]) -> Bundle:
    """A bundle of a network's current weights; `described` are the other fields of `Bundle`.

    Its head decides the number of classes. A head that was set (`ResNet.set_head`) may be a Linear,
    or a Sequential of Linear with a ReLU between any two, Dropout, Flatten and Identity: dropout is
    not kept, which does nothing in evaluation mode, and a layer without a bias gets one of zeros.
    Any other head, and a block of one's own, must be a class at the top level of a module, which
    the bundle then names; the head's is called with features and classes, as `Head(512, 10)`.

    What `torch.compile` or parallel training wrapped around the network does not matter.

    Raises:
        BundleError: there is no such class, or the network that the bundle describes computes
            something else than this one.
    """
    network = _unwrapped(network)
    if (dtype := next(network.parameters()).dtype) != torch.float32:
        raise BundleError(f"weights must be torch.float32, not {dtype}; call network.float() first")
    try:
        made = _made(network, {**described, "storage": "fp32"})
        _check_remade(made, network)
    except BundleError as error:
        if not any(map(COMPUTED.search, network.state_dict())):
            raise
        raise BundleError(f"{error}; {PLAIN}") from None
    return replace(made, storage=described.get("storage", "fp32"))


def _made(network: ResNet, described: Described) -> Bundle:
    architecture, tensors = network.architecture, network.state_dict()
    usual = BLOCKS[architecture.block, architecture.preact]
    code = OwnCode(block=None if network.block is usual else network.block)
    layers = heads.as_layers(network.head, network.out_channels)
    try:
        if layers is not None:
            shape: dict[str, Any] = {"num_classes": layers.num_classes, "head": layers.head}
            tensors = {n: value for n, value in tensors.items() if not n.startswith("head.")}
            tensors |= layers.tensors
        else:
            shape = {"num_classes": heads.classes(network.head, network.out_channels), "head": ()}
            code = replace(code, head=heads.factory(network.head))
        architecture = replace(architecture, **shape)
        variant = None if code.block else variants.find(architecture)
        made = Bundle(
            architecture=architecture,
            tensors={
                name: value.detach().clone(memory_format=torch.contiguous_format)
                for name, value in tensors.items()
            },
            variant=variant.name if variant else None,
            block=own_code.path_of(code.block, "block"),
            head=own_code.path_of(code.head, "head"),
            code=code,
            **cast("Any", described),
        )
    except ValueError as error:
        raise BundleError(str(error)) from None
    check_fit(made.skeleton(), made.tensors, "its architecture")
    return made


def _unwrapped(network: nn.Module) -> ResNet:
    """The network in what `torch.compile` and parallel training wrap around it."""
    inner: Any = network
    while not isinstance(inner, ResNet):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(inner, nn.Module):
            raise BundleError(
                f"the network must be a models.ResNet, not a {type(network).__name__}; "
                "`resnet-serve convert` makes bundles of other libraries' checkpoints"
            )
    return inner


def _check_remade(made: Bundle, network: ResNet) -> None:
    """Whoever reads a bundle makes the network again, by its description alone.

    Raises:
        BundleError: that computes something else, as hooks or modules that were replaced would do.
    """
    height, width, channels = made.input.shape
    images = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    images = images.to(next(network.parameters()))
    remade = made.network().to(images.device)
    # Two images are not worth compiling for.
    eager = torch.compiler.set_stance("force_eager") if COMPILER in sys.modules else nullcontext()
    with torch.no_grad(), evaluating(network), eager:
        ours, theirs = network(images), remade(images)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * _largest(ours), equal_nan=True):
        what = " and ".join(made.own_code) or "a bundle's description"
        raise BundleError(
            f"{what} makes a network that computes something else than this one: hooks, modules "
            "that were replaced and random numbers are not kept; a block is made of (in_channels, "
            "planes, stride, architecture), a head of (channels, num_classes) alone, so give other "
            "arguments as defaults"
        )


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(0, 0).max())


def untrained(architecture: Architecture, name: str, spec: InputSpec) -> Bundle:
    """A bundle of random weights, equal on every machine, for benchmarks and smoke tests.

    `spec` is for RGB images; networks of other channels see those.
    """
    with DrawsFrom(torch.Generator().manual_seed(0)):
        network = ResNet(architecture)
    made = _made(
        network,
        {
            "name": name,
            "input": for_channels(spec, architecture.in_channels),
            "labels": labels.default(architecture.num_classes),
            "provenance": {
                "source": "random initialisation, untrained",
                "torch": torch.__version__,
            },
        },
    )
    # The description determines the weights; hashing them would take longer than making them.
    made._fingerprint = checksum(made.description(), {})
    return made
