"""Which comparisons with other libraries take so long that only `make test-all` makes them.

What they compare differs from the others in depth or width alone.
"""

from __future__ import annotations

import re

import pytest

SLOW = re.compile(
    r"keras/test_importer\.py::.*applications.*\[ResNet(101|152)"
    r"|keras/test_importer\.py::test_other_numerics.*\[ResNet50V2-(stride_block|preact)"
    # Both kinds of file hold the same description of the model.
    r"|keras/test_front\.py::test_layers_in_front(?!.*\[0 to 1-).*-model\.keras"
    r"|keras/test_head\.py::test_heads_give(?!.*\[pooled and flattened-).*-model\.keras"
    r"|flax/test_importer\.py::.*\[(34|152|200)\]"
    r"|flax/test_importer\.py::test_orbax.*\[50\]"
    r"|flax/test_importer\.py::test_the_imagenet_examples.*\[50\]"
    r"|test_huggingface\.py::test_the_published.*resnet(34|101)"
    r"|test_torch_resnet\.py::test_the_deepest"
    r"|test_torch_resnet\.py::test_every_class.*ResNet(101|152|164|200)\]"
    r"|onnx/test_importer\.py::test_what_torchs_new_exporter"
    r"|onnx/test_export\.py::.*wide_resnet"
    r"|pytorch/test_export\.py::test_a_round_trip(?!.*\[(torchvision-resnet50-.pth"
    r"|timm-preact_resnet18-.safetensors)\])"
    r"|onnx/test_(blocks|stems)\.py::test_torchs_newer_exporter"
    r"|onnx/test_blocks\.py::.*\[(BasicBlock-AvgPool2d|Bottleneck-BlurPool2d|dilated0)"
    r"|test_cifar\.py::test_published_weights.*resnet56"
    r"|test_timm\.py::test_what_only.*resnetaa50"
    r"|test_(torchvision|timm)\.py::test_every.*\[(wide_resnet|resnet(26|34|(v2_)?1\d\d|200)\])"
    r"|onnx/test_importer\.py::.*zoo.*resnet(101|152)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # Those of all folders.
        if "/interchange/" in item.nodeid and SLOW.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
