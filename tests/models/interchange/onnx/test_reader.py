"""Nodes in any order and constants of any type are read; what onnxruntime rewrote is named."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from models.interchange.onnx import reader
from models.resnet import ResNet
from tests.support import rounding, tiny
from tests.support.onnx_files import PLAIN, computed, converted, exported, logits_near, refusal


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network(**changes: Any) -> ResNet:
    return tiny.network(blocks=(2, 1), shortcut="A", **changes)


def shuffled(graph: Any, seed: int) -> None:
    nodes = list(graph.node)
    random.Random(seed).shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


@pytest.mark.parametrize("seed", range(5))
def test_nodes_may_stand_in_any_order(tmp_path: Path, seed: int) -> None:
    path = exported(tmp_path / "x.onnx", network(), images(), folded=False)
    expected = converted(path, **PLAIN)
    logits_near(expected, path, images())
    model = onnx.load(path)
    shuffled(model.graph, seed)
    onnx.save(model, path)
    found = converted(path, **PLAIN)
    assert found.architecture == expected.architecture
    assert tiny.same_bits(found.tensors, expected.tensors)


def test_sorted_nodes_keep_their_order() -> None:
    node = helper.make_node
    nodes = [node("Relu", ["x"], ["b"]), node("Neg", ["x"], ["a"]), node("Add", ["a", "b"], ["y"])]
    unused = node("Relu", ["y"], ["z"])
    graph = helper.make_graph([*nodes, unused], "g", [], [])
    assert [each.output[0] for each in reader.ordered(graph, "y")] == ["b", "a", "y"]
    graph = helper.make_graph([nodes[2], unused, nodes[0], nodes[1]], "g", [], [])
    assert [each.output[0] for each in reader.ordered(graph, "y")] == ["b", "a", "y"]


def test_a_circle_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", network(), images())
    model = onnx.load(path)
    relus = [each for each in model.graph.node if each.op_type == "Relu"]
    relus[0].name, relus[0].input[0] = "first", relus[1].output[0]
    onnx.save(model, path)
    assert "node first (Relu): is computed from its own result" in refusal(
        lambda: converted(path, **PLAIN)
    )


def test_half_precision_with_float_inputs_is_read(tmp_path: Path) -> None:
    """The converter appends the casts at the ends of the graph, behind the nodes that use them."""
    path = exported(tmp_path / "x.onnx", network(), images())
    whole = converted(path, **PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    makers = {name: index for index, node in enumerate(half.graph.node) for name in node.output}
    assert any(
        makers.get(name, -1) > index
        for index, node in enumerate(half.graph.node)
        for name in node.input
    ), "the graph is sorted: it tests nothing"
    onnx.save(half, path)
    found = converted(path, **PLAIN)
    assert found.architecture == whole.architecture
    with torch.no_grad():
        ours = found.network()(images())
    rounding.assert_near(ours, computed(path, images()), found.tensors, "fp16")


@pytest.mark.parametrize("level", ["EXTENDED", "ALL"])
def test_what_onnxruntime_optimised_for_one_machine_is_refused(tmp_path: Path, level: str) -> None:
    path, fast = exported(tmp_path / "x.onnx", network(), images()), tmp_path / "fast.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}"
    )
    options.optimized_model_filepath = str(fast)
    options.log_severity_level = 3  # It warns of what is tested here.
    onnxruntime.InferenceSession(str(path), options)
    domains = {node.domain for node in onnx.load(fast).graph.node}
    assert any(domain.startswith("com.microsoft") for domain in domains)
    message = refusal(lambda: converted(fast, **PLAIN))
    assert "optimised this file for one machine; convert the original file" in message


def test_what_onnxruntime_optimised_for_every_machine_is_read(tmp_path: Path) -> None:
    path, fast = exported(tmp_path / "x.onnx", network(), images()), tmp_path / "fast.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(fast)
    onnxruntime.InferenceSession(str(path), options)
    logits_near(converted(fast, **PLAIN), path, images())


class Body(nn.Module):
    """A network that resizes its features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = nn.functional.interpolate(self.stem(x).relu(), scale_factor=2.0)
        return self.head(x.mean((2, 3)))


def test_features_that_are_resized_are_told_from_images(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Body(), images())
    assert "(Resize): resizes features, as networks for detection" in refusal(
        lambda: converted(path, **PLAIN)
    )


def test_a_scale_of_every_image_of_a_batch_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", network(), images())
    model = onnx.load(path)
    value = np.arange(1, 3, dtype=np.float32).reshape(2, 1, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(value, "scale"))
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "scale"], ["scaled"]))
    for node in list(model.graph.node)[1:]:
        node.input[:] = ["scaled" if name == "x" else name for name in node.input]
    onnx.save(model, path)
    assert "with a constant that is not one number a channel" in refusal(
        lambda: converted(path, **PLAIN)
    )
