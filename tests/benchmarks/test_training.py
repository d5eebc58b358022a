"""Both sides of the training benchmark, so short that their figures mean nothing."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common.stopwatch import Enough, Stopwatch
from benchmarks.training import compare, torch_resnet_example
from models import labels
from models.classifier import Normalise
from models.data.datasets import Dataset
from models.hardware import native_precision
from models.preprocess import CIFAR
from models.resnet import build

PLAN = compare.Plan(steps=4, warm_up=2, batch_size=8, images=24, workers=0, compiled=False)


def test_a_stopwatch_leaves_the_first_steps_out() -> None:
    watch = Stopwatch(warm_up=3, steps=4, batch_size=10, device="cpu")
    for reported in (2, 4, 6):  # A loop need not report every step: 4 is the first after 3.
        watch.lap(reported)
    with pytest.raises(Enough):
        watch.lap(8)
    figures = watch.figures()
    assert figures["steps"] == 4
    assert figures["images_per_second"] > 0
    assert "busy" not in figures


@pytest.mark.precision
def test_our_side_trains_for_as_long_as_asked() -> None:
    figures = compare.ours(PLAN, keep_freed=False)
    assert figures["steps"] >= PLAN.steps
    assert figures["images_per_second"] == pytest.approx(
        8 * figures["steps"] / figures["seconds"], rel=0.05
    )
    assert (figures["compiled"], figures["precision"]) == (
        False,
        native_precision("cpu"),
    )


def test_their_side_is_the_library_itself() -> None:
    pytest.importorskip("deep_trainer", reason=compare.INSTALL)
    figures = compare.theirs(PLAN)
    assert figures["steps"] == PLAN.steps
    assert figures["images_per_second"] > 0


def test_their_loop_really_learns() -> None:
    pytest.importorskip("deep_trainer", reason=compare.INSTALL)
    data = compare.images(16)
    laps: list[int] = []
    torch.manual_seed(0)
    network = torch_resnet_example.train(
        data, steps=5, batch_size=8, device="cpu", mixed=False, lap=laps.append, workers=0
    )
    assert laps == [0, 1, 2, 3, 4]
    torch.manual_seed(0)
    untrained = torch_resnet_example.train(
        data, steps=1, batch_size=8, device="cpu", mixed=False, lap=_stop, workers=0
    )
    weights = zip(network.parameters(), untrained.parameters(), strict=True)
    assert all(not trained.equal(before) for trained, before in weights)


def _stop(step: int) -> None:
    raise Enough


def test_their_loader_augments_and_normalises() -> None:
    colours = np.random.default_rng(0).integers(1, 256, (6, 1, 1, 3), dtype=np.uint8)
    pixels = np.tile(colours, (1, 32, 32, 1))
    data = Dataset(pixels, np.arange(6), labels.read("cifar10"), "colours")
    batches = list(torch_resnet_example.loader(data, 4, workers=0))
    assert [len(targets) for _, targets in batches] == [4, 2]
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert sorted(targets.tolist()) == list(range(6))
    spec = replace(CIFAR, mean=torch_resnet_example.MEAN, std=torch_resnet_example.STD)
    expected = Normalise(spec)(torch.from_numpy(pixels))[targets]
    # At most 4 pixels of padding come in from any side, and they are black.
    assert torch.allclose(images[:, :, 4:-4, 4:-4], expected[:, :, 4:-4, 4:-4], atol=1e-5)
    black = Normalise(spec)(torch.zeros(1, 1, 1, 3, dtype=torch.uint8))
    outside = ~torch.isclose(images, expected, atol=1e-5)
    assert outside.any()
    assert torch.allclose(images[outside], black.expand_as(images)[outside], atol=1e-5)


def test_their_optimizer_decays_weights_alone() -> None:
    network = build("resnet20")
    free, decayed = torch_resnet_example.optimizer(network).param_groups
    assert (free["weight_decay"], decayed["weight_decay"]) == (0, 1e-4)
    assert {weight.ndim for weight in decayed["params"]} == {2, 4}
    assert {other.ndim for other in free["params"]} == {1}
    assert len(free["params"]) + len(decayed["params"]) == len(list(network.parameters()))
    steps = (0, 400, 401, 32_000, 32_001, 48_000, 48_001)
    factors = [torch_resnet_example.schedule(step) for step in steps]
    assert factors == [0.1, 0.1, 1, 1, 0.1, 0.1, 0.01]


def test_a_round_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(compare.__file__).parents[1])
    figures = compare._in_a_process(compare.OURS, PLAN)
    assert figures["steps"] >= PLAN.steps


def test_a_side_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match="torch-resnet failed: status 1"):
        compare._in_a_process(compare.THEIRS, PLAN)


def test_what_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match=r"needs no_such_package: pip install --no-deps -r bench"):
        compare.measure(PLAN, rounds=1)
    requirements = Path(compare.__file__).parent / "requirements.txt"
    assert requirements.is_file()
    assert compare.INSTALL.endswith(f"benchmarks/training/{requirements.name}")


def test_a_table_has_both_sides_and_their_ratio() -> None:
    def side(*rates: float, **more: float) -> dict[str, object]:
        how = {"compiled": bool(more), "precision": "fp32", **more}
        return {"median": rates[0], "rounds": [{"images_per_second": r, **how} for r in rates]}

    figures = {
        "machine": {"processor": "A CPU"},
        "threads": 2,
        "n": 3,
        "plan": {"device": "cpu"},
        "images_per_second": {
            compare.THEIRS: side(100.0, 90.0, 110.0),
            compare.OURS: side(250.0, 240.0, 255.0, busy=0.97),
        },
        "ratio": 2.5,
    }
    lines = compare.table(figures).splitlines()
    assert lines[0] == "A CPU, 2 threads, n = 3"
    assert "100.0 images/s (90 to 110; eager, fp32)" in lines[1]
    assert "250.0 images/s (240 to 255; compiled, fp32, device busy 97%)" in lines[2]
    assert lines[3].split() == ["ratio", "2.50"]
