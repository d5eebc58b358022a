"""What is frozen keeps weights and statistics, and costs nothing backward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.data.augment import Augmentation
from models.data.source import Resident
from models.resnet import ResNet
from models.training.freezing import freezing, train_mode
from models.training.loop import Options, train
from models.training.recipe import Phase
from models.training.recipes import RECIPES
from tests.models.training.test_loop import separable
from tests.support import tiny

RECIPE = replace(RECIPES["quick"], batch_size=8, learning_rate=0.05, phases=(Phase(1, 1),))


def changed(architecture: dict[str, Any], **recipe: Any) -> set[str]:
    """The tensors that training changes."""
    network = tiny.randomised(ResNet(tiny.architecture(num_classes=2, **architecture)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    source = Resident(separable(), "cpu", Augmentation(crop_padding=1))
    train(
        network,
        source,
        tiny.INPUT,
        replace(RECIPE, **recipe),
        seed=0,
        options=Options(precision="fp32"),
    )
    assert all(parameter.requires_grad for parameter in network.parameters()), "as before"
    return {name for name, v in network.state_dict().items() if not torch.equal(v, before[name])}


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("average", [{}, {"ema": 0.9}, {"lookahead": 2}])
@pytest.mark.parametrize(
    ("freeze", "kept"),
    [
        ("stem", ("stem.", "input_norm.")),
        ("stage1", ("stem.", "input_norm.", "stages.0")),
        ("stage2", ("stem.", "input_norm.", "stages.")),
        ("backbone", ("stem.", "input_norm.", "stages.", "norm.")),
    ],
)
def test_parts_up_to_the_named_one_keep_weights_and_statistics(
    preact: bool, average: dict[str, Any], freeze: str, kept: tuple[str, ...]
) -> None:
    network = {"preact": preact, "input_norm": True}
    everything = ResNet(tiny.architecture(num_classes=2, **network)).state_dict()
    expected = {name for name in everything if not name.startswith(kept)}
    assert changed(network, freeze=freeze, weight_decay=0.1, decays="all", **average) == expected


def test_frozen_norms_keep_statistics_scales_and_offsets() -> None:
    network = ResNet(tiny.architecture(num_classes=2))
    weights = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if not isinstance(module, nn.BatchNorm2d)
        for part, _ in module.named_parameters(recurse=False)
    }
    assert changed({}, norm="frozen", weight_decay=0.1, decays="all") == weights


def test_nothing_is_computed_backward_through_frozen_parts() -> None:
    network = ResNet(tiny.architecture(dropout=0.5))
    seen: dict[str, bool] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output.requires_grad

        return hook

    for number, stage in enumerate(network.stages, 1):
        stage.register_forward_hook(note(f"stage{number}"))
    with freezing(network, replace(RECIPE, freeze="stage1")) as still:
        train_mode(network, still)
        network(torch.zeros(2, 3, 8, 8))
        assert [stage.training for stage in network.stages] == [False, True]
        assert not any(module.training for module in network.stages[0].modules())
    assert seen == {"stage1": False, "stage2": True}


def test_what_was_frozen_by_hand_stays_frozen() -> None:
    network = ResNet(tiny.architecture())
    network.stages[0].requires_grad_(False)
    with freezing(network, replace(RECIPE, freeze="stage1")):
        pass
    assert not any(parameter.requires_grad for parameter in network.stages[0].parameters())
    assert all(parameter.requires_grad for parameter in network.stem.parameters())


def test_a_stage_that_a_network_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no stage3; this network has 2 stages"):
        changed({}, freeze="stage3")
