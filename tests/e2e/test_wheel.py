"""A wheel built from the checkout works installed elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

from service.cli.__main__ import main
from tests.conftest import Service, client, encoded, started

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_it_serves_from_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    # What it depends on is installed already; only its own packages must come from the wheel.
    subprocess.run([*PIP, "install", "--no-deps", "--target", site, wheel], check=True)
    where = "import service, models; print(service.__file__, models.__file__)"
    printed = subprocess.check_output(
        [sys.executable, "-c", where], env={"PYTHONPATH": str(site)}, cwd=tmp_path, text=True
    )
    assert [Path(path).is_relative_to(site) for path in printed.split()] == [True, True]
    module = [sys.executable, "-m", "service.cli"]
    with started(command=module, PYTHONPATH=str(site)) as service:
        answer = client.post(f"{service.url}/v1/classify", content=encoded()).json()
        assert answer["model"] == "resnet10-cifar10"
        assert client.get(service.url).text.startswith("<!doctype html>")


def needed_by(package: str, found: set[str] | None = None) -> set[str]:
    """The names of `package` and of all that it requires, without extras."""
    found = set() if found is None else found
    found.add(package)
    for requirement in metadata.requires(package) or ():
        name = re.split(r"[^\w.-]", requirement)[0]
        if ";" not in requirement and name not in found:
            needed_by(name, found)
    return found


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, installed without dependencies, and httpx."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed_by("httpx") | {"typing_extensions"}:
        for file in metadata.files(package) or ():
            top, installed = file.parts[0], Path(str(file.locate()))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to([installed, *installed.parents][len(file.parts) - 1])
    return python.parent


PROGRAM = """
import pathlib, sys
from service.client import Client
image = pathlib.Path(sys.argv[2]).read_bytes()
with Client(sys.argv[1]) as client:
    assert client.ready()
    served = client.model(client.models()[0].name)
    assert served.ready
    for source in (sys.argv[2], image):
        assert client.classify(source).best.label == client.classify(image).best.label
    assert client.embed(image).dimensions == served.embedding
    assert client.explain(image).grid
known = {"torch", "numpy", "PIL", "pydantic", "fastapi", "click", "yaml"}
print(sorted(known & set(sys.modules)))
"""


def test_the_client_needs_httpx_only(bare: Path, service: Service, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    image.write_bytes(encoded())
    command = [str(bare / "python"), "-I", "-W", "error", "-c", PROGRAM, service.url, str(image)]
    assert subprocess.check_output(command, text=True, cwd=tmp_path) == "[]\n"
    lacks = [str(bare / "python"), "-I", "-c", "import torch"]
    assert subprocess.run(lacks, check=False, capture_output=True).returncode == 1


def test_the_command_says_what_it_lacks(bare: Path, tmp_path: Path) -> None:
    command = [str(bare / "resnet-serve"), "serve"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 1
    assert done.stderr.startswith("resnet-serve: needs click, which is not installed")
    assert done.stderr.count("\n") == 1


def test_a_module_of_ones_own_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "models.py").touch()
    command = [sys.executable, "-m", "service.cli", "--version"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"resnet-serve: {tmp_path / 'models.py'} hides")
    assert done.stderr.count("\n") == 1
    installed = [str(Path(sys.executable).parent / "resnet-serve"), "--version"]
    subprocess.run(installed, check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("platform", "command"), [("win32", "models"), ("win32", "serve"), ("darwin", "serve")]
)
def test_another_system_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, platform: str, command: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys, "argv", ["resnet-serve", command])
    with pytest.raises(SystemExit, match=r"^resnet-serve: .* container.* service\.client, works"):
        main()


# What other systems lack of what the service uses.
OF_LINUX = """
import os, sys
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "memfd_create"):
    delattr(os, name)
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("the client", "from service.client import Client, AsyncClient"),
        ("a network", "sys.modules.pop('fcntl'); import models; models.build('resnet20')"),
    ],
)
def test_what_needs_no_linux_is_imported_without(name: str, code: str) -> None:
    subprocess.run([sys.executable, "-c", OF_LINUX + code], check=True)
