"""Each recipe's schedule is the paper's, step by step."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from models import bundling, variants
from models.data.source import open_source
from models.training.loop import Options
from models.training.plan import Plan, augmentation
from models.training.recipes import RECIPES, by_name
from models.training.run import train_bundle
from models.training.sizing import with_batch
from tests.support import made, tiny
from tests.support.made import coloured

PER_EPOCH = 390  # 50,000 images in batches of 128

# Step (from 0) and learning rate, as the papers give them.
LEARNING_RATES: dict[str, list[tuple[float, float]]] = {
    "he2015": [(0, 0.01), (399, 0.01), (400, 0.1), (31_999, 0.1), (32_000, 0.01), (48_000, 0.001)],
    "he2016": [(0, 0.01), (400, 0.1), (32_000, 0.01), (48_000, 0.001), (63_999, 0.001)],
    "torch_resnet": [(400, 0.01), (401, 0.1), (32_001, 0.01), (48_001, 0.001), (62_559, 0.001)],
    "torch_resnet_wide": [
        (400, 0.01),
        (401, 0.1),
        (23_001, 0.02),
        (46_001, 0.004),
        (62_001, 0.0008),
        (78_199, 0.0008),
    ],
    "wide": [(e * PER_EPOCH, r) for e, r in ((0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008))],
    "wide_dropout": [(59 * PER_EPOCH, 0.1), (60 * PER_EPOCH, 0.02), (199 * PER_EPOCH, 0.0008)],
    "imagenet": [(29 * PER_EPOCH, 0.1), (30 * PER_EPOCH, 0.01), (89 * PER_EPOCH, 0.001)],
    "torchvision_v2": [
        (e * PER_EPOCH, r) for e, r in ((0, 0), (2.5, 0.25), (5, 0.5), (302.5, 0.25))
    ],
    "gluon": [(e * PER_EPOCH, r) for e, r in ((0, 0.01), (30, 1e-3), (60, 1e-4), (149, 1e-5))],
    "quick": [(0, 0.0), (1.5 * PER_EPOCH, 0.1), (3 * PER_EPOCH, 0.2), (9 * PER_EPOCH, 0.1)],
}
STEPS = {
    "he2015": 64_000,
    "he2016": 64_000,
    "torch_resnet": 62_560,
    "torch_resnet_wide": 78_200,
    "wide": 200 * PER_EPOCH,
    "wide_dropout": 200 * PER_EPOCH,
    "imagenet": 90 * PER_EPOCH,
    "torchvision_v2": 600 * PER_EPOCH,
    "gluon": 150 * PER_EPOCH,
    "quick": 15 * PER_EPOCH,
}
# Weight decay, on which parameters, Nesterov's momentum, batch.
OPTIMIZERS = {
    "he2015": (1e-4, "all", False, 128),
    "he2016": (1e-4, "all", False, 128),
    "torch_resnet": (1e-4, "weights", False, 128),
    "torch_resnet_wide": (1e-4, "weights", False, 128),
    "wide": (5e-4, "all", True, 128),
    "wide_dropout": (5e-4, "all", True, 128),
    "imagenet": (1e-4, "all", False, 256),
    "fb_resnet_torch": (1e-4, "all", True, 256),
    "torchvision": (1e-4, "all", False, 256),
    "torchvision_v2": (2e-5, "weights", False, 1024),
    "gluon": (2e-4, "all", True, 512),
    "quick": (5e-4, "weights", True, 128),
}


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_the_learning_rate_is_the_papers_at_each_step(name: str) -> None:
    recipe = RECIPES[name]
    steps = recipe.steps(PER_EPOCH)
    assert steps == STEPS[name]
    for step, rate in LEARNING_RATES[name]:
        assert recipe.learning_rate * recipe.factor(step / steps) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_is_the_papers(name: str) -> None:
    recipe = RECIPES[name]
    found = (recipe.weight_decay, recipe.decays, recipe.nesterov, recipe.batch_size)
    assert found == OPTIMIZERS[name]
    assert recipe.momentum == 0.9


def test_torch_resnets_schedules_are_those_of_its_example_at_every_step() -> None:
    # Its example counts steps from 0 and changes the rate after these.
    for name, ends, factors in (
        ("torch_resnet", (400, 32_000, 48_000), (0.1, 1, 0.1, 0.01)),
        ("torch_resnet_wide", (400, 23_000, 46_000, 62_000), (0.1, 1, 0.2, 0.04, 0.008)),
    ):
        recipe, steps = RECIPES[name], RECIPES[name].steps(391)
        for step in (0, steps - 1, *(end + after for end in ends for after in (0, 1))):
            expected = factors[sum(step > end for end in ends)]
            assert recipe.factor(step / steps) == pytest.approx(expected, abs=1e-12)


def test_the_average_of_torchvisions_recipe_forgets_as_fast_as_theirs() -> None:
    # references/classification: decay 0.99998 adjusted to 8 x 128 images, 32 steps, 600 epochs.
    every_32_steps = 1 - (1 - 0.99998) * (8 * 128 * 32 / 600)
    assert RECIPES["torchvision_v2"].ema == pytest.approx(every_32_steps ** (1 / 32), abs=5e-7)


def test_every_row_says_where_it_comes_from() -> None:
    assert all(recipe.paper for recipe in RECIPES.values())
    assert by_name("wide").padding_mode == "reflect"
    assert by_name("wide_dropout").dropout == 0.3
    assert by_name("he2015").shortcut == "A"


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="no recipe is called 'he2017'; did you mean he2016"):
        by_name("he2017")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_as_it_says(name: str, tmp_path: Path) -> None:
    """On few images, but of the size that the recipe is for."""
    photographs = by_name(name).crops != "padded"
    recipe = with_batch(by_name(name), 4).lasting("iterations", 2)
    plan = partial(Plan, recipe=recipe, recipe_name=name, seed=0)
    if name == "finetune":
        start = bundling.from_network(tiny.network(), **tiny.described(input=tiny.INPUT))
        plan, spec = partial(plan, start=start, validation=coloured(6, "val", side=8)), start.input
    else:
        variant = "resnet50" if photographs else "resnet20"
        small = {"blocks": (1, 1, 1), "planes": (4, 8, 16), "shortcut": "B"}
        plan, spec = (
            partial(plan, variant=variant, overrides=small),
            variants.variant(variant).input,
        )
    path = made.folder(tmp_path / "images", count=8)
    source = open_source(path, spec, "cpu", augmentation=augmentation(recipe, spec))
    made_plan = plan(source=source)
    before = {each: value.clone() for each, value in made_plan.network().state_dict().items()}
    trained = train_bundle(made_plan, name="x", options=Options(precision="fp32"))
    assert all(tensor.isfinite().all() for tensor in trained.tensors.values())
    if trained.provenance.get("kept", {"epoch": 1})["epoch"]:
        assert not torch.equal(trained.tensors["head.weight"], before["head.weight"])
    assert trained.provenance["changed"].keys() - {"unit"} == {
        *("phases", "batch_size", "learning_rate")
    }
    assert trained.input.mean == (recipe.mean or spec.mean)
