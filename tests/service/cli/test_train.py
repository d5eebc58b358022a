"""The command `train`."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models import bundle
from service.repository import catalog
from tests.support import made, tiny
from tests.support.commands import run


def test_train_finds_a_missing_folder_before_it_trains(photos: Path, tmp_path: Path) -> None:
    done = run("train", "--data", photos, tmp_path / "nowhere" / "x.safetensors", status=2)
    assert "there is no folder" in done.stderr


def test_train_writes_a_bundle_that_tells_how(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained.safetensors"
    data = ("--data", photos, "--test-data", photos)
    short = ("--epochs", "1", "--batch-size", "2", "--shortcut", "A", "--eager")
    said = run("train", *data, *short, output).stdout
    assert f"wrote {output}" in said
    trained = catalog.load(str(output)).bundle
    assert trained.labels == ("cat", "dog")
    assert trained.architecture.shortcut == "A"
    recipe = trained.provenance["recipe"]
    assert (recipe["name"], recipe["unit"], recipe["phases"][-1]["until"]) == ("quick", "epochs", 1)
    assert trained.provenance["changed"].keys() == {"batch_size", "phases"}
    assert trained.metrics[photos.name]["images"] == 6
    further = tmp_path / "further.safetensors"
    shorter = ("--iterations", "1", "--batch-size", "2", "--eager")
    run("train", "--weights", output, *data, *shorter, further)
    provenance = catalog.load(str(further)).bundle.provenance
    assert provenance["start"]["fingerprint"] == trained.fingerprint()


def test_train_writes_views_and_storage(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained.safetensors"
    short = ("--iterations", "1", "--batch-size", "2", "--set", "blocks=[1,1,1]", "--eager")
    run("train", "--data", photos, *short, "--views", "mirrored", "--storage", "fp16", output)
    trained = catalog.load(str(output)).bundle
    assert (trained.views, trained.storage) == ("mirrored", "fp16")


def test_train_with_seeds_tells_their_mean_and_deviation(photos: Path, tmp_path: Path) -> None:
    output, card = tmp_path / "trained.safetensors", tmp_path / "card.md"
    card.write_text("# Cats and dogs")
    network = ("--set", "blocks=[1]", "--set", "planes=[4]", "--device", "cpu", "--card", card)
    command = ("train", "--data", photos, "--test-data", photos, "--batch-size", "2", *network)
    said = run(*command, "--iterations", "2", "--seeds", "111,222", output).stdout
    figures = []
    for seed in (111, 222):
        trained = catalog.load(str(tmp_path / f"trained-{seed}.safetensors")).bundle
        assert trained.provenance["seed"] == seed
        assert trained.card == "# Cats and dogs"
        figures.append(trained.metrics[photos.name]["top1"])
    mean, deviation = statistics.fmean(figures), statistics.pstdev(figures)
    assert f"{photos.name}, 2 seeds: top-1 {mean:.2%} +- {deviation:.2%}" in said
    assert (tmp_path / "trained-curves.png").read_bytes().startswith(b"\x89PNG")
    again = run(*command, "--iterations", "2", "--seeds", "111,222", "--resume", output).stdout
    assert again.count("is complete") == 2


def test_a_run_that_was_stopped_is_not_begun_anew_unasked(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.run").mkdir()
    (tmp_path / "x.run" / "state.pt").write_bytes(b"")
    done = run("train", "--data", photos, tmp_path / "x.safetensors", status=2)
    assert done.stderr == (
        f"resnet-serve: {tmp_path / 'x.run'} holds an interrupted run; "
        "use --resume to continue it or --restart to discard it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "he2017"], "no recipe is called 'he2017'; did you mean he2016?"),
        (["--variant", "resnet21"], "no variant is called 'resnet21'"),
        (["--variant", "resnet20", "--weights", "x"], "--weights or --variant, not both"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--weights", "random:resnet20", "--shortcut", "C"], "weights do not fit"),
        (["--set", "block=[1]"], "block must be one of basic, bottleneck"),
        (["--epochs", "1", "--iterations", "1"], "--epochs or --iterations, not both"),
        (["--resume", "--restart"], "--resume or --restart, not both"),
        (["--hold-out", "6"], "to fit a temperature: 6; at least 50 are needed, or leave out --ho"),
        (["--hold-out", "60"], "of 6 images 60 cannot be held out"),
        (["--seed", "1", "--seeds", "2,3"], "--seed or --seeds, not both"),
        (["--set", "dilation=[3]"], "dilation must be stages that stride, from 1 to 2, not [3]"),
        (["--set", "head=128"], "head must be a list of positive integers, not 128"),
        (["--set", "pool=avg"], "pool must be one of usual, max, none, not 'avg'"),
        (["--batch-size", "7"], "6 images are fewer than one batch of 7"),
        (["--batch-size", "2", "--accumulate", "3"], "cannot be divided into 3 parts"),
        (["--device", "cuda:9"], "device cuda:9: torch sees"),
        (["--card", "nowhere.md"], "nowhere.md"),
        (["--name", "cats/dogs"], "name must be printable characters"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(
    photos: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run("train", "--data", photos, *arguments, tmp_path / "x.safetensors", status=2)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("resnet-serve: ")
    assert words in line
    assert not (tmp_path / "x.safetensors").exists()


def test_the_architectures_fields_are_set_trained_and_recorded(
    photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.safetensors"
    fields = ("pool=max", "dilation=(2,)", "head=8,4", "biases=conv1,stem", "stem_channels=5")
    flags = [part for field in fields for part in ("--set", field)]
    short = ("--iterations", "1", "--batch-size", "2", "--eager", "--device", "cpu")
    run("train", "--data", photos, *flags, *short, output)
    trained = catalog.load(str(output)).bundle.architecture
    assert (trained.pool, trained.dilation, trained.head) == ("max", (2,), (8, 4))
    assert (trained.biases, trained.stem_channels) == (("stem", "conv1"), 5)


def test_a_temperature_is_fitted_on_images_enough_and_recorded_with_its_interval(
    tmp_path: Path,
) -> None:
    data = made.folder(tmp_path / "data", 240)
    for number, file in enumerate(sorted(data.rglob("*.png"))):
        if number % 4 == 0:  # Nothing can be sure of a set with so many wrong classes.
            other = made.CLASSES[(made.CLASSES.index(file.parent.name) + 1) % 3]
            file.rename(data / other / f"{file.parent.name}{file.name}")
    network = ("--set", "blocks=[1]", "--set", "planes=[8]", "--device", "cpu", "--eager")
    command = ("train", "--data", data, *network, "--batch-size", "8", "--epochs", "5")
    run(*command, "--precision", "fp32", "--hold-out", "200", tmp_path / "x.safetensors")
    trained = catalog.load(str(tmp_path / "x.safetensors")).bundle
    record = trained.provenance["calibration"]
    assert trained.provenance["data"].endswith("40 images, 200 held out")
    assert record["images"] == 200
    least, most = record["interval"]
    assert least < trained.temperature == record["temperature"] < most < 4 * least


def test_an_undetermined_temperature_is_said_and_the_network_kept(tmp_path: Path) -> None:
    data = made.folder(tmp_path / "data", 84)
    network = ("--set", "blocks=[1]", "--set", "planes=[8]", "--device", "cpu", "--eager")
    command = ("train", "--data", data, *network, "--batch-size", "8", "--epochs", "20")
    done = run(*command, "--hold-out", "60", tmp_path / "x.safetensors")
    assert "no temperature is fitted, it remains 1: " in done.stderr
    trained = catalog.load(str(tmp_path / "x.safetensors")).bundle
    assert trained.temperature == 1
    assert trained.provenance["calibration"]["undetermined"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": "letterbox"}, "ones with bars"),
        ({"size": (8, 12), "resize": (8, 12)}, "ones of 8 x 12 pixels"),
        ({"channels": "bgr"}, "bgr ones"),
        ({"channels": "grey", "mean": (0.5,), "std": (0.2,)}, "grey ones"),
        ({"channels": "rgba", "mean": (0.5,) * 4, "std": (0.2,) * 4}, "rgba ones"),
    ],
)
def test_weights_whose_input_training_does_not_take_are_refused(
    photos: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    spec = replace(tiny.INPUT, **changes)
    network = tiny.network(in_channels=spec.shape[2])
    start = bundle.from_network(network, **tiny.described(input=spec))
    bundle.write(start, tmp_path / "start.safetensors")
    command = ("train", "--data", photos, "--weights", tmp_path / "start.safetensors")
    done = run(*command, tmp_path / "x.safetensors", status=2)
    line = done.stderr.splitlines()[-1]
    assert line == (
        f"resnet-serve: training takes square RGB images; this network's input is {words}"
        + (" (crop letterbox)" if "bars" in words else "")
    )


def test_the_recipes_are_listed() -> None:
    said = run("train", "--list-recipes").stdout
    assert "he2015: He 2015, section 4.2" in said
    assert "resnet20                              0.27M     8.75 %" in said
