"""Networks as other tools take them: traced, scripted, exported, compiled, copied, converted."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.resnet import ResNet
from tests.support import libraries, rounding, tiny

# TorchScript works, if deprecated; torch's compiler uses it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")

SAME = {"padding": "same", "stem_padding": "same", "pool_padding": "same"}
# Every kind of block, shortcut, stem, padding, head and stride at least once.
KINDS: dict[str, dict[str, Any]] = {
    "basic A": {"shortcut": "A", "shortcut_padding": "end", "dropout": 0.2},
    "basic B blurred": {"stem": "imagenet", "antialias": "blur", "head": (6,)},
    "basic C wide": {"shortcut": "C", "width": 2, "stride_stages": "all"},
    "bottleneck B averaged": {"block": "bottleneck", "stem": "imagenet", "antialias": "average"},
    "bottleneck conv same": {"block": "bottleneck", "shortcut": "conv", "stem": "imagenet", **SAME},
    "bottleneck dilated": {"block": "bottleneck", "dilation": (1,), "stride_at": "1x1"},
    "preact basic A": {"preact": True, "shortcut": "A", "preact_stem": "activated_once"},
    "preact basic C": {"preact": True, "shortcut": "C", "stem": "imagenet", "pool_padding": "zero"},
    "preact bottleneck B": {"preact": True, "block": "bottleneck", "preact_shortcut": "entry"},
    "preact bottleneck conv": {
        "preact": True,
        "block": "bottleneck",
        "shortcut": "conv",
        "stem": "imagenet",
        "pool_padding": "ceil",
        "preact_stem": "activated",
        "final_norm": False,
        "input_norm": True,
        "num_classes": 0,
    },
}
kinds = pytest.mark.parametrize("kind", KINDS)
X, OTHER = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 32, 32)


def network(kind: str) -> ResNet:
    return tiny.network(**KINDS[kind])


@kinds
def test_fx_traces_to_equal_outputs_in_evaluation_and_training(kind: str) -> None:
    ours = network(kind)
    traced = torch.fx.symbolic_trace(ours)
    assert torch.equal(traced(OTHER), ours(OTHER))
    plain = copy.deepcopy(ours)
    for each in (traced.train(), plain.train()):
        torch.manual_seed(0)
        each(X)
    assert tiny.same_bits(traced.state_dict(), plain.state_dict())


@kinds
def test_torchscript_compiles_to_equal_outputs_and_a_file(kind: str) -> None:
    ours = network(kind)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(ours), file)
    file.seek(0)
    loaded = torch.jit.load(file)  # type: ignore[no-untyped-call]
    assert torch.equal(loaded(OTHER), ours(OTHER))
    assert list(loaded.state_dict()) == list(ours.state_dict())


@kinds
def test_torchscript_traces_to_equal_outputs(kind: str) -> None:
    ours = network(kind)
    assert torch.equal(torch.jit.trace(ours, X)(OTHER), ours(OTHER))  # type: ignore[no-untyped-call]


@kinds
def test_export_gives_equal_outputs_for_any_number_of_images(kind: str) -> None:
    ours = network(kind)
    count = torch.export.Dim("count", min=1, max=64)
    exported = torch.export.export(ours, (X,), dynamic_shapes=({0: count},)).module()
    for images in (OTHER, X[:1]):
        rounding.assert_near(exported(images).detach(), ours(images).detach(), ours)


@pytest.mark.parametrize("kind", ["basic A", "bottleneck conv same", "preact bottleneck B"])
def test_the_compiler_sees_a_whole_graph(kind: str) -> None:
    ours = network(kind)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    rounding.assert_near(compiled(X).detach(), ours(X).detach(), ours)


@pytest.mark.parametrize("preact", [False, True])
def test_torchvision_extracts_features_by_the_names_of_stages_and_layers(preact: bool) -> None:
    libraries.import_torchvision()
    from torchvision.models import feature_extraction

    ours = tiny.network(preact=preact, stem="imagenet", blocks=(2, 1))
    in_training, in_evaluation = feature_extraction.get_graph_node_names(ours)
    assert in_training == in_evaluation
    assert {"stem.conv", "stages.0.1.conv2", "stages.1.0.shortcut.conv", "head"} <= {*in_training}
    nodes = {"stem": "stem", "stages.0": "first", "stages.1": "second"}
    extractor = feature_extraction.create_feature_extractor(ours, nodes)
    for mode in (True, False):
        found = extractor.train(mode)(X)
        expected = [ours.stem.pool(ours.stem.before_pool(X)), *ours.features(X, (1, 2))]
        if not mode:
            assert all(map(torch.equal, found.values(), expected))
        assert [x.shape for x in found.values()] == [x.shape for x in expected]


@kinds
def test_copies_and_pickles_compute_the_same(kind: str) -> None:
    ours = network(kind)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(X), ours(X))
        assert other.architecture == ours.architecture


@kinds
def test_weights_may_be_given_from_outside(kind: str) -> None:
    ours, other = network(kind), tiny.network(seed=1, **KINDS[kind])
    given = torch.func.functional_call(ours, other.state_dict(), (X,))
    assert torch.equal(given, other(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@kinds
def test_half_precision_and_channels_last_stay_so(kind: str, dtype: torch.dtype) -> None:
    ours = network(kind).to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps = ours.maps(X.to(dtype, memory_format=torch.channels_last))
    assert maps.dtype is ours(X.to(dtype)).dtype is dtype
    assert maps.is_contiguous(memory_format=torch.channels_last)


def test_weight_norm_keeps_the_outputs_and_trains() -> None:
    ours = network("bottleneck conv same")
    before = ours(X).detach()
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        parametrizations.weight_norm(module)
    rounding.assert_near(ours(X).detach(), before, ours)
    ours(X).sum().backward()  # type: ignore[no-untyped-call]
    scales = [module.parametrizations.weight.original0 for module in convolutions]  # type: ignore[union-attr]
    assert all(isinstance(scale, Tensor) and scale.grad is not None for scale in scales)


@pytest.mark.parametrize("kind", ["basic A", "bottleneck conv same"])
def test_norms_fuse_into_their_convolutions(kind: str) -> None:
    ours = network(kind)
    expected = ours(X).detach()
    pairs: list[tuple[nn.Module, str, str]] = [(ours.stem, "conv", "norm")]
    for stage in ours.stages:
        for block in stage.children():
            numbers = range(1, 4 if KINDS[kind].get("block") else 3)
            pairs += [(block, f"conv{number}", f"bn{number}") for number in numbers]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    rounding.assert_near(ours(X).detach(), expected, ours)
