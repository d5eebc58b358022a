"""Training learns, repeats itself exactly whenever it is stopped, and says when it diverges."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.augment import Augmentation
from models.data.datasets import Dataset
from models.data.source import Resident
from models.resnet import ResNet
from models.training import loop
from models.training.checkpoint import CannotResume, Checkpoint
from models.training.keeping import Outcome, Validation
from models.training.loop import Diverged, Options, Progress, train
from models.training.parallel import World
from models.training.recipe import Phase, Recipe
from models.training.recipes import RECIPES
from tests.support import rounding, tiny

RECIPE = replace(
    RECIPES["quick"],
    batch_size=8,
    learning_rate=0.05,
    crop_padding=1,
    phases=(Phase(0.75, 1, "linear"), Phase(3, 0, "cosine")),
)


# Where a test says nothing else, so that it does not depend on what the CPU computes in.
FP32 = Options(precision="fp32")


def separable(count: int = 40) -> Dataset:
    """Dark images of class 0 and bright ones of class 1, both noisy."""
    random = np.random.default_rng(0)
    targets = np.arange(count) % 2
    images = random.integers(0, 100, (count, 8, 8, 3)) + 150 * targets[:, None, None, None]
    return Dataset(images.astype(np.uint8), targets.astype(np.int64), ("dark", "bright"), "made")


def fresh(seed: int = 0, **changes: Any) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(tiny.architecture(num_classes=2, **changes))


def trained(
    network: ResNet,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    data: Dataset | None = None,
    **more: Any,
) -> list[Progress]:
    reports: list[Progress] = []
    more.setdefault("options", FP32)
    source = Resident(data or separable(), "cpu", Augmentation(crop_padding=recipe.crop_padding))
    train(network, source, tiny.INPUT, recipe, seed=seed, report=reports.append, **more)
    return reports


def weights(recipe: Recipe = RECIPE, *, dropout: float = 0.0, **more: Any) -> dict[str, Any]:
    network = fresh(dropout=dropout)
    trained(network, recipe, **more)
    return network.state_dict()


def test_the_loss_falls_and_two_classes_are_told_apart() -> None:
    network = fresh()
    assert network.training
    reports = trained(network, RECIPE.lasting("epochs", 6))
    assert reports[0].loss > 0.5
    assert reports[-1].loss < 0.2
    assert reports[-1].accuracy > 0.95
    assert not network.training


def test_equal_seeds_give_equal_weights_and_others_give_others() -> None:
    first = weights(seed=1)
    torch.manual_seed(100)
    assert tiny.same_bits(weights(seed=1), first)
    assert not tiny.same_bits(weights(seed=2), first)


def test_each_epoch_is_reported_with_what_it_has_seen() -> None:
    reports = trained(fresh())
    # 40 images make 5 batches an epoch; 20 steps would report within one.
    found = [(at.step, at.steps, at.epoch) for at in reports]
    assert found == [(5, 15, 0), (10, 15, 1), (15, 15, 2)]
    assert all(at.images_per_second > 0 and 0 <= at.accuracy <= 1 for at in reports)
    assert reports[-1].learning_rate == pytest.approx(RECIPE.learning_rate * RECIPE.factor(14 / 15))


def test_an_incomplete_last_batch_is_left_out() -> None:
    assert [at.step for at in trained(fresh(), data=separable(47))] == [5, 10, 15]


def test_an_incomplete_last_batch_is_kept_on_request() -> None:
    kept = Augmentation(crop_padding=0, flip=False, last_batch="keep")
    data, recipe = separable(21), replace(RECIPE, last_batch="keep").lasting("epochs", 1)
    for batch_size, count in ((8, 3), (32, 1)):
        network, reports = fresh(), list[Progress]()
        still = replace(recipe, batch_size=batch_size, learning_rate=0.0)
        source = Resident(data, "cpu", kept)
        train(
            network,
            source,
            tiny.INPUT,
            still,
            seed=0,
            options=FP32,
            report=reports.append,
        )
        assert [at.step for at in reports] == [count]
        # Each image counts once, whatever the size of its batch.
        right = reports[0].accuracy * 21
        assert right == pytest.approx(round(right))


def test_a_last_batch_that_cannot_be_divided_is_refused() -> None:
    source = Resident(separable(21), "cpu", Augmentation(last_batch="keep"))
    recipe = replace(RECIPE, last_batch="keep")
    with pytest.raises(ValueError, match="the last batch's 5 images are too few for 4 parts"):
        train(fresh(), source, tiny.INPUT, recipe, seed=0, options=Options(accumulate=4))


def test_parts_of_a_last_batch_add_up_to_it() -> None:
    """Without normalisation by the batch, the gradient is that of the whole batch."""
    kept = Augmentation(crop_padding=0, flip=False, last_batch="keep")
    recipe = replace(RECIPE, last_batch="keep").lasting("iterations", 3)
    results = []
    for parts in (1, 2):
        network = fresh()
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.track_running_stats = False
                norm.forward = lambda x: x  # type: ignore[method-assign, assignment]
        options = replace(FP32, accumulate=parts)
        train(
            network,
            Resident(separable(21), "cpu", kept),
            tiny.INPUT,
            recipe,
            seed=0,
            options=options,
        )
        results.append(network.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, msg=name)


@pytest.mark.parametrize("changes", [{"cutmix": 1.0}, {"cutmix": 1.0, "mixup": 1.0}])
def test_cutmix_is_drawn_anew_each_step_and_repeats_itself(changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changes)
    first = weights(recipe)
    assert tiny.same_bits(weights(recipe), first)
    assert not tiny.same_bits(weights(), first)
    assert not tiny.same_bits(weights(replace(RECIPE, mixup=1.0)), first)


def test_a_long_epoch_reports_on_its_way() -> None:
    recipe = replace(RECIPE, batch_size=2).lasting("epochs", 1)
    assert [at.step for at in trained(fresh(), recipe, data=separable(90))] == [20, 40, 45]


def test_iterations_may_end_within_an_epoch() -> None:
    reports = trained(fresh(), RECIPE.lasting("iterations", 7))
    assert [(at.step, at.epoch) for at in reports] == [(5, 0), (7, 1)]


# The second epoch is the best, and the last ties with it.
SCORES = [Validation(0.5, 1.0), Validation(0.75, 0.5), Validation(0.75, 0.5)]


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema": 0.9},
        {"cutout": 3, "mixup": 0.4},
        {"optimizer": "adamw", "learning_rate": 0.01, "clip": 0.5},
        {"lookahead": 2, "bias_rate": 8.0, "decays": "all"},
        {"freeze": "stage1", "body_rate": 0.3, "norm": "frozen"},
        {"balance": "loss", "mixup": 0.4, "label_smoothing": 0.1},
        {"keep": "best", "ema": 0.9},
        {"keep": "best", "patience": 1, "lookahead": 2},
    ],
)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.precision)])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(
    tmp_path: Path, change: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any step: the state is an epoch old at most, or as old as `save_every` says."""
    monkeypatch.setattr(loop, "REPORT_EVERY", 2)
    recipe = replace(RECIPE, **change)

    def go(**more: Any) -> dict[str, Any]:
        network = fresh(dropout=0.3)
        source = Resident(separable(), "cpu", Augmentation(crop_padding=1))
        train(
            network,
            source,
            tiny.INPUT,
            recipe,
            seed=1,
            after_epoch=lambda progress, result: SCORES[progress.epoch],
            **more,
        )
        return network.state_dict()

    often = Options(save_every=0, precision=precision)
    whole = go(options=often)
    for at in (3, 10, 14):

        def kill(progress: Progress, at: int = at) -> None:
            if progress.step >= at:
                raise Killed

        checkpoint = Checkpoint(tmp_path / f"{at}.pt", {"seed": 1})
        with pytest.raises(Killed):
            go(checkpoint=checkpoint, report=kill, options=often)
        seen: list[Progress] = []
        resumed = go(checkpoint=checkpoint, report=seen.append, options=often)
        if seen:  # Else it was over when it was killed.
            assert at - 2 <= seen[0].step <= at + 2, "it did not begin anew"
        assert tiny.same_bits(resumed, whole), f"killed at step {at}"


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", {})
    weights(checkpoint=checkpoint)
    with pytest.raises(CannotResume, match=r"state\.pt does not fit"):
        trained(fresh(width=2), checkpoint=checkpoint)


def test_an_absurd_learning_rate_is_called_divergence_and_names_the_step() -> None:
    recipe = replace(RECIPE, learning_rate=1e30, phases=(Phase(4, 1),))
    with pytest.raises(Diverged, match=r"the loss is not finite at step 2 of 20; lower the lear"):
        trained(fresh(), recipe)


@pytest.mark.precision
def test_divergence_in_low_precision_says_so() -> None:
    recipe = replace(RECIPE, learning_rate=1e30, phases=(Phase(4, 1),))
    with pytest.raises(Diverged, match="or train with --precision fp32"):
        trained(fresh(), recipe, options=Options(precision="bf16"))


def test_what_diverged_is_not_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.pt", {})
    recipe = replace(RECIPE, phases=(Phase(1, 1e-3), Phase(3, 1e30)))
    with pytest.raises(Diverged):
        trained(fresh(), recipe, checkpoint=checkpoint)
    state = checkpoint.load("cpu")
    assert state is not None
    assert state["step"] == 5
    assert all(t.isfinite().all() for t in state["network"].values())


@pytest.mark.parametrize("decays", ["weights", "all"])
def test_parameters_decay_as_the_recipe_says(decays: Any) -> None:
    """With no gradient, a parameter shrinks if and only if it decays."""
    images = np.zeros((16, 8, 8, 3), dtype=np.uint8)
    data = Dataset(images, np.zeros(16, dtype=np.int64), ("only",), "made")
    torch.manual_seed(0)
    # One class: the loss and every gradient are 0.
    network = tiny.randomised(ResNet(tiny.architecture(num_classes=1)))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained(network, replace(RECIPE, weight_decay=0.1, decays=decays), data=data)
    shrunk = {
        name for name, p in network.named_parameters() if (p.abs() < before[name].abs()).any()
    }
    decaying = {n for n, p in network.named_parameters() if p.ndim > 1 or decays == "all"}
    assert shrunk == decaying
    unchanged = {n for n, p in network.named_parameters() if torch.equal(p, before[n])}
    assert unchanged == before.keys() - decaying


def test_label_smoothing_keeps_the_loss_from_zero() -> None:
    reports = trained(fresh(), replace(RECIPE, label_smoothing=0.5).lasting("epochs", 6))
    assert reports[-1].accuracy > 0.95
    # The least that half-smoothed labels of two classes allow: the entropy of (3/4, 1/4).
    least = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert least < reports[-1].loss < least + 0.1


def test_mixup_keeps_the_loss_high_while_the_first_labels_are_learnt() -> None:
    recipe = replace(RECIPE, mixup=0.2).lasting("epochs", 6)
    mixed = trained(fresh(), recipe)[-1]
    assert mixed.accuracy > 0.7
    assert mixed.loss > 2 * trained(fresh(), RECIPE.lasting("epochs", 6))[-1].loss


def test_the_average_is_what_training_ends_with() -> None:
    """Of weights that a vanishing learning rate hardly moves, the average is the beginning."""
    recipe = replace(RECIPE, ema=0.5, learning_rate=1e-12)
    before = fresh().state_dict()
    for name, value in weights(recipe).items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(value, before[name])
    moved, averaged = weights(seed=1), weights(replace(RECIPE, ema=0.99), seed=1)
    assert not tiny.same_bits(moved, averaged)
    first = fresh().state_dict()["head.weight"]
    far, near = (((w["head.weight"] - first) ** 2).sum() for w in (moved, averaged))
    assert near < far


def outcome(recipe: Recipe, *, network: ResNet | None = None, **more: Any) -> Outcome:
    source = Resident(separable(), "cpu", Augmentation(crop_padding=1))
    more.setdefault("after_epoch", lambda progress, result: SCORES[progress.epoch])
    return train(network or fresh(), source, tiny.INPUT, recipe, seed=0, options=FP32, **more)


@pytest.mark.parametrize("average", [{}, {"ema": 0.9}, {"lookahead": 2}])
def test_what_is_measured_as_the_best_is_what_is_kept(average: dict[str, Any]) -> None:
    seen: list[dict[str, Any]] = []

    def measure(progress: Progress, result: ResNet) -> Validation:
        assert not result.training
        seen.append({name: value.clone() for name, value in result.state_dict().items()})
        return SCORES[progress.epoch]

    network = fresh()
    recipe = replace(RECIPE, keep="best", **average)
    found = outcome(recipe, network=network, after_epoch=measure)
    assert found == Outcome(epoch=2, epochs=3, validation=SCORES[1])
    assert tiny.same_bits(network.state_dict(), seen[1])
    last = fresh()
    assert outcome(replace(recipe, keep="last"), network=last, after_epoch=measure).epoch == 3
    assert tiny.same_bits(last.state_dict(), seen[-1])
    assert not tiny.same_bits(last.state_dict(), seen[1])


def test_patience_ends_a_run_that_gets_no_better() -> None:
    recipe = replace(RECIPE.lasting("epochs", 4), patience=2)
    scores = [Validation(0.75, 0.5), Validation(0.75, 0.6), Validation(0.7, 0.1)]
    reports: list[Progress] = []
    found = outcome(
        recipe,
        report=reports.append,
        after_epoch=lambda progress, result: scores[progress.epoch],
    )
    assert found == Outcome(epoch=3, epochs=3, stopped_early=True, validation=scores[2])
    assert [at.step for at in reports] == [5, 10, 15]


def test_a_run_that_ended_early_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    recipe = replace(RECIPE, keep="best", patience=1)
    scores = [Validation(0.75, 0.5), Validation(0.5, 0.5)]
    checkpoint = Checkpoint(tmp_path / "state.pt", {})

    def go() -> tuple[Outcome, dict[str, Any]]:
        network = fresh()
        found = outcome(
            recipe,
            network=network,
            checkpoint=checkpoint,
            after_epoch=lambda progress, result: scores.pop(0),
        )
        return found, network.state_dict()

    first, kept = go()
    assert first == Outcome(epoch=1, epochs=2, stopped_early=True, validation=Validation(0.75, 0.5))
    again, same = go()
    assert again == first
    assert tiny.same_bits(same, kept)


def test_a_start_better_than_every_epoch_is_kept() -> None:
    network = fresh()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = Validation(0.75, 0.4)
    found = outcome(replace(RECIPE, keep="best"), network=network, start=start)
    assert found == Outcome(epoch=0, epochs=3, validation=start)
    assert tiny.same_bits(network.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": "best"}, "keep best needs validation images"),
        ({"patience": 1}, "patience needs validation images"),
    ],
)
def test_what_needs_a_validation_does_not_go_without(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(fresh(), replace(RECIPE, **change))


def test_the_scheduled_rate_is_reported_whatever_a_part_gets() -> None:
    last = trained(fresh(), replace(RECIPE, body_rate=0.1))[-1]
    assert last.learning_rate == pytest.approx(RECIPE.learning_rate * RECIPE.factor(14 / 15))


def test_parts_of_a_batch_add_up_to_its_gradient() -> None:
    """Of equal images, so that every part has the statistics of the whole."""
    recipe = RECIPE.lasting("iterations", 2)
    data = separable(8)
    source = Resident(
        replace(data, images=np.repeat(data.images[:1], 8, axis=0)),
        "cpu",
        Augmentation(crop_padding=0, flip=False),
    )
    networks = []
    for accumulate in (1, 4):
        networks.append(fresh())
        options = replace(FP32, accumulate=accumulate)
        train(networks[-1], source, tiny.INPUT, recipe, seed=0, options=options)
    whole, parts = (dict(network.named_parameters()) for network in networks)
    before = fresh().state_dict()
    # The way there and back, and gradients that are sums over 8 images of 64 places. Of the two
    # steps, the first has a learning rate of 0.
    layers = rounding.sums(before)
    allowed = rounding.of_sums([*layers, *layers, *[8 * 64 for _ in layers]])
    for name, value in whole.items():
        moved = (value - before[name]).abs().max().item()
        assert moved > 0
        torch.testing.assert_close(
            parts[name], value, atol=allowed * moved, rtol=2 * rounding.unit("fp32")
        )


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.precision)])
def test_checkpointing_blocks_changes_no_bit(precision: str) -> None:
    plain, checkpointed = (
        weights(dropout=0.2, options=Options(precision=precision, checkpoint_blocks=on))
        for on in (False, True)
    )
    assert tiny.same_bits(checkpointed, plain)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match="batches of 8 cannot be divided into 3 parts"):
        trained(fresh(), options=replace(FP32, accumulate=3))


@pytest.mark.precision
def test_bf16_learns_too_and_keeps_float32_weights() -> None:
    network = fresh()
    reports = trained(network, RECIPE.lasting("epochs", 6), options=Options(precision="bf16"))
    assert reports[-1].accuracy > 0.95
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_data_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="40 images are fewer than one batch of 64"):
        trained(fresh(), replace(RECIPE, batch_size=64))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_in_every_precision_and_resumes_exactly(
    tmp_path: Path, precision: str
) -> None:
    recipe = RECIPE.lasting("epochs", 6)
    options, world = Options(precision=precision), World(0, 1, "cuda:0")
    checkpoint = Checkpoint(tmp_path / "state.pt", {})

    def kill(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    def go(**more: Any) -> ResNet:
        network = fresh(dropout=0.3)
        source = Resident(separable(), "cuda:0", Augmentation(crop_padding=1))
        train(network, source, tiny.INPUT, recipe, seed=1, world=world, options=options, **more)
        return network

    whole = go()
    with pytest.raises(Killed):
        go(checkpoint=checkpoint, report=kill)
    assert tiny.same_bits(go(checkpoint=checkpoint).state_dict(), whole.state_dict())


@torch.library.custom_op("tests::uncompilable", mutates_args=())
def uncompilable(x: Tensor) -> Tensor:
    """A copy of `x`, which compilers cannot describe."""
    return x.clone()


@uncompilable.register_fake
def _(x: Tensor) -> Tensor:
    raise RuntimeError("no shape is known before it runs")


# What warns here is inside the compiler, for which `can_compile` would do without it.
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_compiled_is_trained_in_eager_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "COMPILE_FROM", 1)
    expected, network = fresh(), fresh()
    for each in (expected, network):
        each.stem.register_forward_pre_hook(lambda _, images: (uncompilable(images[0]),))
    if not loop.can_compile("cpu"):
        pytest.skip("needs a C++ compiler")
    trained(expected, options=replace(FP32, compiled=False))
    assert len(trained(network, options=replace(FP32, compiled=True))) > 0
    assert tiny.same_bits(network.state_dict(), expected.state_dict())
