"""Every option of `train` changes the weights and is recorded, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from models import stage
from models.bundle import Bundle
from models.training.recipes import Recipe
from service.cli.train import FIELDS
from service.repository import catalog
from tests.support import made, tiny
from tests.support.commands import run

SMALL = ("--variant", "resnet20", "--set", "blocks=[1,1]", "--set", "planes=[4,8]")
# Photographs, of 224 pixels. (oneDNN crashes in the gradient of a 7x7 stem narrower than this.)
LARGE = ("--variant", "resnet18", "--set", "blocks=[1,1]", "--set", "planes=[16,16]")
COMMON = ("--iterations", "3", "--batch-size", "4", "--eager", "--device", "cpu", "--workers", "0")
# One value for each option that is a field of a recipe.
OPTIONS: dict[str, tuple[str, Any]] = {
    "batch_size": ("--batch-size=6", 6),
    "learning_rate": ("--learning-rate=0.05", 0.05),
    "momentum": ("--momentum=0.5", 0.5),
    "nesterov": ("--no-nesterov", False),
    "weight_decay": ("--weight-decay=0.01", 0.01),
    "decays": ("--decays=all", "all"),
    "label_smoothing": ("--label-smoothing=0.2", 0.2),
    "crop_padding": ("--crop-padding=2", 2),
    "cutout": ("--cutout=12", 12),
    "mixup": ("--mixup=1", 1.0),
    "ema": ("--ema=0.5", 0.5),
    "dropout": ("--dropout=0.3", 0.3),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.folder(tmp_path_factory.mktemp("data"), 12)


def trained(data: Path, output: Path, *arguments: str) -> Bundle:
    run("train", "--data", data, *COMMON, "--precision", "fp32", *arguments, output)
    return catalog.load(str(output)).bundle


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Bundle]:
    """Without options."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        network: trained(data, folder / f"{network[1]}.safetensors", *network)
        for network in (SMALL, LARGE)
    }


def test_the_table_has_every_field_that_is_an_option() -> None:
    assert OPTIONS.keys() == FIELDS.keys()
    # The others come from a recipe alone, and sources say whether they apply them.
    others = get_type_hints(Recipe).keys() - FIELDS.keys()
    assert others == {
        "paper",
        "published",
        "unit",
        "phases",
        "crops",
        "padding_mode",
        "alternate_flip",
        "shortcut",
    }


@pytest.mark.parametrize("network", [SMALL, LARGE], ids=["small", "photographs"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_an_effect_and_is_recorded_or_is_refused(
    data: Path,
    tmp_path: Path,
    plain: dict[tuple[str, ...], Bundle],
    name: str,
    network: tuple[str, ...],
) -> None:
    flag, value = OPTIONS[name]
    output = tmp_path / "x.safetensors"
    if (name, network) == ("crop_padding", LARGE):
        done = run("train", "--data", data, *COMMON, *network, flag, output, status=2)
        assert done.stderr.splitlines()[-1] == (
            "resnet-serve: --crop-padding has no effect on random resized crops, which the recipe "
            "or images of 224 pixels ask for; leave it out"
        )
        assert not output.exists()
        return
    changed, before = trained(data, output, *network, flag), plain[network]
    assert not tiny.same_bits(changed.tensors, before.tensors), "it was done"
    record = before.provenance["changed"] | {name: value}
    assert changed.provenance["changed"] == record
    assert changed.provenance["recipe"][name] == value


@pytest.mark.parametrize("network", [SMALL, LARGE], ids=["small", "photographs"])
def test_the_record_of_crops_is_what_was_done(
    data: Path, tmp_path: Path, plain: dict[tuple[str, ...], Bundle], network: tuple[str, ...]
) -> None:
    recipe = plain[network].provenance["recipe"]
    changed = plain[network].provenance["changed"]
    if network == SMALL:
        assert (recipe["crops"], recipe["crop_padding"]) == ("padded", 4)
        assert "crops" not in changed
        return
    assert recipe["crops"] == changed["crops"] == "resized"
    assert recipe.keys().isdisjoint({"crop_padding", "padding_mode"})
    done = run("train", "--data", data, *COMMON, *network, tmp_path / "x.safetensors")
    assert "random resized crops to 224 pixels, in place of the recipe's padded" in done.stderr


@pytest.mark.parametrize("network", [SMALL, LARGE], ids=["small", "photographs"])
def test_flips_of_a_recipe_alternate_for_images_of_any_size(
    data: Path, tmp_path: Path, network: tuple[str, ...]
) -> None:
    recipe = ("--recipe", "embedded", "--label-smoothing", "0")
    output = tmp_path / "x.safetensors"
    alternating = trained(data, output, *network, *recipe)
    assert alternating.provenance["recipe"]["alternate_flip"] is True
    # Otherwise, as short a schedule of this recipe is that of `quick`.
    cycle = alternating.provenance["recipe"]["phases"]
    other = trained(data, tmp_path / "y.safetensors", *network)
    assert [phase["factor"] for phase in other.provenance["recipe"]["phases"]] == [
        phase["factor"] for phase in cycle
    ]
    assert not tiny.same_bits(alternating.tensors, other.tensors)


def test_checkpointing_blocks_checkpoints_them_and_changes_no_bit(
    data: Path,
    tmp_path: Path,
    plain: dict[tuple[str, ...], Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = []

    def watched(block: Any, x: Any) -> Any:
        blocks.append(block)
        return checkpointed(block, x)

    checkpointed = stage._checkpointed
    monkeypatch.setattr(stage, "_checkpointed", watched)
    made = trained(data, tmp_path / "x.safetensors", *SMALL, "--checkpoint-blocks")
    assert len(set(blocks)) == 2
    assert tiny.same_bits(made.tensors, plain[SMALL].tensors)


def test_how_batches_were_computed_is_recorded(
    data: Path, tmp_path: Path, plain: dict[tuple[str, ...], Bundle]
) -> None:
    parts = trained(data, tmp_path / "x.safetensors", *SMALL, "--accumulate", "2")
    assert parts.provenance["accumulate"] == 2
    assert not tiny.same_bits(parts.tensors, plain[SMALL].tensors)
    assert "accumulate" not in plain[SMALL].provenance


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe", "imagenet", "--crop-padding", "2"], "--crop-padding has no effect on random"),
        (["--decays", "all", "--weight-decay", "0"], "--decays has no effect: the weight decay is"),
        (["--momentum", "0"], "Nesterov momentum needs a momentum; --momentum above 0 or --no-nes"),
        (["--dropout", "0.1", "--set", "dropout=0.2"], "--dropout or --set dropout=, not both"),
        (["--shortcut", "A", "--set", "shortcut=B"], "shortcut is given twice; give it once"),
        (["--set", "pool=max", "--set", "pool=none"], "pool is given twice; give it once"),
        (["--variant", "resnet164", "--dropout", "0.1"], "dropout must be 0 for bottleneck blocks"),
    ],
)
def test_options_without_effect_or_against_each_other_are_refused(
    data: Path, tmp_path: Path, flags: list[str], words: str
) -> None:
    output = tmp_path / "x.safetensors"
    done = run("train", "--data", data, *COMMON, *flags, output, status=2)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("resnet-serve: ")
    assert words in line
    assert not output.exists()
