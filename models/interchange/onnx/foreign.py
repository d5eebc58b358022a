"""Operations of networks that are no plain ResNet; the first one in a graph explains it best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from models.interchange.onnx.graph import label_of, misfit

GATE = "a gate, as in squeeze-and-excitation; not a plain ResNet"
ACTIVATION = "an activation other than ReLU"
OPTIMISED = (
    "an operation of onnxruntime's own: it optimised this file for one machine; convert the "
    "original file"
)
RESIZES = (
    "resizes images, which a bundle does before its network; export the network without its "
    "preprocessing, and give --size and --resize"
)
FEATURES = "resizes features, as networks for detection or segmentation do; not a plain ResNet"
CHANGED = "the graph computes with its probabilities; export the network up to its logits"
CLASS_ALONE = (
    "the graph ends in the numbers of classes, without probabilities; export the network up to "
    "its logits or its softmax"
)

FOREIGN = {
    **dict.fromkeys(
        (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "QLinearAdd",
            "QLinearGlobalAveragePool",
            "ConvInteger",
            "MatMulInteger",
            "QGemm",
        ),
        "an 8-bit (quantised) network; convert the float32 one that it was made from",
    ),
    "GroupNormalization": "GroupNorm, where a ResNet here has BatchNorm",
    "InstanceNormalization": "GroupNorm or InstanceNorm, where a ResNet here has BatchNorm",
    "LayerNormalization": "LayerNorm, where a ResNet here has BatchNorm",
    "HardSigmoid": GATE,
    **dict.fromkeys(
        ("LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Erf", "HardSwish", "Swish", "Mish", "Tanh"),
        ACTIVATION,
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), "control flow, which no ResNet has"),
    "LRN": "local response normalisation, which no ResNet has",
    "GlobalMaxPool": "pools its features by maxima, where a ResNet averages",
    **dict.fromkeys(("ArgMax", "TopK"), CLASS_ALONE),
    **dict.fromkeys(
        ("LpNormalization", "ReduceL2"),
        "normalises features to a length of 1; export the network up to its pooled features",
    ),
}
# What may follow a network's logits.
ENDINGS = ("Identity", "Cast", "Softmax", "LogSoftmax", "Sigmoid")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
RESIZING = ("Resize", "Upsample")


def refuse_foreign(nodes: Sequence[Any], output: str) -> None:
    """Raises `BundleError` for the first of `nodes`, in the order of the data, that is foreign."""
    makers = {name: node for node in nodes for name in node.output}
    users: defaultdict[str, list[Any]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            users[name].append(node)
    last = _ending(makers, output)
    features: set[str] = set()
    for node in nodes:
        op, seen = node.op_type, not features.isdisjoint(node.input)
        reason = FOREIGN.get(op)
        if op == "Sigmoid" and node.output[0] not in last:
            reason = _inner_sigmoid(node, users)
        elif op in RESIZING:
            reason = FEATURES if seen else RESIZES
        if reason:
            raise misfit(label_of(node), reason)
        if seen or op == "Conv":
            features.update(node.output)
    for node in nodes:
        if node.domain.startswith("com.microsoft"):
            raise misfit(label_of(node), OPTIMISED)


def _ending(makers: Mapping[str, Any], output: str) -> set[str]:
    """The values between a network's logits and the output."""
    ending: set[str] = set()
    while output in makers and makers[output].op_type in (*ENDINGS, *RESHAPES):
        ending.add(output)
        output = makers[output].input[0]
    return ending


def _inner_sigmoid(node: Any, users: Mapping[str, Sequence[Any]]) -> str:
    """Why a sigmoid that is not the last operation is refused: it gates features, or it stands for
    a ReLU, as in SiLU, which multiplies what it sees, and in a head; or its result is changed."""
    waiting, seen, linear = [node.output[0]], set(node.output), False
    while waiting:
        for user in users[waiting.pop()]:
            if user.op_type == "Mul" and node.input[0] in user.input:
                return ACTIVATION
            if user.op_type in ("Mul", "Conv"):
                return GATE
            waiting.extend(set(user.output) - seen)
            seen.update(user.output)
            linear |= user.op_type in ("Gemm", "MatMul")
    return ACTIVATION if linear else CHANGED
