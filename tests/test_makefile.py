"""What `make` says and installs, without installing it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Without what a make above this test hands down.
CLEAN = {"PATH": os.environ["PATH"]}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder with what the first `make` looks at, and no `.venv`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> str:
    """What make would run."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.check_output(
        command, cwd=folder, env=CLEAN, text=True, stderr=subprocess.STDOUT
    )


def installs(said: str) -> list[str]:
    return [line for line in said.splitlines() if " pip install " in line]


def test_whoever_serves_sees_what_is_fetched(fresh: Path) -> None:
    command = ["make", "serve", "PYTHON=true"]
    done = subprocess.run(
        command, cwd=fresh, env=CLEAN, capture_output=True, text=True, check=False
    )
    told = done.stdout.partition(".venv/bin/python")[0]
    assert re.search(r"[\d.]+ GB.* [\d.]+ GB", told)
    assert f"make serve TORCH_INDEX_URL={CPU_INDEX}" in told
    torch, *others = installs(make(fresh, "serve"))
    assert torch.endswith(" torch")
    assert "--quiet" not in torch
    assert all("--quiet" in line for line in others)


@pytest.mark.parametrize("target", ["test", "lint"])
def test_others_install_in_silence(fresh: Path, target: str) -> None:
    said = make(fresh, target)
    assert installs(said)
    assert all("--quiet" in line for line in installs(said))
    assert "echo" not in said


def test_an_index_of_pytorchs_is_asked_beside_the_usual_one(fresh: Path) -> None:
    for target in ("serve", "test"):
        for line in installs(make(fresh, target, f"TORCH_INDEX_URL={CPU_INDEX}")):
            assert f"--extra-index-url {CPU_INDEX}" in line
        assert "index-url" not in make(fresh, target)


def test_every_version_is_one_that_was_tested(fresh: Path) -> None:
    assert all("-c constraints.txt" in line for line in installs(make(fresh, "test")))


def test_what_the_readme_runs_after_serve_is_installed_by_it(fresh: Path) -> None:
    extras = re.search(r"\.\[([\w,]+)\]", make(fresh, "serve"))
    assert extras is not None
    # `classify --url`, the fast engine, and ONNX files as SPECs.
    assert set(extras[1].split(",")) == {"client", "cpu", "interchange"}


def failed(folder: Path, python: str) -> str:
    """What a `make serve` that fails says, where `python` is a script that stands for Python."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    done = subprocess.run(
        ["make", "serve", f"PYTHON={script}"],
        cwd=folder,
        env=CLEAN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    return done.stdout + done.stderr


def test_an_old_python_is_refused_before_anything_is_fetched(fresh: Path) -> None:
    setup = "import sys; sys.version_info = (3, 10, 13); exec(sys.argv[1])"
    said = failed(fresh, f'[ "$1" = -c ] && exec {sys.executable} -c "{setup}" "$2"')
    assert "is Python 3.10; 3.11 or later is needed; add PYTHON=python3.12" in said
    assert "Traceback" not in said
    assert not installs(said)


def test_a_python_without_venv_leaves_nothing_that_looks_like_one(fresh: Path) -> None:
    # What Debian's does without the package python3-venv.
    half = "mkdir -p .venv/bin; touch .venv/bin/python; echo no ensurepip; exit 1"
    said = failed(fresh, f'[ "$1" = -c ] || {{ {half}; }}')
    assert "no ensurepip" in said
    assert not (fresh / ".venv").exists()
