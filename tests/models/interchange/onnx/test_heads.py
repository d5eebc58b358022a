"""Whatever follows the pooled features is read exactly, or refused by the name of its ending."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from models.bundle import Bundle
from models.resnet import ResNet
from tests.support import rounding, tiny
from tests.support.onnx_files import (
    EXPORTERS,
    PLAIN,
    computed,
    converted,
    exported,
    logits_near,
    refusal,
)

WIDTH = 8  # Of the features of `tiny.network`.


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


class Headed(nn.Module):
    """A tiny network of ours with a head and an ending of others."""

    def __init__(
        self, head: nn.Module, *, pooled_last: bool = False, maps: bool = False, **changes: Any
    ) -> None:
        super().__init__()
        self.body = tiny.randomised(ResNet(tiny.architecture(num_classes=0, **changes)))
        self.head = tiny.randomised(head, 1)
        self.pooled_last, self.maps = pooled_last, maps

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body.maps(x)
        if self.pooled_last:
            return cast("Tensor", self.head(maps).mean((2, 3)))
        if self.maps:
            return cast("Tensor", self.head(nn.functional.adaptive_avg_pool2d(maps, 1)))
        return cast("Tensor", self.head(maps.mean((2, 3))))


def images(count: int = 2, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def linear(inputs: int = WIDTH, outputs: int = 5, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def norm(width: int = WIDTH) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width)


# Head, hidden layers, outputs; probabilities are made of logits by the last part, if any.
HEADS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (linear, ()),
    "no bias": (lambda: linear(bias=False), ()),
    "dropout": (lambda: nn.Sequential(nn.Dropout(), linear()), ()),
    "two layers": (lambda: nn.Sequential(linear(8, 6), nn.ReLU(), linear(6)), (6,)),
    "three layers": (
        lambda: nn.Sequential(
            linear(8, 6), nn.ReLU(), nn.Dropout(), linear(6, 7), nn.ReLU(), linear(7)
        ),
        (6, 7),
    ),
    "two layers without a ReLU": (lambda: nn.Sequential(linear(8, 6), linear(6)), ()),
    "a ReLU before the layer": (lambda: nn.Sequential(nn.ReLU(), linear()), ()),
    "norm before": (lambda: nn.Sequential(norm(), linear()), ()),
    "norm after": (lambda: nn.Sequential(linear(), norm(5)), ()),
    "norm within": (
        lambda: nn.Sequential(norm(), linear(8, 6), norm(6), nn.ReLU(), linear(6)),
        (6,),
    ),
    "norm behind the ReLU": (
        lambda: nn.Sequential(linear(8, 6), nn.ReLU(), norm(6), linear(6)),
        (6,),
    ),
    "norm and ReLU before": (lambda: nn.Sequential(norm(), nn.ReLU(), linear()), (8,)),
}


@EXPORTERS
@pytest.mark.parametrize("name", list(HEADS))
def test_heads_of_linear_layers_become_the_bundles(tmp_path: Path, name: str, dynamo: bool) -> None:
    make, hidden = HEADS[name]
    path = exported(tmp_path / "x.onnx", Headed(make()), images(), dynamo=dynamo)
    bundle = converted(path, **PLAIN)
    logits_near(bundle, path, images())
    assert (bundle.architecture.head, bundle.architecture.num_classes) == (hidden, 5)
    assert bundle.outputs == "exclusive"


def test_torchs_newer_exporter_writes_heads_that_are_found_too(tmp_path: Path) -> None:
    head = nn.Sequential(norm(), linear(8, 6), nn.ReLU(), linear(6), nn.Sigmoid())
    path = exported(tmp_path / "x.onnx", Headed(head), images(), dynamo=True)
    bundle = converted(path, **PLAIN)
    assert (bundle.architecture.head, bundle.outputs) == ((6,), "independent")
    theirs = computed(path, images())
    rounding.assert_probabilities_near(probabilities(bundle), theirs, bundle.tensors)


def test_a_relu_of_features_that_may_be_negative_is_kept(tmp_path: Path) -> None:
    head = nn.Sequential(nn.ReLU(), linear())
    module = Headed(head, preact=True, final_norm=False)
    path = exported(tmp_path / "x.onnx", module, images())
    bundle = converted(path, **PLAIN)
    logits_near(bundle, path, images())
    assert bundle.architecture.head == (WIDTH,)


CONVOLUTIONS: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "behind the pooling": (
        lambda: nn.Sequential(nn.Conv2d(8, 5, 1), nn.Flatten()),
        {"maps": True},
        (),
    ),
    "before the pooling": (lambda: nn.Conv2d(8, 5, 1), {"pooled_last": True}, ()),
    "two behind": (
        lambda: nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten()),
        {"maps": True},
        (6,),
    ),
    "with a norm": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5), nn.Flatten()
        ),
        {"maps": True},
        (),
    ),
}


@EXPORTERS
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_heads_of_pointwise_convolutions_are_linear_layers(
    tmp_path: Path, name: str, dynamo: bool
) -> None:
    make, options, hidden = CONVOLUTIONS[name]
    path = exported(tmp_path / "x.onnx", Headed(make(), **options), images(), dynamo=dynamo)
    bundle = converted(path, **PLAIN)
    logits_near(bundle, path, images())
    assert bundle.architecture.head == hidden


def probabilities(bundle: Bundle) -> Tensor:
    with torch.no_grad():
        network = bundle.network()
        return bundle.classifier().probabilities(network(images()))


# Ending, outputs, and what makes probabilities of what the file gives.
ENDINGS: dict[str, tuple[Any, str, Any]] = {
    "softmax": (lambda: nn.Softmax(1), "exclusive", lambda y: y),
    "softmax of the last axis": (lambda: nn.Softmax(-1), "exclusive", lambda y: y),
    "log-softmax": (lambda: nn.LogSoftmax(1), "exclusive", np.exp),
    "sigmoid": (nn.Sigmoid, "independent", lambda y: y),
}


@EXPORTERS
@pytest.mark.parametrize("name", list(ENDINGS))
def test_an_ending_tells_what_the_outputs_are(tmp_path: Path, name: str, dynamo: bool) -> None:
    make, outputs, of = ENDINGS[name]
    module = Headed(nn.Sequential(linear(), make()))
    with torch.no_grad():  # So that no class is certain.
        cast("Any", module.head)[0].weight.mul_(0.1)
    path = exported(tmp_path / "x.onnx", module, images(), dynamo=dynamo)
    bundle = converted(path, **PLAIN)
    theirs = of(computed(path, images()))
    rounding.assert_probabilities_near(probabilities(bundle), theirs, bundle.tensors)
    assert bundle.outputs == outputs
    assert "outputs" not in bundle.provenance["assumed"]
    ending = "sigmoid" if name == "sigmoid" else "softmax"
    assert bundle.provenance["layout"] == f"ONNX graph, without its {ending}"


def test_logits_leave_open_what_the_outputs_are(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Headed(linear()), images())
    assert converted(path, **PLAIN).provenance["assumed"]["outputs"] == "exclusive"
    bundle = converted(path, outputs="independent", **PLAIN)
    assert bundle.outputs == "independent"
    assert "outputs" not in bundle.provenance["assumed"]


@EXPORTERS
@pytest.mark.parametrize("ending", ["", "sigmoid"])
def test_one_logit_becomes_two_classes(tmp_path: Path, ending: str, dynamo: bool) -> None:
    head = nn.Sequential(linear(outputs=1), nn.Sigmoid() if ending else nn.Identity())
    with torch.no_grad():
        module = Headed(head)
        cast("Any", module.head)[0].weight.mul_(0.1)
    path = exported(tmp_path / "x.onnx", module, images(), dynamo=dynamo)
    (tmp_path / "labels.txt").write_text("defect\n")
    bundle = converted(path, labels=str(tmp_path / "labels.txt"), **PLAIN)
    assert (bundle.labels, bundle.outputs) == (("not defect", "defect"), "exclusive")
    theirs = torch.from_numpy(computed(path, images()))
    expected = theirs if ending else theirs.sigmoid()
    rounding.assert_probabilities_near(
        probabilities(bundle), torch.cat([1 - expected, expected], 1), bundle.tensors
    )


@pytest.mark.parametrize("kind", ["squeezed", "flat"])
@pytest.mark.parametrize("ending", ["", "sigmoid"])
def test_one_logit_may_be_a_number_an_image(tmp_path: Path, kind: str, ending: str) -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.headed = Headed(linear(outputs=1))

        def forward(self, x: Tensor) -> Tensor:
            row: Tensor = self.headed(x) * 0.1
            logit = row.squeeze(1) if kind == "squeezed" else row.view(-1)
            return logit.sigmoid() if ending else logit

    path = exported(tmp_path / "x.onnx", Vector(), images())
    theirs = torch.from_numpy(computed(path, images()))
    assert theirs.shape == (2,)
    expected = theirs if ending else theirs.sigmoid()
    bundle = converted(path, **PLAIN)
    rounding.assert_probabilities_near(
        probabilities(bundle), torch.stack([1 - expected, expected], 1), bundle.tensors
    )


def test_one_class_under_a_softmax_is_refused(tmp_path: Path) -> None:
    head = nn.Sequential(linear(outputs=1), nn.Softmax(1))
    path = exported(tmp_path / "x.onnx", Headed(head), images())
    assert "(Softmax): a softmax over one class, which is 1 for every image" in refusal(
        lambda: converted(path, **PLAIN)
    )


@EXPORTERS
@pytest.mark.parametrize("shape", ["row", "maps"])
def test_pooled_features_become_a_backbone(tmp_path: Path, shape: str, dynamo: bool) -> None:
    module = Headed(nn.Identity(), maps=shape == "maps")
    path = exported(tmp_path / "x.onnx", module, images(), dynamo=dynamo)
    bundle = converted(path, **PLAIN)
    assert (bundle.architecture.num_classes, bundle.labels) == (0, ())
    theirs = computed(path, images()).reshape(2, WIDTH)
    with torch.no_grad():
        rounding.assert_near(bundle.network()(images()), theirs, bundle.tensors)
    assert not {"labels", "outputs", "head"} & bundle.provenance["assumed"].keys()


class Other(nn.Module):
    """A network with one of `OTHERS` for an ending: a function of its logits and features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.headed = Headed(linear())
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "maps":
            return self.headed.body.maps(x)
        features = self.headed.body.features(x)
        if self.kind == "hidden sigmoid":
            features = features.sigmoid()
        return OTHERS[self.kind](self.headed.head(features), features)


OTHERS: dict[str, Any] = {
    "argmax": lambda logits, _: logits.argmax(1),
    "top-k": lambda logits, _: logits.topk(2).values,
    "two outputs": lambda logits, features: (logits, features),
    "twice": lambda logits, _: logits.softmax(1).sigmoid(),
    "percent": lambda logits, _: logits.softmax(1) * 100,
    "both classes": lambda logits, _: 1 - logits.sigmoid(),
    "relu": lambda logits, _: logits.relu(),
    "tanh": lambda logits, _: logits.tanh(),
    "hidden sigmoid": lambda logits, _: logits,
    "unit length": lambda _, features: nn.functional.normalize(features),
    "normalised": lambda _, features: (features - 1) * 2,
    "softmax of features": lambda _, features: features.softmax(1),
}
REFUSED = {
    "argmax": "(ArgMax): the graph ends in the numbers of classes, without probabilities",
    "top-k": "(TopK): the graph ends in the numbers of classes, without probabilities",
    "two outputs": "the graph has 2 outputs (",
    "maps": "the graph ends in feature maps; export the network up to its pooled features or its",
    "twice": "(Softmax): the graph ends in a softmax and a sigmoid",
    "percent": "(Softmax): the graph computes with its probabilities; export the network up to its",
    "both classes": "(Sigmoid): the graph computes with its probabilities; export the network up",
    "relu": "(Relu): the graph ends in what is no linear layer",
    "tanh": "(Tanh): an activation other than ReLU",
    "hidden sigmoid": "(Sigmoid): an activation other than ReLU",
    "unit length": "(ReduceL2): normalises features to a length of 1",
    "normalised": "the graph ends in normalised features; export the network up to its pooling",
    "softmax of features": "ends in a softmax of pooled features: the graph has no head",
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_other_endings_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = exported(tmp_path / "x.onnx", Other(kind), images())
    assert REFUSED[kind] in refusal(lambda: converted(path, **PLAIN))


def test_of_several_outputs_one_may_be_chosen(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Other("two outputs"), images())
    names = [output.name for output in onnx.load(path).graph.output]
    message = refusal(lambda: converted(path, **PLAIN))
    assert f"({', '.join(names)}); --key NAME takes the one" in message
    assert [converted(path, key=name, **PLAIN).architecture.num_classes for name in names] == [5, 0]
    logits_near(converted(path, key=names[0], **PLAIN), path, images())
    message = refusal(lambda: converted(path, key="z", **PLAIN))
    assert f"the graph has no output 'z'; its outputs: {', '.join(names)}" in message


def test_a_file_of_ours_with_a_sigmoid_appended_says_so(tmp_path: Path) -> None:
    """As somebody without torch would try it."""
    path = exported(tmp_path / "x.onnx", Headed(linear()), images())
    model = onnx.load(path)
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Sigmoid", [output.name], ["probabilities"]))
    output.name = "probabilities"
    onnx.save(model, path)
    assert converted(path, **PLAIN).outputs == "independent"


class Gated(nn.Module):
    """A network whose only block is gated, or activated, by a sigmoid."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.one, self.two = (nn.Conv2d(i, 4, 3, 1, 1) for i in (3, 4, 4))
        self.squeeze, self.head = nn.Linear(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.one(x)
        y = self.two(nn.functional.silu(y) if self.kind == "SiLU" else y.relu())
        if self.kind == "gate":
            y = y * self.squeeze(y.mean((2, 3))).sigmoid()[:, :, None, None]
        return cast("Tensor", self.head((x + y).relu().mean((2, 3))).sigmoid())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gate", "(Sigmoid): a gate, as in squeeze-and-excitation; not a plain ResNet"),
        ("SiLU", "(Sigmoid): an activation other than ReLU"),
    ],
)
def test_sigmoids_within_a_network_are_told_from_that_at_its_end(
    tmp_path: Path, kind: str, words: str
) -> None:
    path = exported(tmp_path / "x.onnx", Gated(kind), images())
    assert words in refusal(lambda: converted(path, **PLAIN))
    logits_path = exported(tmp_path / "plain.onnx", Gated(""), images())
    assert converted(logits_path, **PLAIN).outputs == "independent"


def test_a_scale_of_the_logits_is_a_temperature_of_the_head(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Headed(linear()), images())
    model = onnx.load(path)
    (output,) = model.graph.output
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    model.graph.initializer.append(half)
    model.graph.node.append(helper.make_node("Mul", [output.name, "half"], ["cooler"]))
    output.CopyFrom(helper.make_tensor_value_info("cooler", TensorProto.FLOAT, None))
    onnx.save(model, path)
    logits_near(converted(path, **PLAIN), path, images())
