"""The Dockerfile, as far as it can be judged without building it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from service.cli.health import PATIENCE_SECONDS
from tests.guides.checks import check_flags

ROOT = Path(__file__).parents[2]


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order: keyword and the rest, continuations joined."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (keyword.upper(), re.sub(r"\s+", " ", rest))
        for keyword, _, rest in (line.partition(" ") for line in joined.split("\n"))
    ]


def stages(text: str) -> list[list[tuple[str, str]]]:
    """The instructions by stage; each begins with its FROM."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions(text):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


@pytest.fixture
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text("utf-8")


@pytest.fixture
def final(dockerfile: str) -> list[tuple[str, str]]:
    return stages(dockerfile)[-1]


def one(stage: list[tuple[str, str]], keyword: str) -> str:
    """The argument of the only instruction `keyword` of a stage."""
    (found,) = (rest for key, rest in stage if key == keyword)
    return found


def labels(stage: list[tuple[str, str]]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(one(stage, "LABEL")))


def test_instructions_are_read_as_docker_reads_them() -> None:
    text = "# why\nFROM a AS b\n\nRUN one \\\n  # inside\n && two\ncopy x y\n"
    assert instructions(text) == [("FROM", "a AS b"), ("RUN", "one && two"), ("COPY", "x y")]


def test_the_last_stage_takes_everything_from_the_others(
    dockerfile: str, final: list[tuple[str, str]]
) -> None:
    assert len(stages(dockerfile)) > 2
    copies = [rest for keyword, rest in final if keyword == "COPY"]
    assert copies
    assert all(rest.startswith("--from=") for rest in copies)


def test_python_is_one_that_the_package_allows(dockerfile: str) -> None:
    image = re.search(r"FROM python:3\.(\d+)-slim", dockerfile)
    required = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert image is not None
    assert required is not None
    assert int(image[1]) >= int(required[1])


def test_the_base_is_one_image_of_its_name(dockerfile: str) -> None:
    outside = [
        rest
        for keyword, rest in instructions(dockerfile)
        if keyword == "FROM" and rest.split()[0] != "base"
    ]
    assert len(outside) == 1
    assert re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64} AS base", outside[0])


def test_labels_say_what_the_project_says(dockerfile: str, final: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = re.search(r"^FROM (python:[\w.-]+)@", dockerfile, re.MULTILINE)
    assert base is not None
    said = {
        name.removeprefix("org.opencontainers.image."): text
        for name, text in labels(final).items()
        if name.startswith("org.opencontainers.image.")
    }
    assert said == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
        "base.name": f"docker.io/library/{base[1]}",
    }


def test_it_runs_as_a_numbered_user_who_is_not_root(final: list[tuple[str, str]]) -> None:
    user = one(final, "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    after = [keyword for keyword, _ in final[final.index(("USER", user)) :]]
    assert "RUN" not in after


def test_signals_reach_the_service(final: list[tuple[str, str]]) -> None:
    # A shell in between, which the string form of CMD would start, would swallow them.
    assert json.loads(one(final, "CMD")) == ["resnet-serve", "serve"]
    assert one(final, "STOPSIGNAL") == "SIGTERM"


def test_sagemakers_only_argument_is_a_command_of_the_image(
    dockerfile: str, final: list[tuple[str, str]], tmp_path: Path
) -> None:
    # Without an entry point, the first argument of `docker run IMAGE` is a program.
    assert "ENTRYPOINT" not in dict(instructions(dockerfile))
    (made,) = (rest for keyword, rest in final if "/usr/local/bin/serve" in rest)
    script, seen = tmp_path / "serve", tmp_path / "resnet-serve"
    command = made.replace("/usr/local/bin/serve", str(script))
    subprocess.run(["sh", "-euc", command], check=True)
    seen.write_text('#!/bin/sh\necho "$$ $SAGEMAKER_BIND_TO_PORT $@"\n')
    seen.chmod(0o755)
    for given, port in ({}, "8080"), ({"SAGEMAKER_BIND_TO_PORT": "9000"}, "9000"):
        started = subprocess.Popen(
            [script, "--log-level", "info"],
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin", **given},
        )
        # The same process, so that signals reach it.
        assert started.communicate()[0] == f"{started.pid} {port} serve --log-level info\n"
    assert labels(final)["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


def test_each_image_has_what_its_device_needs(dockerfile: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    text = " ".join(rest for _, rest in instructions(dockerfile))
    written = re.findall(r"extras\['(\w+)'\], sep='\\n', file=open\('(\w+)\.txt'", text)
    assert set(written) == {("cpu", "cpu"), ("gpu", "cuda")}
    assert all(extras[extra] for extra, _ in written)
    assert '--requirement "$DEVICE.txt"' in text


def test_nobody_is_let_in_by_the_image(dockerfile: str) -> None:
    for keyword, rest in instructions(dockerfile):
        if keyword in ("ARG", "ENV"):
            assert "ALLOW_ANONYMOUS" not in rest


def test_the_folder_of_a_cache_is_the_users(final: list[tuple[str, str]]) -> None:
    uid, gid = one(final, "USER").split(":")
    made = f"install --directory --owner={uid} --group={gid} /cache"
    assert made in [rest for keyword, rest in final if keyword == "RUN"]


def test_nothing_secret_or_unseen_enters_it(dockerfile: str) -> None:
    for keyword, rest in instructions(dockerfile):
        assert keyword != "ADD"
        if keyword == "COPY":
            assert rest.split()[0] not in (".", "./")
        if keyword in ("ARG", "ENV"):
            assert not re.search(r"(?i)secret|token|passw|credential|api_?key", rest)


def test_where_packages_come_from_is_left_to_the_builder(dockerfile: str) -> None:
    assert ("ARG", "TORCH_INDEX_URL=") in instructions(dockerfile)
    assert "://" not in dockerfile


def test_the_constraints_fit_every_build_of_torch() -> None:
    # `torch==1.2.3` admits 1.2.3+cpu and 1.2.3+cu126; with a suffix it would admit one of them.
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    assert re.search(r"^torch==[\d.]+$", pins, re.MULTILINE)


def test_the_build_sees_what_it_copies_and_nothing_else(dockerfile: str) -> None:
    first, *rest = [
        line
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    copied = {
        source.removesuffix("/")
        for keyword, arguments in instructions(dockerfile)
        if keyword == "COPY" and not arguments.startswith("--from=")
        for source in arguments.split()[:-1]
    }
    assert {line[1:] for line in rest if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_the_health_check_is_the_commands(final: list[tuple[str, str]]) -> None:
    options, _, command = one(final, "HEALTHCHECK").partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "resnet-serve"
    check_flags([program, *arguments])
    timeout = re.search(r"--timeout=(\d+)s", options)
    assert timeout is not None
    assert int(timeout[1]) > PATIENCE_SECONDS
