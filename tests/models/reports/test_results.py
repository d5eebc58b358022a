"""Runs that were really written, brought together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import bundle, bundling, labels, variants
from models.interchange import torchvision_weights
from models.reports import published
from models.reports import table as results_table
from models.reports.results import RUN_FOLDER, aggregate, collect
from models.resnet import build
from models.training.history import LOG, Epoch, History
from models.training.recipe import Phase, Recipe
from models.training.recipes import RECIPES
from tests.support import tiny

RECIPE = {**asdict(RECIPES["quick"]), "name": "quick"}
SMALL = {"blocks": (1, 1, 1), "planes": (4, 8, 16)}
# The fields that the first records had.
OLDER = (
    *("paper", "published", "unit", "phases", "batch_size", "learning_rate", "momentum"),
    *("nesterov", "weight_decay", "decays", "label_smoothing", "crops", "crop_padding"),
    *("padding_mode", "alternate_flip", "cutout", "mixup", "ema", "dropout", "shortcut"),
)


def written(
    path: Path,
    *,
    seed: int = 0,
    top1: float = 0.9,
    best: float | None = None,
    variant: str = "resnet20",
    classes: Sequence[str] = labels.read("cifar10"),
    overrides: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    **provenance: Any,
) -> Path:
    """A bundle as training writes it; with `best`, also a log whose first epoch was better."""
    made = bundling.from_network(
        build(variant, num_classes=len(classes), **(overrides or {})),
        name=path.stem,
        input=variants.variant(variant).input,
        labels=tuple(classes),
        provenance={
            "source": "a test",
            "data": "train.tar: 50000 images",
            "recipe": RECIPE,
            "seed": seed,
            "seconds": 5400,
            "images_per_second": 900.0 + seed,
            "hardware": "2 x CPU",
            "device": "cpu",
            "precision": "fp32",
            **provenance,
        },
        metrics=metrics or {"test.tar": {"top1": top1, "top5": 0.99, "images": 10_000}},
    )
    bundle.write(made, path)
    if best is not None:
        rows = [
            Epoch(epoch, epoch, 0.1, 1.0, 0.5, 1.0, accuracy, 0.9, 500.0 + epoch, 60.0)
            for epoch, accuracy in enumerate((best, None, top1), 1)
        ]
        folder = path.with_suffix(RUN_FOLDER)
        folder.mkdir()
        (folder / LOG).write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    return path


def columns(table: str) -> list[dict[str, str]]:
    """A Markdown table's rows."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_seeds_give_mean_and_population_deviation(tmp_path: Path) -> None:
    accuracies = (0.9136, 0.9101, 0.9155)
    for seed, top1 in enumerate(accuracies):
        written(tmp_path / f"{seed}.safetensors", seed=seed, top1=top1, best=top1 + 0.01)
    (result,) = aggregate(collect([tmp_path]))
    errors = [100 * (1 - top1) for top1 in accuracies]
    assert result.error.mean == pytest.approx(np.mean(errors))
    assert result.error.deviation == pytest.approx(np.std(errors))
    assert result.best_error is not None
    assert result.best_error.mean == pytest.approx(np.mean(errors) - 1)
    assert [run.seed for run in result.runs] == [0, 1, 2]

    (row,) = columns(results_table.markdown([result]))
    assert row["model"] == "resnet20"
    assert row["parameters"] == "0.27 M"
    assert row["layers"] == "22"
    assert row["data"] == "CIFAR-10: train.tar: 50000 images; test.tar: 10000"
    assert row["recipe"] == "quick"
    assert row["seeds"] == "3"
    assert row["top-1 error, %"] == "8.69 ± 0.22"
    assert row["AMP"] == "no"
    assert row["best, %"] == "7.69 ± 0.22"
    assert row["hardware"] == "2 x CPU cpu fp32"
    assert row["images/s"] == "901"
    assert row["hours"] == "1.5"


def test_published_figures_are_cited_with_their_source(tmp_path: Path) -> None:
    written(tmp_path / "b.safetensors")
    written(tmp_path / "a.safetensors", overrides={"shortcut": "A"})
    text = results_table.markdown(aggregate(collect([tmp_path])))
    option_a, option_b = columns(text)
    assert option_a["model"] == "resnet20, shortcut=A"
    assert option_a["papers, %"] == "8.75 [1]"
    assert option_a["torch-resnet, %"] == "8.65 ± 0.08 [2, best epoch]"
    assert option_b["papers, %"] == "8.75 [1, option A]"
    assert option_b["torch-resnet, %"] == "8.60 ± 0.18 [2, best epoch]"
    assert option_b["top-1 error, %"] == "10.00", "one run has no deviation"
    assert option_b["best, %"] == "-", "it has no log"
    notes = text.split("\n\n")[1].splitlines()
    assert "[1] He 2015, table 6" in notes[2]
    assert [line[:3] for line in notes[2:]] == ["[1]", "[2]"]


def test_mixed_and_full_precision_are_compared_with_rows_of_their_own(tmp_path: Path) -> None:
    for seed, precision in enumerate(("fp32", "bf16", "fp16")):
        written(tmp_path / f"{precision}.safetensors", seed=seed, precision=precision)
    rows = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    assert {(row["AMP"], row["seeds"], row["torch-resnet, %"].split(" [")[0]) for row in rows} == {
        ("no", "1", "8.60 ± 0.18"),
        ("yes", "2", "8.64 ± 0.16"),
    }


def test_branches_that_begin_at_zero_are_compared_with_rows_of_their_own(tmp_path: Path) -> None:
    zeroed = {**RECIPE, "zero_init_residual": True}
    for variant in ("resnet110", "resnet20"):
        written(tmp_path / f"{variant}.safetensors", variant=variant)
        written(tmp_path / f"{variant}-zero.safetensors", variant=variant, recipe=zeroed)
    rows = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    figures = {(row["model"], row["recipe"]): row["torch-resnet, %"] for row in rows}
    told = "quick, zero_init_residual=True"
    assert figures["resnet110", "quick"].startswith("6.61 ± 0.13 [")
    assert figures["resnet110", told].startswith("6.46 ± 0.17 [")
    assert figures["resnet20", told].endswith(", no zero init, best epoch]")
    assert "no zero init" not in figures["resnet20", "quick"]


def test_a_run_in_another_precision_than_the_published_one_is_told(tmp_path: Path) -> None:
    written(tmp_path / "x.safetensors", precision="bf16", overrides={"shortcut": "C"})
    (row,) = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    assert row["torch-resnet, %"] == "8.22 ± 0.14 [2, full precision, best epoch]"


@pytest.mark.parametrize(
    "changed",
    [
        {"overrides": {"shortcut": "A"}},
        {"overrides": {"dropout": 0.1}},
        {"variant": "preact_resnet20"},
        {"data": "other.tar: 50000 images"},
        {"recipe": {**RECIPE, "epochs": 3}},
        {"metrics": {"other.tar": {"top1": 0.9, "images": 10_000}}},
        {"metrics": {"test.tar": {"top1": 0.9, "images": 1000}}},
    ],
)
def test_what_differs_by_more_than_the_seed_is_kept_apart(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    written(tmp_path / "a.safetensors")
    written(tmp_path / "b.safetensors", seed=1)
    written(tmp_path / "c.safetensors", seed=2, **changed)
    found = aggregate(collect([tmp_path]))
    assert sorted(len(result.runs) for result in found) == [1, 2]


def test_other_machines_are_named_together(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors", hardware="GPU", device="cuda:0", precision="bf16")
    written(tmp_path / "b.safetensors", seed=1, precision="fp16")
    (row,) = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    assert row["hardware"] == "GPU cuda:0 bf16, 2 x CPU cpu fp16"


def test_an_older_record_counts_as_a_newer_one_with_the_defaults(tmp_path: Path) -> None:
    recipe = RECIPES["quick"]
    older = {name: value for name, value in asdict(recipe).items() if name in OLDER}
    for seed, record in enumerate((older, recipe.record(), asdict(recipe))):
        told = {"name": "quick", **record, "paper": f"told in other words, {seed}"}
        written(tmp_path / f"{seed}.safetensors", seed=seed, recipe=told)
    (row,) = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    assert (row["seeds"], row["recipe"]) == ("3", "quick")


def recipe_cell(path: Path, recipe: Recipe, name: str, **fields: Any) -> str:
    written(path, recipe={"name": name, **recipe.record()}, **fields)
    (row,) = columns(results_table.markdown(aggregate(collect([path]))))
    return row["recipe"]


def test_a_schedule_of_its_own_is_told_in_words(tmp_path: Path) -> None:
    quick, path = RECIPES["quick"], tmp_path / "x.safetensors"
    short = quick.lasting("epochs", 5)
    assert recipe_cell(path, short, "quick") == "quick, 5 epochs"
    assert (
        recipe_cell(path, quick.lasting("iterations", 2000), "quick") == "quick, 2,000 iterations"
    )
    assert recipe_cell(path, replace(short, learning_rate=0.1, cutmix=1.0), "quick") == (
        "quick, 5 epochs, learning_rate=0.1, cutmix=1.0"
    )
    flat = replace(quick, phases=(Phase(3, 1.0),), learning_rate=0.1)
    assert recipe_cell(path, flat, "quick") == "quick, schedule 3 epochs: 0.1 until 3"


def test_a_field_without_effect_is_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    resized = replace(RECIPES["wide"], crops="resized")
    assert recipe_cell(path, resized, "wide") == "wide, crops=resized"
    # Basic blocks have no choice where to stride, bottlenecks have one.
    strided = replace(RECIPES["he2016"], stride_at=None)
    assert recipe_cell(path, strided, "he2016") == "he2016"
    bottlenecks: dict[str, Any] = {"variant": "resnet164", "overrides": SMALL}
    assert recipe_cell(path, strided, "he2016", **bottlenecks) == "he2016, stride_at=None"


def test_a_changed_recipe_tells_its_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", recipe={**RECIPE, "epochs": 3})
    written(tmp_path / "b.safetensors", recipe={"name": "own", "epochs": 7})
    written(tmp_path / "c.safetensors", recipe={"epochs": 7})
    rows = columns(results_table.markdown(aggregate(collect([path, tmp_path]))))
    assert {row["recipe"] for row in rows} == {"quick, epochs=3", "own", "unnamed"}


def test_the_data_set_is_known_by_its_classes(tmp_path: Path) -> None:
    for name, classes in (
        ("sorted", sorted(labels.read("cifar10"))),
        ("hundred", labels.read("cifar100")),
        ("other", ("cat", "dog")),
    ):
        written(tmp_path / f"{name}.safetensors", classes=classes)
    found = {run.path.stem: run.data_set for run in collect([tmp_path])}
    assert found == {"sorted": "CIFAR-10", "hundred": "CIFAR-100", "other": None}
    by_data = {
        result.runs[0].path.stem: result.published(by_torch_resnet=True)
        for result in aggregate(collect([tmp_path]))
    }
    assert [row.error for row in by_data["hundred"]] == [33.23]
    assert by_data["other"] == []


def test_a_network_without_a_name_is_described(tmp_path: Path) -> None:
    small = {"blocks": (1, 1, 1), "planes": (4, 8, 16)}
    written(tmp_path / "x.safetensors", overrides=small)
    (row,) = columns(results_table.markdown(aggregate(collect([tmp_path]))))
    assert row["model"] == "basic 1-1-1 of 4-8-16"
    assert row["papers, %"] == row["torch-resnet, %"] == "-"


def test_what_older_bundles_lack_is_taken_from_the_log_or_left_open(tmp_path: Path) -> None:
    lacking: dict[str, Any] = {
        "seconds": None,
        "images_per_second": None,
        "precision": None,
        "hardware": None,
    }
    written(tmp_path / "x.safetensors", best=0.95, **lacking)
    written(tmp_path / "y.safetensors", seed=1, data="other", **lacking)
    first, second = sorted(aggregate(collect([tmp_path])), key=lambda r: r.runs[0].seed)
    assert first.hours is not None
    assert first.hours.mean == pytest.approx(3 / 60)
    assert first.images_per_second is not None
    assert first.images_per_second.mean == 502
    assert second.hours is second.images_per_second is second.best_error is None
    rows = columns(results_table.markdown([first, second]))
    assert [row["hours"] for row in rows] == ["0.05", "-"]


def test_a_run_is_named_by_its_bundle_its_folder_or_the_folder_around(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", best=0.95)
    folder = path.with_suffix(RUN_FOLDER)
    for named in ([path], [folder], [tmp_path], [path, folder, tmp_path]):
        assert [run.path for run in collect(named)] == [path]


def test_what_is_no_run_is_refused_by_name_and_skipped_in_a_folder(tmp_path: Path) -> None:
    converted, unmeasured, broken = (
        tmp_path / f"{name}.safetensors" for name in ("converted", "unmeasured", "broken")
    )
    bundle.write(tiny.made_bundle(provenance={"source": "elsewhere"}), converted)
    recipe_and_seed = {"source": "here", "recipe": RECIPE, "seed": 1}
    bundle.write(tiny.made_bundle(provenance=recipe_and_seed, metrics={}), unmeasured)
    broken.write_bytes(b"no bundle")
    for path, words in (
        (converted, "records no recipe and seed"),
        (unmeasured, "was not measured"),
        (broken, "not a safetensors file"),
        (tmp_path / "nowhere", "No such file"),
        (tmp_path, "no finished training run"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            collect([path])
        assert str(path) in str(caught.value)
    written(tmp_path / "x.safetensors")
    skipped: list[str] = []
    assert [run.path.stem for run in collect([tmp_path], skipped.append)] == ["x"]
    assert len(skipped) == 3


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    History(tmp_path / f"x{RUN_FOLDER}").truncate(0)
    with pytest.raises(ValueError, match=r"x\.run: the run has not finished"):
        collect([tmp_path / f"x{RUN_FOLDER}"])


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.safetensors", seed=3)
    written(tmp_path / "b.safetensors", seed=3)
    with pytest.raises(ValueError, match=r"a\.safetensors and .*b\.safetensors both have seed 3"):
        aggregate(collect([tmp_path]))


def test_every_published_row_is_of_a_network_that_exists() -> None:
    for row in published.PUBLISHED:
        named = variants.variant(row.variant)
        assert variants.override(named.architecture, shortcut=row.shortcut, dropout=row.dropout)
        assert named.name == row.variant
        assert 3 < row.error < 35
        assert row.deviation is None or 0 < row.deviation < 1
        assert (named.input.size == 224) == (row.data == "ImageNet")
    keys = [
        (r.variant, r.shortcut, r.data, r.dropout, r.zero_init_residual, r.source)
        for r in published.PUBLISHED
    ]
    assert len(keys) == len(set(keys))


def test_torchvisions_errors_are_those_of_its_weights() -> None:
    for weights in torchvision_weights.WEIGHTS:
        (row,) = [
            row
            for row in published.PUBLISHED
            if row.variant == weights.variant
            and f"torchvision's weights {weights.weights}" in row.source
        ]
        assert row.error == pytest.approx(100 - weights.top1)


def test_what_torch_resnet_measured_is_told_of_each_of_its_rows() -> None:
    rows = [row for row in published.PUBLISHED if row.by_torch_resnet]
    measured = Counter((row.precision, row.epoch, row.zero_init_residual) for row in rows)
    assert measured == {
        ("mixed", "last", False): 46,
        ("full", "last", False): 2,
        ("full", "best", False): 22,
        ("full", "best", True): 13,
    }
    others = [row for row in published.PUBLISHED if not row.by_torch_resnet]
    assert {(row.precision, row.epoch, row.zero_init_residual) for row in others} == {
        ("", "", False)
    }


@pytest.mark.parametrize(
    ("variant", "shortcut", "data", "dropout", "errors"),
    [
        ("resnet110", "A", "CIFAR-10", 0.0, [6.61]),
        ("preact_resnet1001", "B", "CIFAR-100", 0.0, [22.68]),
        ("preact_wide_resnet28_10", "B", "CIFAR-10", 0.3, [3.89]),
        ("preact_wide_resnet28_10", "B", "CIFAR-10", 0.0, [4.17, 4.0]),
        ("resnet50", "B", "ImageNet", 0.0, [24.7, 24.01, 23.87, 19.142]),
        ("resnet50", "B", "CIFAR-10", 0.0, []),
    ],
)
def test_the_papers_figures(
    variant: str, shortcut: str, data: str, dropout: float, errors: list[float]
) -> None:
    rows = published.find(variant, data, shortcut=shortcut, dropout=dropout, by_torch_resnet=False)
    assert [row.error for row in rows] == errors
