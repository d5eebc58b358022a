"""The packages that a release consists of, built by the backend that pip would call."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from trove_classifiers import classifiers

from service.http.routers.pages import WEB

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
STEM = f"resnet_serve-{PROJECT['version']}"


def tracked() -> list[Path]:
    """The files of the project: in a checkout those that git knows, else those of an archive."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archive of sources, and with the wheel that was made from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(built / f"{STEM}-py3-none-any.whl")


def test_a_release_is_one_archive_and_one_wheel_for_every_platform(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {
        f"{STEM}.tar.gz",
        f"{STEM}-py3-none-any.whl",
    }


def test_an_index_would_take_them(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_has_what_is_needed_to_serve_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not name.startswith(f"{STEM}.dist-info/")}
    assert {name.partition("/")[0] for name in names} == {"models", "service"}
    assert names >= {
        "models/py.typed",
        "service/py.typed",
        "models/builtin/resnet10-cifar10.safetensors",
        "models/builtin/resnet20-cifar10.safetensors",
        *(f"models/labels/{name}.txt" for name in ("cifar10", "cifar100", "imagenet1k")),
        *(f"service/http/web/{file}" for file in WEB),
    }
    for name, most in (("resnet10-cifar10", 4_000_000), ("resnet20-cifar10", 1_200_000)):
        assert wheel.getinfo(f"models/builtin/{name}.safetensors").file_size <= most
    known = {str(path.relative_to(ROOT)) for path in tracked()}
    assert names <= known, names - known
    assert names == {name for name in known if name.startswith(("models/", "service/"))}


def test_the_wheel_says_who_it_is(wheel: zipfile.ZipFile) -> None:
    said = message_from_bytes(wheel.read(f"{STEM}.dist-info/METADATA"))
    assert (said["Name"], said["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (said["License-Expression"], said["License-File"]) == ("Apache-2.0", "LICENSE")
    assert said["Description-Content-Type"] == "text/markdown"
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    entry = wheel.read(f"{STEM}.dist-info/entry_points.txt").decode()
    assert "resnet-serve = service.cli.__main__:main" in entry


def test_classifiers_are_known_and_in_order() -> None:
    assert set(PROJECT["classifiers"]) <= set(classifiers)
    assert PROJECT["classifiers"] == sorted(PROJECT["classifiers"])


def test_the_archive_has_what_tests_and_images_are_made_of(built: Path) -> None:
    with tarfile.open(built / f"{STEM}.tar.gz") as archive:
        names = {name.removeprefix(f"{STEM}/") for name in archive.getnames()}
    known = {str(path.relative_to(ROOT)) for path in tracked()}
    assert names <= known | {"PKG-INFO"}, names - known
    left_out = known - names
    assert left_out <= {".pre-commit-config.yaml"}, left_out


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install 'resnet-serve[cpu]'", True),
        ("needs httpx: pip install resnet-serve", True),
        ("`pip install\n'resnet-serve[images]'`", True),
        ("pip install --no-deps resnet-serve==0.1.0", True),
        ("uv tool install resnet-serve", True),
        ("pip install '.[cpu]'", False),
        ("helm upgrade --install resnet-serve deploy/kubernetes/chart", False),
        ("pip install dist/resnet_serve-0.1.0-py3-none-any.whl", False),
        ("pip install 'resnet-serve[cpu] @ git+https://example.org/resnet-serve'", False),
    ],
)
def test_a_command_that_needs_an_index_is_recognised(text: str, wrong: bool) -> None:
    assert bool(from_an_index(text)) is wrong


def from_an_index(text: str) -> list[str]:
    """What `text` tells to install by the package's name alone."""
    command = re.compile(
        r"\b(?:pip3?|pipx|uv)\s(?:[\w-]+\s+)*?(?:install|add)\s(?:[^`\n#]*[ '\"])?['\"]?"
        r"resnet[-_]serve(?![\w/.-])(?!(?:\[[\w,]+\])?\s*@)"
    )
    return command.findall(text)


def test_nothing_tells_to_install_from_an_index_where_the_package_is_not() -> None:
    told = {
        str(path.relative_to(ROOT)): found
        for path in tracked()
        if path.suffix in (".md", ".py", ".toml", ".txt", ".yml", ".yaml", ".js", ".html", "")
        and path.is_file()
        and path != Path(__file__)
        and (found := from_an_index(path.read_text("utf-8", errors="ignore")))
    }
    assert not told
