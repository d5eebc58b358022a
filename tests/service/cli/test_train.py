"""The command `train`."""

from __future__ import annotations

import fcntl
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from models.training.checkpoint import Checkpoint
from models.training.recipe import completed
from models.training.recipes import by_name
from service.cli.train import HEADINGS, train
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


def test_a_finished_run_is_replaced_only_when_told_to(photos: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "x.safetensors", tmp_path / "x.run"
    command = ("train", "--data", photos, *NETWORK, "--epochs", "1", output)
    run(*command)
    before = output.read_bytes(), (folder / "log.jsonl").read_bytes()
    for more in ((), ("--restart",)):
        assert "x.safetensors exists; add --overwrite" in run(*command, *more, status=2).stderr
    assert "is complete" in run(*command, "--resume").stdout
    assert before == (output.read_bytes(), (folder / "log.jsonl").read_bytes())
    run(*command, "--seed", "7", "--overwrite")
    assert catalog.load(str(output)).bundle.provenance["seed"] == 7
    output.unlink()  # Its log is not lost either.
    assert "x.run has files" in run(*command, status=2).stderr
    assert (folder / "log.jsonl").exists()


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
        (["--batch-size", "7"], "fewer than one batch of 7; leave it out for batches of 2"),
        (["--validation", "9"], "of 6 images 9 cannot be held out, but at most 4"),
        (["--validation", "nowhere"], "nowhere"),
        (["--channels", "gray"], "channels must be one of rgb, bgr, grey, rgba, not 'gray'"),
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


NETWORK = ("--set", "blocks=[1]", "--set", "planes=[8]", "--device", "cpu", "--eager")
FAST = ("--eager", "--device", "cpu", "--workers", "0", "--precision", "fp32")


def pictures(folder: Path, counts: dict[str, int], mode: str = "RGB", side: int = 20) -> Path:
    """Pictures of any size, whose classes differ in brightness."""
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            width, height = random.integers(side, 2 * side, 2)
            values = random.integers(0, 60, (height, width, 3)) + 190 * number // len(counts)
            picture = Image.fromarray(values.astype(np.uint8)).convert(mode)
            picture.save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for `made.CLASSES` that knows them."""
    folder = tmp_path_factory.mktemp("start")
    data, output = made.folder(folder / "data", 60), folder / "start.safetensors"
    run("train", "--data", data, *NETWORK, "--epochs", "6", "--learning-rate", "0.1", output)
    return output


def test_the_default_command_adapts_a_model_to_a_few_uneven_pictures(
    start: Path, tmp_path: Path
) -> None:
    counts = {"rose": 40, "tulip": 20, "daisy": 8, "Löwenzahn gelb": 5}
    data, output = pictures(tmp_path / "data", counts), tmp_path / "x.safetensors"
    done = run("train", "--weights", start, "--data", data, *FAST, output)
    trained = catalog.load(str(output)).bundle
    recipe, kept = trained.provenance["recipe"], trained.provenance["kept"]
    assert (recipe["name"], recipe["batch_size"], recipe["keep"]) == ("finetune", 8, "best")
    assert recipe["learning_rate"] == pytest.approx(by_name("finetune").learning_rate / 8)
    assert "batches of 8 in place of 64, learning rate 0.00625" in done.stderr
    (figures,) = trained.metrics.values()
    by_label = {each["label"]: each["images"] for each in figures["per_class"]}
    assert by_label == {"Löwenzahn gelb": 1, "daisy": 2, "rose": 8, "tulip": 4}
    assert sum(map(sum, figures["confusion"])) == figures["images"] == 15
    assert kept["validation_top1"] == figures["top1"]
    assert f"kept epoch {kept['epoch']} of {kept['epochs']}" in done.stdout
    assert "top-5" not in done.stdout


def test_ones_own_images_never_make_a_model_worse(start: Path, tmp_path: Path) -> None:
    data, output = made.folder(tmp_path / "data", 60), tmp_path / "x.safetensors"
    ruinous = ("--learning-rate", "5", "--body-rate", "1", "--patience", "2")
    done = run("train", "--weights", start, "--data", data, *FAST, *ruinous, output)
    trained, before = (catalog.load(str(path)).bundle for path in (output, start))
    assert trained.provenance["kept"]["epoch"] == 0
    assert trained.provenance["kept"]["stopped_early"]
    assert tiny.same_bits(trained.tensors, before.tensors)
    assert "kept the weights as they were" in done.stdout
    assert "stopped early, after 2 epochs" in done.stdout


def test_a_run_that_is_resumed_chooses_as_one_that_was_not(start: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", {"dark": 30, "light": 30})
    command = ("train", "--weights", start, "--data", data, *FAST, "--epochs", "4")
    run(*command, tmp_path / "whole.safetensors")
    whole = catalog.load(str(tmp_path / "whole.safetensors")).bundle

    def stop(self: Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        raise ValueError("stopped")

    save = Checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        run(*command, tmp_path / "x.safetensors", status=2)
    (tmp_path / "x.safetensors").write_text("precious")
    refused = run(*command, "--resume", tmp_path / "x.safetensors", status=2).stderr
    assert "x.safetensors exists; add --overwrite" in refused
    assert (tmp_path / "x.safetensors").read_text() == "precious"
    run(*command, "--resume", "--overwrite", tmp_path / "x.safetensors")
    resumed = catalog.load(str(tmp_path / "x.safetensors")).bundle
    assert tiny.same_bits(resumed.tensors, whole.tensors)
    assert resumed.provenance["kept"] == whole.provenance["kept"]


def test_grey_digits_of_28_pixels_are_trained_unmirrored(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", {"0": 12, "1": 12}, "L")
    output = tmp_path / "x.safetensors"
    digits = ("--channels", "grey", "--size", "28", "--no-flip", "--mean", "auto", "--std", "auto")
    run("train", "--data", data, *NETWORK, *digits, "--epochs", "1", output)
    trained = catalog.load(str(output)).bundle
    assert (trained.input.channels, trained.input.size, trained.input.resize) == ("grey", 28, 28)
    assert trained.architecture.in_channels == 1
    assert trained.input.mean[0] == pytest.approx(0.3, abs=0.1)
    assert trained.provenance["recipe"]["flip"] is False


def test_a_colour_model_learns_grey_images_of_other_sides(start: Path, tmp_path: Path) -> None:
    data, output = pictures(tmp_path / "data", {"a": 20, "b": 20}, "L"), tmp_path / "x.safetensors"
    sides = ("--channels", "grey", "--size", "24x40", "--crop", "squash")
    run("train", "--weights", start, "--data", data, *FAST, *sides, "--epochs", "1", output)
    spec = catalog.load(str(output)).bundle.input
    assert (spec.size, spec.resize, spec.channels, spec.crop) == (
        (24, 40),
        (24, 40),
        "grey",
        "squash",
    )


def test_a_class_may_be_missing_from_validation_and_another_may_not(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", {"a": 12, "b": 12, "c": 12})
    some = pictures(tmp_path / "some", {"a": 4, "c": 4})
    other = pictures(tmp_path / "other", {"a": 4, "d": 4})
    command = ("train", "--data", data, *NETWORK, "--epochs", "1")
    done = run(*command, "--validation", some, tmp_path / "x.safetensors")
    assert "some has no images of 'b'; accuracy is that of the other classes" in done.stderr
    assert "without images: b" in done.stdout
    done = run(*command, "--validation", other, tmp_path / "y.safetensors", status=2)
    assert "validation images: class 'd' is not one of" in done.stderr


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", {"a": 12})
    done = run("train", "--data", data, *NETWORK, tmp_path / "x.safetensors", status=2)
    assert "training needs at least two classes; all 12 images are of 'a'" in done.stderr


def test_a_sets_own_validation_images_validate(start: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    pictures(data / "train", {"a": 20, "b": 20})
    pictures(data / "val", {"a": 3, "b": 4})
    output = tmp_path / "x.safetensors"
    run("train", "--weights", start, "--data", data, *FAST, "--epochs", "1", output)
    trained = catalog.load(str(output)).bundle
    assert [figures["images"] for figures in trained.metrics.values()] == [7]
    assert trained.provenance["data"].endswith("40 images, 7 for validation")


def test_too_few_images_to_validate_are_all_trained_on(start: Path, tmp_path: Path) -> None:
    data, output = pictures(tmp_path / "data", {"a": 12, "b": 12}), tmp_path / "x.safetensors"
    done = run("train", "--weights", start, "--data", data, *FAST, "--epochs", "1", output)
    trained = catalog.load(str(output)).bundle
    assert "24 images are too few to set any aside for validation" in done.stderr
    assert completed(trained.provenance["recipe"])["keep"] == "last"
    assert trained.metrics == {}


def test_a_share_for_validation_is_a_percentage(photos: Path, tmp_path: Path) -> None:
    command = ("train", "--data", photos, "--validation", "100%", tmp_path / "x.safetensors")
    assert "'100%' is not a percentage above 0% and below" in run(*command, status=2).stderr


def test_images_that_are_trained_on_do_not_validate_and_tell_little_as_a_test(
    photos: Path, tmp_path: Path
) -> None:
    command = ("train", "--data", photos, *NETWORK, "--epochs", "1", tmp_path / "x.safetensors")
    said = run(*command, "--validation", photos / "cat" / "..", status=2).stderr
    assert "these images are trained on; --validation 20% sets some" in said
    said = run(*command, "--test-data", photos).stderr
    assert f"{photos} is trained on: accuracy on it is not that on other images" in said


@pytest.mark.parametrize("value", ["0.5", "-3", "1e-1"])
def test_a_number_is_no_path_to_validation_images(photos: Path, tmp_path: Path, value: str) -> None:
    command = ("train", "--data", photos, f"--validation={value}", tmp_path / "x.safetensors")
    said = run(*command, status=2).stderr
    assert f"{value!r} is no number of images; a share is written 20%" in said
    assert "the path is empty" in run(*command[:3], "--validation=", command[-1], status=2).stderr


def test_two_trainings_do_not_write_the_same_bundle(photos: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "x.safetensors", tmp_path / "x.run"
    folder.mkdir()
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    command = ("train", "--data", photos, *NETWORK, "--epochs", "1", output)
    for more in ((), ("--overwrite",), ("--resume",)):
        assert "x.run: another training writes there; " in run(*command, *more, status=2).stderr
    os.close(other)
    run(*command)


def test_a_log_file_gets_lines_and_quiet_says_nothing(photos: Path, tmp_path: Path) -> None:
    command = ("train", "--data", photos, *NETWORK, "--epochs", "2")
    done = run(*command, tmp_path / "x.safetensors")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()][:2] == [
        "epoch 1",
        "epoch 2",
    ]
    assert "steps" not in done.stderr
    done = run(*command, "--quiet", tmp_path / "y.safetensors")
    assert done.output == ""
    assert (tmp_path / "y.safetensors").exists()


def test_only_what_was_drawn_is_promised(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("train", "--data", photos, *NETWORK, "--epochs", "1", tmp_path / "x.safetensors")
    assert "no curves: " in done.stderr
    assert f"its log to {tmp_path / 'x.run'}" in done.stdout


def test_every_option_is_under_a_heading_of_the_help() -> None:
    named = [name for names in HEADINGS.values() for name in names]
    options = {str(each.name) for each in train.params if isinstance(each, click.Option)}
    assert sorted(named) == sorted(options)
    page = run("train", "--help").stdout
    assert "\nAugmentation:\n" in page
    # Whether `-h` is among its names depends on who asked first in this process.
    assert "--help Show this message and exit." in " ".join(page.split())


def test_the_recipes_are_listed() -> None:
    said = run("train", "--list-recipes").stdout
    assert "he2015: He 2015, section 4.2" in said
    assert "resnet20                              0.27M     8.75 %" in said


TINY = (*("--set", "blocks=[1]"), *("--set", "planes=[4]"), *("--iterations", "2"), "--eager")


def _coloured(root: Path, *classes: str, count: int = 4) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (90 * number, 20 * index, 7)).save(
                root / name / f"{index}.png"
            )


def test_test_images_without_classes_are_not_measured_and_that_is_said(tmp_path: Path) -> None:
    _coloured(tmp_path / "set" / "train", "a", "b")
    _coloured(tmp_path / "set", "test")
    done = run("train", "--data", tmp_path / "set", *TINY, tmp_path / "x.safetensors")
    assert "its own test images are not measured: " in done.stderr


def test_parts_without_classes_are_refused_and_the_list_beside_them_is_named(
    tmp_path: Path,
) -> None:
    _coloured(tmp_path / "set", "train", "test")
    (tmp_path / "set" / "labels.csv").write_text("id,breed\n0,a\n")
    done = run("train", "--data", tmp_path / "set", tmp_path / "x.safetensors", status=2)
    assert "not in folders named after classes; or give a list of images, labels.csv" in done.stderr


def test_validation_with_a_class_that_training_lacks_names_both(tmp_path: Path) -> None:
    _coloured(tmp_path / "set" / "train", "a", "b")
    _coloured(tmp_path / "set" / "val", "a", "c")
    done = run(
        "train", "--data", tmp_path / "set", "--validation", tmp_path / "set",
        tmp_path / "x.safetensors", status=2,
    )  # fmt: skip
    assert "its validation images: class 'c' is not one of the training images' labels" in (
        done.stderr
    )


def test_quiet_says_nothing_of_an_image_left_out(tmp_path: Path) -> None:
    _coloured(tmp_path / "set", "a", "b")
    (tmp_path / "set" / "a" / "9.png").write_bytes(b"no image")
    done = run(
        "train", "--data", tmp_path / "set", "--corrupt", "skip", "--quiet", *TINY,
        tmp_path / "x.safetensors",
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
