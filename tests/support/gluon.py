"""The ONNX model zoo's ResNets as MXNet's Gluon exported them, with weights of our own.

Names, the order of nodes and their attributes are theirs; weights are inputs too, as they were
before IR version 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

PREFIXES = {
    "resnet18-v1-7": "resnetv15",
    "resnet34-v1-7": "resnetv16",
    "resnet50-v1-7": "resnetv17",
    "resnet101-v1-7": "resnetv18",
    "resnet152-v1-7": "resnetv19",
    "resnet18-v2-7": "resnetv22",
    "resnet34-v2-7": "resnetv23",
    "resnet50-v2-7": "resnetv24",
    "resnet101-v2-7": "resnetv25",
    "resnet152-v2-7": "resnetv27",
}
BLOCKS = {
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)


class Zoo:
    """Builds one model; `widths` are its stages' inner channels."""

    def __init__(
        self,
        name: str,
        *,
        widths: tuple[int, ...] = WIDTHS,
        classes: int = 1000,
        size: int = 224,
        seed: int = 0,
    ) -> None:
        self.prefix = PREFIXES[name]
        self.size, self.classes = size, classes
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        depth, version, _ = name.removeprefix("resnet").split("-")
        self.deep = depth in ("50", "101", "152")
        self.stage = ""
        self.counts: dict[str, int] = {}
        build = self._v1 if version == "v1" else self._v2
        self.model = self._finish(build(BLOCKS[depth], widths))

    def _name(self, kind: str) -> str:
        key = f"{self.prefix}{self.stage}_{kind}"
        self.counts[key] = number = self.counts.get(key, -1) + 1
        return f"{key}{number}"

    def _weight(self, name: str, value: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def _node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self, x: str, rows: int, columns: int, kernel: int, stride: int = 1, *, bias: bool = False
    ) -> str:
        name, pad = self._name("conv"), kernel // 2
        fan = rows * kernel * kernel
        values = self.random.normal(size=(rows, columns, kernel, kernel)) * np.sqrt(2 / fan)
        inputs = [x, self._weight(f"{name}_weight", values)]
        if bias:
            inputs.append(self._weight(f"{name}_bias", self.random.normal(size=rows)))
        return self._node(
            "Conv",
            inputs,
            f"{name}_fwd",
            dilations=[1, 1],
            group=1,
            kernel_shape=[kernel, kernel],
            pads=[pad] * 4,
            strides=[stride, stride],
        )

    def norm(self, x: str, channels: int, *, fixed: bool = False) -> str:
        name = self._name("batchnorm")
        values = {
            "gamma": np.ones(channels) if fixed else self.random.uniform(0.5, 1.5, channels),
            "beta": np.zeros(channels) if fixed else self.random.normal(size=channels),
            "running_mean": self.random.normal(size=channels) * 0.3,
            "running_var": self.random.uniform(0.5, 1.5, channels),
        }
        inputs = [x, *(self._weight(f"{name}_{key}", each) for key, each in values.items())]
        return self._node(
            "BatchNormalization",
            inputs,
            f"{name}_fwd",
            epsilon=9.999999747378752e-06,
            momentum=0.8999999761581421,
            spatial=1,
        )

    def relu(self, x: str, kind: str = "relu") -> str:
        return self._node("Relu", [x], self._name(kind) + ("_fwd" if kind == "relu" else ""))

    def pool(self, x: str) -> str:
        name = f"{self._name('pool')}_fwd"
        settings = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
        return self._node("MaxPool", [x], name, **settings)

    def _v1(self, blocks: tuple[int, ...], widths: tuple[int, ...]) -> tuple[str, int]:
        channels = widths[0]
        x = self.pool(self.relu(self.norm(self.conv("data", channels, 3, 7, 2), channels)))
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            self.stage = f"_stage{stage + 1}"
            for index in range(count):
                stride = 2 if stage and not index else 1
                out = width * (4 if self.deep else 1)
                if self.deep:
                    y = self.conv(x, width, channels, 1, stride, bias=True)
                    y = self.relu(self.norm(y, width))
                    y = self.relu(self.norm(self.conv(y, width, width, 3), width))
                    y = self.norm(self.conv(y, out, width, 1, bias=True), out)
                else:
                    y = self.relu(self.norm(self.conv(x, width, channels, 3, stride), width))
                    y = self.norm(self.conv(y, width, width, 3), width)
                if stride != 1 or channels != out:
                    x = self.norm(self.conv(x, out, channels, 1, stride), out)
                x = self._node("Add", [x, y], self._name("_plus"))
                x = self.relu(x, "activation")
                channels = out
        self.stage = ""
        pooled = self._node("GlobalAveragePool", [x], f"{self._name('pool')}_fwd")
        return self._node("Flatten", [pooled], "flatten_473", axis=1), channels

    def _v2(self, blocks: tuple[int, ...], widths: tuple[int, ...]) -> tuple[str, int]:
        channels = widths[0]
        x = self.conv(self.norm("data", 3, fixed=True), channels, 3, 7, 2)
        x = self.pool(self.relu(self.norm(x, channels)))
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            self.stage = f"_stage{stage + 1}"
            for index in range(count):
                stride = 2 if stage and not index else 1
                out = width * (4 if self.deep else 1)
                y = self.relu(self.norm(x, channels), "activation")
                activated = y
                if self.deep:
                    y = self.relu(self.norm(self.conv(y, width, channels, 1), width), "activation")
                    y = self.conv(y, width, width, 3, stride)
                    y = self.conv(self.relu(self.norm(y, width), "activation"), out, width, 1)
                else:
                    y = self.conv(y, width, channels, 3, stride)
                    y = self.conv(self.relu(self.norm(y, width), "activation"), width, width, 3)
                if stride != 1 or channels != out:
                    x = self.conv(activated, out, channels, 1, stride)
                x = self._node("Add", [y, x], self._name("_plus"))
                channels = out
        self.stage = ""
        x = self.relu(self.norm(x, channels))
        pooled = self._node("GlobalAveragePool", [x], f"{self._name('pool')}_fwd")
        shape = "reshape_attr_tensor164"
        self.weights.append(numpy_helper.from_array(np.array([0, -1]), shape))
        return self._node("Reshape", [pooled, shape], "flatten0_reshape0"), channels

    def _finish(self, features: tuple[str, int]) -> ModelProto:
        x, channels = features
        name = f"{self.prefix}_dense0"
        weight = self.random.normal(size=(self.classes, channels)) / np.sqrt(channels)
        inputs = [
            x,
            self._weight(f"{name}_weight", weight),
            self._weight(f"{name}_bias", self.random.normal(size=self.classes)),
        ]
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        output = self._node("Gemm", inputs, f"{name}_fwd", **attributes)
        images = ("N", 3, self.size, self.size)
        weights = [
            helper.make_tensor_value_info(each.name, each.data_type, each.dims)
            for each in self.weights
        ]
        graph = helper.make_graph(
            self.nodes,
            "mxnet_converted_model",
            [helper.make_tensor_value_info("data", TensorProto.FLOAT, images), *weights],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ("N", self.classes))],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 7)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=3)
