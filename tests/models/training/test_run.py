"""One run from data to a bundle that serves."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models import bundle
from models.classifier import Classifier
from models.data.augment import Augmentation
from models.data.datasets import Dataset
from models.data.source import Resident
from models.evaluation.evaluate import batches, evaluate, inference
from models.hardware import native_precision
from models.training.checkpoint import CannotResume
from models.training.history import Epoch, read
from models.training.loop import Options, Progress
from models.training.recipes import RECIPES
from models.training.run import STATE, Plan, train_bundle
from tests.support import tiny
from tests.support.made import coloured

RECIPE = replace(RECIPES["quick"], batch_size=8, learning_rate=0.02, crop_padding=1).lasting(
    "epochs", 6
)
# Where the precision is not what is asked about, so that it does not depend on the CPU.
train = partial(train_bundle, options=Options(precision="fp32"))
SMALL: dict[str, Any] = {"blocks": (1, 1, 1), "planes": (4, 8, 16)}


def planned(data: Dataset, **fields: Any) -> Plan:
    overrides = {**SMALL, **fields.pop("overrides", {})}
    known: dict[str, Any] = {
        "variant": "resnet20",
        "recipe": RECIPE,
        "recipe_name": "quick",
        "seed": 3,
    }
    source = Resident(data, "cpu", Augmentation(crop_padding=1))
    return Plan(source=source, overrides=overrides, **{**known, **fields})


@pytest.mark.precision
def test_a_run_gives_a_measured_bundle_that_says_where_it_comes_from(tmp_path: Path) -> None:
    test, held_out = coloured(30, "test.tar", seed=1), coloured(12, "held out", seed=2)
    plan = planned(
        coloured(48, "train.tar"), tests=(test,), held_out=held_out, overrides={"shortcut": "A"}
    )
    steps: list[int] = []
    trained = train_bundle(
        plan, name="colours", card="# Colours", report=lambda at: steps.append(at.step)
    )
    assert trained.name == "colours"
    assert trained.card == "# Colours"
    assert trained.labels == ("blue", "green", "red")
    assert trained.architecture.shortcut == "A"
    assert trained.architecture.num_classes == 3
    assert trained.metrics.keys() == {"test.tar"}
    figures = trained.metrics["test.tar"]
    assert figures["images"] == 30
    assert figures["top1"] > 0.9
    assert figures["top5"] == 1
    assert 0 <= figures["ece"] < 0.5
    assert steps[-1] == 36
    provenance = trained.provenance
    assert provenance["recipe"] == {"name": "quick", **asdict(RECIPE)}
    assert provenance["changed"].keys() == {"batch_size", "learning_rate", "crop_padding", "phases"}
    assert provenance["seed"] == 3
    assert provenance["data"] == "train.tar: 48 images, 12 held out"
    assert provenance["torch"] == torch.__version__
    assert provenance["device"] == "cpu"
    assert provenance["precision"] == native_precision("cpu")
    # Told apart with ease: confidence should grow.
    assert 0.05 <= trained.temperature < 1
    assert provenance["calibration"]["temperature"] == trained.temperature

    bundle.write(trained, tmp_path / "x.safetensors")
    read_back = bundle.read(tmp_path / "x.safetensors")
    classifier = Classifier(read_back.network(), read_back.input, read_back.temperature)
    measured = evaluate(inference(classifier), batches(test, 256))
    assert measured.top1 == figures["top1"], "what was measured is what serves"


def test_equal_seeds_give_equal_bundles_whatever_was_drawn_before() -> None:
    def weights(seed: int, unrelated: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(unrelated)
        plan = planned(coloured(24, "train"), seed=seed, overrides={"dropout": 0.2})
        return train(plan, name="x").tensors

    first = weights(3, unrelated=0)
    assert tiny.same_bits(weights(3, unrelated=1), first)
    assert not tiny.same_bits(weights(4, unrelated=0), first)


class Killed(Exception):
    """Stands for whatever ends a process."""


def test_a_run_that_was_killed_goes_on_and_logs_each_epoch_once(tmp_path: Path) -> None:
    plan = planned(coloured(24, "train"), tests=(coloured(9, "test", seed=1),))
    whole = train(plan, name="x")

    def kill(row: Epoch) -> None:
        if row.epoch == 4:
            raise Killed  # Logged, and not yet saved.

    with pytest.raises(Killed):
        train(plan, name="x", folder=tmp_path, after_epoch=kill)
    assert (tmp_path / STATE).exists()
    began: list[Progress] = []
    resumed = train(plan, name="x", folder=tmp_path, report=began.append)
    assert began[0].epoch == 3
    assert tiny.same_bits(resumed.tensors, whole.tensors)
    assert [row.epoch for row in read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    top1 = read(tmp_path)[-1].test_top1
    assert top1 == resumed.metrics["test"]["top1"]


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    data = coloured(24, "train")
    train(planned(data), name="x", folder=tmp_path)
    with pytest.raises(CannotResume, match="another seed: 3 then, 4 now"):
        train(planned(data, seed=4), name="x", folder=tmp_path)
    other = replace(RECIPE, learning_rate=0.3)
    with pytest.raises(CannotResume, match=r"another recipe learning_rate: 0\.02 then, 0\.3 now"):
        train(planned(data, recipe=other), name="x", folder=tmp_path)


def test_without_test_data_nothing_is_claimed() -> None:
    trained = train(planned(coloured(24, "train")), name="x")
    assert trained.metrics == {}
    assert trained.temperature == 1
    assert trained.variant is None


def test_a_recipe_decides_dropout_and_shortcut_unless_told_otherwise() -> None:
    recipe = replace(RECIPE, dropout=0.3, shortcut="A")
    data = coloured(24, "train")
    own = planned(data, recipe=recipe).architecture()
    assert (own.dropout, own.shortcut) == (0.3, "A")
    told = planned(data, recipe=recipe, overrides={"shortcut": "B"}).architecture()
    assert (told.dropout, told.shortcut) == (0.3, "B")


def test_training_goes_on_from_a_bundles_weights() -> None:
    data = coloured(24, "train")
    first = train(planned(data, overrides={"shortcut": "A"}), name="first")
    # The recipe's shortcut is for networks that begin at random.
    recipe = replace(RECIPE, shortcut="B", learning_rate=1e-6).lasting("epochs", 1)
    source = Resident(data, "cpu", Augmentation(crop_padding=1))
    plan = Plan(start=first, source=source, recipe=recipe, recipe_name="quick", seed=5)
    assert tiny.same_bits(plan.network().state_dict(), first.tensors)
    second = train(plan, name="second")
    assert second.architecture == first.architecture
    name = "head.weight"
    torch.testing.assert_close(second.tensors[name], first.tensors[name], rtol=0, atol=1e-3)
    assert not torch.equal(second.tensors[name], first.tensors[name])
    assert second.provenance["start"]["fingerprint"] == first.fingerprint()
    assert second.provenance["start"]["provenance"] == first.provenance
    assert plan.identity()["start"] == first.fingerprint()


def test_weights_of_other_classes_get_a_new_head() -> None:
    first = train(planned(coloured(24, "train")), name="first")
    data = replace(coloured(24, "train"), classes=("a", "b", "c", "d"))
    plan = planned(data, start=first, overrides={"planes": (4, 8, 16)})
    state = plan.network().state_dict()
    assert state["head.weight"].shape == (4, 16)
    backbone = {name: value for name, value in first.tensors.items() if "head" not in name}
    assert tiny.same_bits({name: state[name] for name in backbone}, backbone)
    with pytest.raises(ValueError, match="weights do not fit the network to train"):
        planned(data, start=first, overrides={"planes": (4, 8, 32)}).network()


def test_test_data_of_other_classes_is_refused_before_training() -> None:
    other = replace(coloured(9, "test.tar"), classes=("blue", "green", "violet"))
    with pytest.raises(ValueError, match=r"test\.tar has other classes than train\.tar"):
        planned(coloured(24, "train.tar"), tests=(other,)).architecture()


def test_test_sets_need_names_of_their_own() -> None:
    twice = (coloured(9, "test"), coloured(9, "test", seed=1))
    with pytest.raises(ValueError, match="two test sets are called test; rename one"):
        planned(coloured(24, "train"), tests=twice).architecture()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"shortcuts": "A"}, "did you mean shortcut"), ({"shortcut": "Z"}, "shortcut must be one of")],
)
def test_an_impossible_override_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(coloured(24, "train.tar"), overrides=overrides).architecture()


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="no variant is called 'resnet21'"):
        planned(coloured(24, "train"), variant="resnet21").architecture()
