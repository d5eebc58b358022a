"""One run from data to a bundle that serves."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import bundle, bundling
from models.classifier import Classifier
from models.data.augment import Augmentation
from models.data.datasets import Dataset
from models.data.source import Resident
from models.evaluation.evaluate import batches, evaluate, inference
from models.hardware import native_precision
from models.training.checkpoint import CannotResume
from models.training.history import Epoch, read
from models.training.loop import Options, Progress
from models.training.plan import Plan, augmentation
from models.training.recipes import RECIPES
from models.training.run import STATE, train_bundle
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
    source = fields.pop("source", Resident(data, "cpu", Augmentation(crop_padding=1)))
    known: dict[str, Any] = {
        "variant": "resnet20",
        "recipe": RECIPE,
        "recipe_name": "quick",
        "seed": 3,
    }
    return Plan(source=source, overrides=overrides, **{**known, **fields})


def mislabelled(count: int) -> Dataset:
    """Every tenth image has another's class, so that nothing can be sure of all."""
    data = coloured(count, "held out", seed=2)
    targets = np.where(np.arange(count) % 10, data.targets, (data.targets + 1) % 3)
    return replace(data, targets=targets)


@pytest.mark.precision
def test_a_run_gives_a_measured_bundle_that_says_where_it_comes_from(tmp_path: Path) -> None:
    test, held_out = coloured(30, "test.tar", seed=1), mislabelled(120)
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
    assert provenance["recipe"] == {"name": "quick", **RECIPE.record()}
    assert provenance["changed"].keys() == {"batch_size", "learning_rate", "crop_padding", "phases"}
    assert provenance["seed"] == 3
    assert provenance["data"] == "train.tar: 48 images, 120 held out"
    assert provenance["torch"] == torch.__version__
    assert provenance["device"] == "cpu"
    assert provenance["precision"] == native_precision("cpu")
    fit = provenance["calibration"]
    assert fit["temperature"] == trained.temperature > 1, "it was surer than a tenth wrong allows"
    assert fit["images"] == 120
    assert fit["interval"][0] < fit["temperature"] < fit["interval"][1] < 4 * fit["interval"][0]

    bundle.write(trained, tmp_path / "x.safetensors")
    read_back = bundle.read(tmp_path / "x.safetensors")
    classifier = Classifier(read_back.network(), read_back.input, read_back.temperature)
    measured = evaluate(inference(classifier), batches(test, 256))
    assert measured.top1 == figures["top1"], "what was measured is what serves"


def test_what_is_measured_is_what_the_bundle_answers_with_its_views_and_storage(
    tmp_path: Path,
) -> None:
    test, held_out = mislabelled(30), mislabelled(120)
    plan = planned(coloured(48, "train"), tests=(replace(test, source="t"),), held_out=held_out)
    plain = train(plan, name="x")
    trained = train(replace(plan, views="mirrored", storage="fp16"), name="x")
    assert (trained.views, trained.storage) == ("mirrored", "fp16")
    path = tmp_path / "x.safetensors"
    bundle.write(trained, path)
    read_back = bundle.read(path)
    assert tiny.same_bits(read_back.tensors, trained.tensors)
    measured = evaluate(inference(read_back.classifier()), batches(test, 256))
    assert measured.nll == pytest.approx(trained.metrics["t"]["nll"], rel=1e-5)
    assert measured.nll != pytest.approx(plain.metrics["t"]["nll"], rel=1e-5)
    assert trained.temperature != plain.temperature
    # The training is the same.
    assert tiny.same_bits(replace(plain, storage="fp16").tensors, trained.tensors)


def test_a_temperature_that_the_images_do_not_determine_is_not_written() -> None:
    right = coloured(60, "held out", seed=2)
    trained = train(planned(coloured(48, "train"), held_out=right), name="x")
    assert trained.temperature == 1
    record = trained.provenance["calibration"]
    assert record["images"] == 60
    assert "since nearly all predictions are right" in record["undetermined"]
    with pytest.raises(ValueError, match="too few images to fit a temperature: 12; at least 50"):
        planned(coloured(48, "train"), held_out=coloured(12, "held out")).architecture()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cutout": 8},
            "the recipe's cutout is 8, but its images get 0; open it with augmentation",
        ),
        ({"alternate_flip": True}, "the recipe's alternate_flip is True, but its images get False"),
        ({"crop_padding": 4}, "the recipe's crop_padding is 4, but its images get 1"),
        ({"padding_mode": "reflect"}, "the recipe's padding_mode is 'reflect', but"),
        ({"crops": "resized"}, "the recipe's crops is 'resized', but its images get 'padded'"),
        ({"balance": "sampling"}, "the recipe's balance is 'sampling', but its images get 'none'"),
        ({"last_batch": "keep"}, "the recipe's last_batch is 'keep', but its images get 'drop'"),
    ],
)
def test_a_source_that_does_not_do_what_the_recipe_says_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(coloured(24, "train"), recipe=replace(RECIPE, **changes)).architecture()


def test_a_source_opened_by_the_recipe_does_what_it_says() -> None:
    recipe = replace(RECIPE, cutout=8, alternate_flip=True, padding_mode="reflect")
    spec = planned(coloured(24, "train")).input
    source = Resident(coloured(24, "train"), "cpu", augmentation(recipe, spec))
    plan = planned(coloured(24, "train"), recipe=recipe, source=source)
    assert plan.record() == recipe.record()
    assert plan.architecture().num_classes == 3


def test_the_record_has_the_networks_dropout_and_shortcut() -> None:
    recipe = replace(RECIPE, dropout=0.3, shortcut="A")
    own = planned(coloured(24, "train"), recipe=recipe).record()
    assert (own["dropout"], own["shortcut"]) == (0.3, "A")
    overrides = {"dropout": 0.1, "shortcut": "B"}
    told = planned(coloured(24, "train"), recipe=recipe, overrides=overrides).record()
    assert (told["dropout"], told["shortcut"]) == (0.1, "B")
    silent = planned(coloured(24, "train"), overrides=overrides).record()
    assert not silent.keys() & {"dropout", "shortcut"}


def test_the_record_has_the_mean_and_deviation_that_images_are_normalised_by() -> None:
    recipe = replace(RECIPE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    data, spec = coloured(24, "train"), tiny.INPUT
    start = bundling.from_network(tiny.network(), **tiny.described(input=spec))
    own = planned(data, recipe=recipe)
    assert (own.input.mean, own.record()["mean"]) == (recipe.mean, list(recipe.mean))
    for changes in ({"start": start}, {"prepared": spec}):
        plan = planned(data, recipe=recipe, **changes)
        assert plan.input == spec
        found = plan.record()
        assert (found["mean"], found["std"]) == (list(spec.mean), list(spec.std))
        assert RECIPE.differences(plan.recipe).keys() == {"mean", "std"}
        assert not planned(data, **changes).record().keys() & {"mean", "std"}


def test_a_recipe_decides_where_bottlenecks_stride_and_says_nothing_of_basic_blocks() -> None:
    recipe = replace(RECIPE, stride_at="1x1")

    def planned_with(**overrides: Any) -> Plan:
        return planned(coloured(24, "train"), recipe=recipe, overrides=overrides)

    basic, bottleneck = planned_with(), planned_with(block="bottleneck")
    assert basic.architecture().stride_at == "3x3"
    assert "stride_at" not in basic.record()
    assert bottleneck.architecture().stride_at == bottleneck.record()["stride_at"] == "1x1"
    told = planned_with(block="bottleneck", stride_at="3x3")
    assert told.architecture().stride_at == told.record()["stride_at"] == "3x3"
    start = bundling.from_network(tiny.network(block="bottleneck"), **tiny.described())
    further = planned(coloured(24, "train"), recipe=recipe, start=start)
    assert further.architecture().stride_at == further.record()["stride_at"] == "3x3"


def test_fields_for_other_libraries_networks_are_trained_and_recorded(tmp_path: Path) -> None:
    fields = {"pool": "max", "dilation": (2,), "head": (6,), "stem_channels": 5, "stem_stride": 2}
    trained = train(planned(coloured(24, "train"), overrides=fields), name="x")
    bundle.write(trained, tmp_path / "x.safetensors")
    read_back = bundle.read(tmp_path / "x.safetensors").architecture
    assert {name: getattr(read_back, name) for name in fields} == fields
    further = planned(coloured(24, "train"), start=trained, overrides={})
    assert tiny.same_bits(further.network().state_dict(), trained.tensors)
    other = replace(coloured(24, "train"), classes=("a", "b", "c"))
    state = planned(other, start=trained).network().state_dict()
    for name in ("head.0.weight", "head.2.weight"):
        assert not torch.equal(state[name], trained.tensors[name]), "the whole head begins anew"


def test_test_images_with_several_labels_are_refused_before_training() -> None:
    several = replace(coloured(9, "test"), targets=np.ones((9, 3), dtype=np.bool_))
    with pytest.raises(ValueError, match="test has images with several labels or none"):
        planned(coloured(24, "train"), tests=(several,)).architecture()


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
    moved = replace(data, targets=data.targets.clip(max=1))
    with pytest.raises(CannotResume, match=r"another images of .*: 8 then, (16|0) now"):
        train(planned(moved), name="x", folder=tmp_path)
    named = replace(data, classes=data.classes[::-1])
    with pytest.raises(CannotResume, match="another classes"):
        train(planned(named), name="x", folder=tmp_path)


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


@pytest.mark.parametrize("continues", [True, False])
def test_a_temperature_remains_where_the_head_does(continues: bool) -> None:
    data = coloured(24, "train")
    first = replace(train(planned(data), name="first"), temperature=0.5)
    data = data if continues else replace(data, classes=("one", "two", "three"))
    source = Resident(data, "cpu", Augmentation(crop_padding=1))
    recipe = RECIPE.lasting("epochs", 1)
    plan = Plan(start=first, source=source, recipe=recipe, recipe_name="quick", seed=5)
    assert train(plan, name="second").temperature == (0.5 if continues else 1)


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
    with pytest.raises(ValueError, match=r"test\.tar: class 'violet' is not one of the model's"):
        planned(coloured(24, "train.tar"), tests=(other,))


def test_test_data_without_some_classes_is_measured_on_the_others() -> None:
    training, whole = coloured(24, "train.tar"), coloured(9, "test.tar", seed=1)
    kept = np.flatnonzero(whole.targets != 0)
    test = replace(
        whole, images=whole.images[kept], targets=whole.targets[kept] - 1, classes=whole.classes[1:]
    )
    (aligned,) = planned(training, tests=(test,)).tests
    assert aligned.classes == training.classes
    assert aligned.targets.tolist() == whole.targets[kept].tolist()
    measured = train(planned(training, tests=(test,)), name="some").metrics["test.tar"]
    assert measured["images"] == len(kept)


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
