"""ONNX files of any module, what onnxruntime makes of them, and what we make of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.bundle import Bundle, BundleError
from models.interchange import convert
from tests.support import rounding
from tests.support.said import said

# The newer exporter takes seconds for the smallest network.
EXPORTERS = pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["torchscript", "dynamo"]
)
PLAIN: Any = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def computed(path: Path, images: Tensor, *, optimised: bool = False) -> NDArray[np.float32]:
    """What a file makes of images.

    Without optimisations unless asked for: with them, onnxruntime takes zeros that were padded
    before a max-pool for minus infinity.
    """
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    name = session.get_inputs()[0].name
    return cast("NDArray[np.float32]", session.run(None, {name: images.numpy()})[0])


def exported(
    path: Path,
    module: nn.Module,
    images: Tensor,
    *,
    opset: int = 17,
    folded: bool = True,
    dynamo: bool = False,
) -> Path:
    """What torch's exporter for TorchScript writes, with norms in convolutions or apart; or what
    its newer one writes."""
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    options: dict[str, Any] = {
        "dynamo": False,
        "training": mode,
        "do_constant_folding": folded,
        "dynamic_axes": {"x": {0: "n"}},
    }
    if dynamo:
        opset = max(opset, 18)
        options = {
            "dynamo": True,
            "verbose": False,
            "external_data": False,
            "dynamic_shapes": ({0: torch.export.Dim("n")},),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (images,),
            str(path),
            opset_version=opset,
            input_names=["x"],
            **options,
        )
    return path


def saved(path: Path, nodes: list[Any], weights: dict[str, Any], shape: tuple[Any, ...]) -> Path:
    """A file of nodes from `x` to `y`."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), path)
    return path


def converted(path: Path, **options: Any) -> Bundle:
    return convert.convert("onnx", path, said(**options))


def refusal(action: Callable[[], object]) -> str:
    """The one line with which an action is refused."""
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        action()
    return str(caught.value)


def logits_near(bundle: Bundle, path: Path, images: Tensor) -> float:
    """That a bundle gives the logits of a file; returns how far off they are, in parts of what
    rounding explains."""
    theirs = computed(path, images)
    assert np.abs(theirs).max() > 0.1
    network = bundle.network()
    with torch.no_grad():
        parts = rounding.parts(network(images), theirs, network)
    assert parts <= 1
    return parts


def assert_equal_logits(bundle: Bundle, path: Path, size: int) -> None:
    logits_near(
        bundle, path, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    )
