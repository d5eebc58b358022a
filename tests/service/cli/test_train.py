"""The command `train`."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from service.repository import catalog
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
        (["--hold-out", "6"], "of 6 images 6 cannot be held out"),
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


def test_the_recipes_are_listed() -> None:
    said = run("train", "--list-recipes").stdout
    assert "he2015: He 2015, section 4.2" in said
    assert "resnet20                              0.27M     8.75 %" in said
