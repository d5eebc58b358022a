"""What a message tells to install is what the extra would."""

from __future__ import annotations

import shlex
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from models.extras import PACKAGE, install

ROOT = Path(__file__).parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"test"}))
def test_the_command_names_the_libraries_of_the_extra(extra: str) -> None:
    assert sorted(shlex.split(install(extra))) == sorted(["pip", "install", *EXTRAS[extra]])


def test_a_shell_does_not_take_a_version_for_a_redirection() -> None:
    assert install("client") == "pip install 'httpx>=0.27'"


def test_sources_that_are_not_installed_are_named_by_their_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    assert shlex.split(install("cpu")) == ["pip", "install", f"{ROOT}[cpu]"]


def test_it_is_this_project() -> None:
    assert metadata.metadata(PACKAGE)["Name"] == PACKAGE
