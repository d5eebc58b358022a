"""The README, and the tables of settings, statuses and commands, are true of what they can be
checked against."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import summary, variants
from models.builtin import DEFAULT_SPEC
from service.cli.main import main
from service.config.settings import ModelSettings, Settings
from service.http.problems import STATUSES
from service.repository import catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "RESULTS.md").read_text()
SETTINGS, API, COMMANDS, MODELS = (
    (ROOT / "docs" / name).read_text()
    for name in ("settings.md", "api.md", "commands.md", "models.md")
)
LOSSLESS = "cifar10-lossless-sample.tar"


def setting_rows() -> dict[str, str]:
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", SETTINGS, re.MULTILINE)
    return dict(rows)


def test_every_setting_is_documented_in_its_own_words() -> None:
    documented = setting_rows()
    for kind in (Settings, ModelSettings):
        for name, field in kind.model_fields.items():
            assert field.description is not None
            assert field.description in documented[name]
    assert set(documented) == set(Settings.model_fields) | set(ModelSettings.model_fields)


def test_every_status_is_documented() -> None:
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) \|", API, re.MULTILINE)}
    others = {405, 500}  # The router's, and a bug's.
    assert documented == {int(status) for status in STATUSES.values()} - {499} | others


def test_every_command_is_shown_and_has_its_page() -> None:
    shown = set(re.findall(r"^resnet-serve ([a-z]+)", COMMANDS, re.MULTILINE))
    assert shown == set(main.commands)
    rows = re.findall(r"^\| (`[a-z`, ]+`) \|", COMMANDS, re.MULTILINE)
    paged = {name for row in rows for name in re.findall(r"`([a-z]+)`", row)}
    assert paged | {"completion"} == set(main.commands)


@pytest.mark.parametrize("name", ["resnet200_small", "preact_wide_resnet22_7", "wrn_28_10"])
def test_the_families_exist(name: str) -> None:
    assert variants.variant(name)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 150
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 1


def test_it_says_at_the_top_what_it_takes_and_what_was_not_run() -> None:
    start = README.partition("\n## Documents")[0]
    for said in ("1.4 GB", "5.5 GB", "make serve", "No GPU has run", "what-has-been-run"):
        assert said in start


def test_the_figures_of_the_embedded_model_are_those_of_its_bundle() -> None:
    bundle = catalog.find(DEFAULT_SPEC).bundle
    test, lossless = bundle.metrics["cifar10-jpeg-test.tar.xz"], bundle.metrics[LOSSLESS]
    assert (
        f"top-1 {test['top1']:.1%} and a calibration error of {test['ece']:.1%} on "
        f"{test['images']:,} JPEG-compressed CIFAR-10\ntest images, "
        f"{lossless['top1']:.1%} on {lossless['images']} lossless ones"
    ).replace("%", " %") in README
    parameters = summary.cost(bundle.architecture, bundle.input.size).parameters
    blocks = {3: "three", 4: "four"}[sum(bundle.architecture.blocks)]
    assert (
        f"{parameters / 1e6:.2f} million parameters in {blocks} blocks: "
        f"a depth of {bundle.architecture.depth}"
    ) in MODELS.replace("\n", " ")
    assert f"| {parameters / 1e6:.2f}M |" in RESULTS
