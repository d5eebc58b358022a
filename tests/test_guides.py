"""Every command and every program in the documents is run, in order, as a reader would."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.guides.blocks import Block, Command, blocks, commands, pattern
from tests.guides.checks import CHECKS, check_flags
from tests.guides.fixtures import ROOT, lay_out
from tests.guides.session import Session, Shared

DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guides").glob("*.md")]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# Those that train, or start services that no other document needs.
SLOW = {
    "docs/guides/cpu-host.md",
    "docs/guides/own-architecture.md",
    "docs/guides/own-images.md",
    "docs/guides/own-block.md",
    "docs/guides/own-weights.md",
    "docs/guides/tuning.md",
    "docs/training.md",
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with Shared() as running:
        yield running


@pytest.mark.timeout(400)  # A busy machine takes its time to train, compile and serve.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NAMES],
)
def test_a_document_does_as_it_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: Shared,
) -> None:
    text = (ROOT / name).read_text("utf-8")
    found = list(blocks(text))
    typed = "".join(block.text for block in found if not block.needs)
    for program in ("curl", "node", "openssl", "systemd-analyze"):
        if f"{program} " in typed and not shutil.which(program):
            pytest.skip(f"needs {program}")
    lay_out(tmp_path, "".join(block.text for block in found))
    monkeypatch.chdir(tmp_path)
    with Session(tmp_path, shared) as session:
        for block in found:
            try:
                session.run(block)
            except Exception as error:
                raise AssertionError(f"{name}, line {block.line}: {error}") from error


@pytest.mark.parametrize("name", NAMES)
def test_what_is_marked_is_marked_with_a_reason_that_is_known(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    marked = [block.needs for block in blocks(text) if block.needs]
    assert set(marked) <= set(CHECKS)
    # A mark that is not directly before its block would mark nothing.
    assert len(marked) == len(re.findall(r"<!-- needs", text))


def test_every_panel_that_is_explained_exists() -> None:
    dashboard = json.loads(
        (ROOT / "deploy/grafana/dashboards/resnet-serve.json").read_text("utf-8")
    )
    titles = {panel["title"] for panel in dashboard["panels"]}
    text = (ROOT / "docs/guides/dashboard.md").read_text("utf-8")
    table = text.partition("| panel |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| ([^|`-][^|]*) \|", table, re.MULTILINE)
    assert len(named) >= 10
    assert {name for row in named for name in row.split(", ")} <= titles


def test_every_extra_and_no_other_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / "docs/guides/install.md").read_text("utf-8")
    table = text.partition("| extra |")[2].partition("\n\n")[0]
    first = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    named = [name for row in first for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(project["optional-dependencies"])


def test_blocks_are_found_with_their_marks() -> None:
    text = "a\n```sh\nx \\\n  y  # z\n```\n<!-- needs: gpu -->\n```console\n$ a\nb\nc\n$ d\n```\n"
    first, second = blocks(text)
    assert (first.language, first.needs, first.line) == ("sh", None, 2)
    assert [command.words for command in commands(first)] == [["x", "y"]]
    assert second.needs == "gpu"
    assert commands(second) == [Command("a", "b\nc\n"), Command("d", "")]


@pytest.mark.parametrize("text", ["```\nx\n```\n", "```sh\nx\n"])
def test_a_block_without_language_or_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(blocks(text))


def test_shown_output_may_differ_in_numbers_only() -> None:
    shown = pattern('{"a": 1.5, "b": [2, ...]}\n')
    assert shown.fullmatch('{"a": 30, "b": [7, 8, 9]}\n')
    assert not shown.fullmatch('{"c": 30, "b": [7, 8, 9]}\n')


def test_words_know_variables_and_comments() -> None:
    command = Command("RESNET_SERVE_PORT=1 resnet-serve serve  # why")
    assert command.words == ["resnet-serve", "serve"]
    assert command.environment == {"RESNET_SERVE_PORT": "1"}


@pytest.mark.parametrize(
    ("needs", "line"),
    [
        ("docker", "docker compose --profile tpu up"),
        ("docker", "docker compose start-all"),
        ("docker", "docker build --build-arg GPU=1 ."),
        ("docker", "NO_SUCH=1 docker compose up"),
        ("cluster", "kubectl apply -f deploy/kubernetes/none.yml"),
        ("cluster", "kubectl rollout status deployment/none"),
        ("cluster", "kubectl create secret generic none"),
        ("cluster", "helm upgrade --install resnet-serve deploy/kubernetes/none"),
        ("cluster", "helm upgrade --install resnet-serve deploy/kubernetes/chart --set none=1"),
        ("cluster", "helm upgrade --install resnet-serve deploy/kubernetes/chart --values none"),
        ("cluster", "helm delete resnet-serve"),
        ("gpu", "resnet-serve serve --gpu 1"),
        ("gpu", "resnet-serve serve --device tpu"),
        ("gpu", "pip install '.[tpu]'"),
        ("gpu", "export CUDA_DEVICE_ORDER=FASTEST_FIRST"),
        ("install", "make server"),
        ("install", "make serve TORCH_INDEX=x"),
        ("install", "pip install '.[tpu]'"),
        ("install", "pip install numpy"),
        ("install", "torchrun --no-python resnet-serve training"),
        ("internet", "resnet-serve serve --model builtin:resnet10-cifar10"),
        ("internet", "resnet-serve fetch builtin:resnet10-cifar10"),
    ],
)
def test_a_wrong_command_is_found_without_what_it_needs(needs: str, line: str) -> None:
    with pytest.raises((AssertionError, LookupError, ValueError, click.ClickException)):
        CHECKS[needs](Command(line))


@pytest.mark.parametrize(
    "block",
    [
        Block("sh", "false\n", None, 1),
        Block("sh", "resnet-serve models resnet21\n", None, 1),
        Block("console", "$ echo a\nb\n", None, 1),
        Block("python", "assert False\n", None, 1),
        Block("sh", "resnet-serve models resnet20 --jso > x\n", None, 1),
        Block("yaml", "ports: 1\n", None, 1),
        Block("ruby", "", None, 1),
    ],
    ids=lambda block: block.language + block.text,
)
def test_a_block_that_does_not_do_as_it_says_fails(block: Block, tmp_path: Path) -> None:
    with Session(tmp_path, Shared()) as session, pytest.raises((AssertionError, ValueError)):
        session.run(block)


def test_flags_are_parsed_by_the_command_itself() -> None:
    assert check_flags(["resnet-serve", "bench", "x", "--rate", "5"])["seconds"] == 10
