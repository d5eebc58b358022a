"""Every option of `train` changes the weights and is recorded, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from models import stage
from models.bundle import Bundle
from models.training.recipe import Recipe, completed
from service.cli.recipe_flags import FIELDS
from service.repository import catalog
from tests.support import made, tiny
from tests.support.commands import run

SMALL = ("--variant", "resnet20", "--set", "blocks=[1,1]", "--set", "planes=[4,8]")
# Photographs, of 224 pixels. (oneDNN crashes in the gradient of a 7x7 stem narrower than this.)
LARGE = ("--variant", "resnet18", "--set", "blocks=[1,1]", "--set", "planes=[16,16]")
COMMON = ("--iterations", "3", "--batch-size", "4", "--eager", "--device", "cpu", "--workers", "0")
# What an option needs beside it, to have an effect.
WEIGHTS, VALIDATED = ("--recipe", "quick", "--weights"), ("--validation", "3")
NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("freeze", "norm", "body_rate"), WEIGHTS),
    **dict.fromkeys(("keep", "patience"), VALIDATED),
    "stride_at": ("--set", "block=bottleneck"),
    "last_batch": ("--batch-size", "5"),
}
# Those that change images, which happens in another place for larger ones.
OF_IMAGES = (
    *("flip", "scale", "shorter_side", "train_size", "jitter", "lighting", "auto_augment"),
    *("erasing", "cutmix", "mixup", "cutout", "crop_padding", "label_smoothing"),
)
# One value for each option that is a field of a recipe.
OPTIONS: dict[str, tuple[str, Any]] = {
    "freeze": ("--freeze=stem", "stem"),
    "norm": ("--norm=frozen", "frozen"),
    "stride_at": ("--stride-at=1x1", "1x1"),
    "stem_init": ("--stem-init=whitened", "whitened"),
    "zero_init_residual": ("--zero-init-residual", True),
    "optimizer": ("--optimizer=adamw", "adamw"),
    "body_rate": ("--body-rate=0.1", 0.1),
    "bias_rate": ("--bias-rate=8", 8.0),
    "clip": ("--clip=0.01", 0.01),
    "balance": ("--balance=sampling", "sampling"),
    "lookahead": ("--lookahead=2", 2),
    "keep": ("--keep=best", "best"),
    "patience": ("--patience=1", 1),
    "last_batch": ("--last-batch=keep", "keep"),
    "flip": ("--no-flip", False),
    "scale": ("--scale=0.3,0.6", [0.3, 0.6]),
    "shorter_side": ("--shorter-side=230,260", [230, 260]),
    "train_size": ("--train-size=48", 48),
    "jitter": ("--jitter=0.4", 0.4),
    "lighting": ("--lighting=0.1", 0.1),
    "auto_augment": ("--auto-augment=trivial", "trivial"),
    "erasing": ("--erasing=0.9", 0.9),
    "cutmix": ("--cutmix=1", 1.0),
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
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights to start from."""
    output = tmp_path_factory.mktemp("start") / "start.safetensors"
    trained(data, output, *SMALL)
    return str(output)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Without an option."""
    folder, made = tmp_path_factory.mktemp("plain"), dict[tuple[str, ...], Bundle]()

    def bundle(*arguments: str) -> Bundle:
        if arguments not in made:
            made[arguments] = trained(data, folder / f"{len(made)}.safetensors", *arguments)
        return made[arguments]

    return bundle


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
        "mean",
        "std",
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_has_an_effect_and_is_recorded(
    data: Path, tmp_path: Path, plain: Callable[..., Bundle], start: str, name: str
) -> None:
    flag, value = OPTIONS[name]
    network = (*WEIGHTS, start) if NEEDS.get(name) == WEIGHTS else (*SMALL, *NEEDS.get(name, ()))
    changed = trained(data, tmp_path / "x.safetensors", *network, flag)
    before = plain(*network)
    if name not in ("keep", "patience"):  # The last epoch may be the best.
        assert not tiny.same_bits(changed.tensors, before.tensors), "it was done"
    also = {"scale": {"crops": "resized"}, "shorter_side": {"crops": "scaled"}}.get(name, {})
    assert changed.provenance["changed"] == before.provenance["changed"] | also | {name: value}
    assert completed(changed.provenance["recipe"])[name] == value


@pytest.mark.parametrize("name", OF_IMAGES)
def test_an_option_changes_photographs_too(
    data: Path, tmp_path: Path, plain: Callable[..., Bundle], name: str
) -> None:
    flag, value = OPTIONS[name]
    changed = trained(data, tmp_path / "x.safetensors", *LARGE, flag)
    assert not tiny.same_bits(changed.tensors, plain(*LARGE).tensors), "it was done"
    assert completed(changed.provenance["recipe"])[name] == value


@pytest.mark.parametrize("network", [SMALL, LARGE], ids=["small", "photographs"])
def test_the_record_of_crops_is_what_was_done(
    data: Path, tmp_path: Path, plain: Callable[..., Bundle], network: tuple[str, ...]
) -> None:
    recipe = plain(*network).provenance["recipe"]
    changed = plain(*network).provenance["changed"]
    if network == SMALL:
        assert (recipe["crops"], recipe["crop_padding"]) == ("padded", 4)
        assert "crops" not in changed
        return
    assert recipe["crops"] == changed["crops"] == "resized"
    assert recipe.keys().isdisjoint({"crop_padding", "padding_mode"})
    done = run("train", "--data", data, *COMMON, *network, tmp_path / "x.safetensors")
    assert "random resized crops, as images of 224 pixels are too large for padded" in done.stderr


@pytest.mark.parametrize("network", [SMALL, LARGE], ids=["small", "photographs"])
def test_flips_of_a_recipe_alternate_for_images_of_any_size(
    data: Path, tmp_path: Path, plain: Callable[..., Bundle], network: tuple[str, ...]
) -> None:
    recipe = ("--recipe", "embedded", "--label-smoothing", "0")
    output = tmp_path / "x.safetensors"
    alternating = trained(data, output, *network, *recipe)
    assert alternating.provenance["recipe"]["alternate_flip"] is True
    # Otherwise, as short a schedule of this recipe is that of `quick`.
    cycle = alternating.provenance["recipe"]["phases"]
    other = plain(*network)
    assert [phase["factor"] for phase in other.provenance["recipe"]["phases"]] == [
        phase["factor"] for phase in cycle
    ]
    assert not tiny.same_bits(alternating.tensors, other.tensors)


def test_checkpointing_blocks_checkpoints_them_and_changes_no_bit(
    data: Path,
    tmp_path: Path,
    plain: Callable[..., Bundle],
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
    assert tiny.same_bits(made.tensors, plain(*SMALL).tensors)


def test_how_batches_were_computed_is_recorded(
    data: Path, tmp_path: Path, plain: Callable[..., Bundle]
) -> None:
    parts = trained(data, tmp_path / "x.safetensors", *SMALL, "--accumulate", "2")
    assert parts.provenance["accumulate"] == 2
    assert not tiny.same_bits(parts.tensors, plain(*SMALL).tensors)
    assert "accumulate" not in plain(*SMALL).provenance


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--recipe", "imagenet", "--crop-padding", "2"],
            "--crop-padding has no effect: crops are",
        ),
        (["--scale", "0.3,1", "--shorter-side", "40,50"], "--scale or --shorter-side, not both"),
        (["--body-rate", "0.1"], "--body-rate has no effect: there are no --weights to keep"),
        (["--freeze", "stem"], "--freeze has no effect: there are no --weights to keep"),
        (["--norm", "frozen"], "--norm has no effect: there are no --weights to keep"),
        (["--optimizer", "adamw", "--nesterov"], "--nesterov has no effect: AdamW has no Nesterov"),
        (["--stride-at", "1x1"], "--stride-at has no effect: basic blocks have no choice"),
        (["--keep", "best", "--validation", "none"], "--keep best needs images: --validation"),
        (["--patience", "2", "--validation", "none"], "--patience 2 needs images: --validation"),
        (["--decays", "all", "--weight-decay", "0"], "--decays has no effect: the weight decay is"),
        (["--momentum", "0"], "Nesterov momentum needs a momentum; --momentum above 0 or --no-nes"),
        (["--ema", "0.9", "--lookahead", "2"], "ema and lookahead are two averages"),
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
