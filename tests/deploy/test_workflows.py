"""The workflows for GitHub, as far as they can be judged without running there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_image import instructions

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))


def check(schema: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """With the schema that the field publishes, of the version in check-jsonschema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    return subprocess.run([*command, *paths], check=False, capture_output=True, text=True)


def read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


@pytest.fixture
def image() -> dict[str, Any]:
    found: dict[str, Any] = read(GITHUB / "workflows/image.yml")["jobs"]["image"]
    return found


def step(job: dict[str, Any], action: str) -> dict[str, Any]:
    """What the only step of `action` is given."""
    (found,) = (each for each in job["steps"] if each.get("uses", "").startswith(f"{action}@"))
    given: dict[str, Any] = found["with"]
    return given


def test_they_are_valid() -> None:
    done = check("github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    done = check("dependabot", GITHUB / "dependabot.yml")
    assert done.returncode == 0, done.stdout


def test_a_mistake_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yml"
    path.write_text(WORKFLOWS[0].read_text("utf-8").replace("runs-on:", "run-on:"))
    assert check("github-workflows", path).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_beside_its_version(path: Path) -> None:
    uses = re.findall(r"uses: (.+)", path.read_text("utf-8"))
    assert uses
    for each in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_they_may_read_unless_a_job_says_more(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}


def test_ci_runs_what_the_readme_tells_a_person_to_run() -> None:
    steps = read(GITHUB / "workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [each["run"] for each in steps if "run" in each] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_both_images_are_built_and_the_small_one_for_arm_too(image: dict[str, Any]) -> None:
    built = {row["device"]: row["platforms"] for row in image["strategy"]["matrix"]["include"]}
    assert built == {"cpu": "linux/amd64,linux/arm64", "cuda": "linux/amd64"}
    arguments = re.findall(
        r"^(\w+)=", step(image, "docker/build-push-action")["build-args"], re.MULTILINE
    )
    known = {
        rest.partition("=")[0] for keyword, rest in instructions(dockerfile()) if keyword == "ARG"
    }
    assert set(arguments) == known


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text("utf-8")


def test_what_is_pushed_says_what_is_in_it_and_how_it_was_made(image: dict[str, Any]) -> None:
    given = step(image, "docker/build-push-action")
    assert given["sbom"] is True
    assert given["provenance"] == "mode=max"
    assert given["push"] == "${{ github.ref_type == 'tag' }}"
    assert step(image, "docker/metadata-action")["images"] == "ghcr.io/${{ github.repository }}"


def test_a_tag_that_is_not_the_projects_version_is_not_built(image: dict[str, Any]) -> None:
    (command,) = (each["run"] for each in image["steps"] if "run" in each)
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for tag, status in ((f"v{version[1]}", 0), ("v0.0.7", 1)):
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=ROOT,
            env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"},
            check=False,
            capture_output=True,
        )
        assert done.returncode == status
