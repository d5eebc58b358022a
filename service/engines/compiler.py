"""The process that compiles a network for `service.engines.compiled`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config, cpp_builder

from models import bundle as bundles
from models.resnet import ResNet
from service.engines.blueprint import Blueprint
from service.engines.eager import InPrecision

ZEROS = (0, 0, 0, 0, 0, 1)  # a channel behind those of [N, C, H, W]


def compile_to(blueprint: Blueprint, package: Path) -> None:
    """Writes the package; runs in its own process.

    Raises:
        RuntimeError: the network cannot be compiled.
    """
    assert blueprint.threads is not None
    torch.set_num_threads(blueprint.threads)
    example = torch.zeros((2, *blueprint.bundle.input.shape), dtype=torch.float32)
    configs = {"freezing": True}
    # Compiling torch's headers beforehand takes longer than the two files that would read them.
    if hasattr(config.aot_inductor, "precompile_headers"):  # Older versions never do.
        configs["aot_inductor.precompile_headers"] = False
    count = torch.export.Dim("count", min=1, max=max(2, blueprint.max_batch))
    network = InPrecision(blueprint)
    _widen(network.classifier.network)
    with torch.no_grad():
        exported = torch.export.export(network, (example,), dynamic_shapes=({0: count},))
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(package), inductor_configs=configs
        )


class WithZeros(nn.Module):
    """A convolution of one channel as one of two, of which the other is zero."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        convolution.weight = nn.Parameter(F.pad(convolution.weight, ZEROS), requires_grad=False)
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.convolution(F.pad(x, ZEROS)))


def _widen(network: ResNet) -> None:
    """Inductor (of torch 2.13) freezes the weights of a convolution of one channel in a layout that
    it does not compute with."""
    convolution = network.stem.conv
    if convolution.in_channels == 1:
        network.stem.conv = WithZeros(convolution)  # type: ignore[assignment]


def end_with_stdin() -> None:
    """Ends this process, and the compilers that it started, when stdin closes."""

    def wait() -> None:
        os.read(0, 1)
        os.killpg(os.getpid(), signal.SIGKILL)  # `compiled` starts it in a group of its own.

    threading.Thread(target=wait, name="parent", daemon=True).start()


def main(weights: str, precision: str, max_batch: str, threads: str, to: str, *allow: str) -> None:
    end_with_stdin()
    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError:
        sys.exit("there is no C++ compiler; install g++, or set engine to eager or openvino")
    bundle = bundles.read(weights, allow=allow)
    blueprint = Blueprint(bundle, "cpu", precision, int(max_batch), int(threads), 0.0, None)
    compile_to(blueprint, Path(to))


if __name__ == "__main__":
    main(*sys.argv[1:])
