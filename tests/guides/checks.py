"""What can be told of a command without what it needs: an engine of containers, a cluster, a GPU,
the internet. One row for each of these, and nothing else may be marked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml

from deploy.compose import variables
from service.cli.main import main
from service.config import loading
from tests.deploy import compose
from tests.deploy.chart import CHART
from tests.deploy.test_schemas import MANIFESTS, check_compose, check_manifest, documents
from tests.guides.blocks import Command

ROOT = Path(__file__).parents[2]
COMPOSE_COMMANDS = {
    *(
        "up",
        "down",
        "build",
        "logs",
        "ps",
        "exec",
        "run",
        "pull",
        "restart",
        "stop",
        "start",
        "kill",
    ),
    *("config",),
}
# With a value in the next word.
COMPOSE_FLAGS = {"--signal", "--tail", "--since"}
RUN_FLAGS = {
    "publish",
    "env",
    "volume",
    "tmpfs",
    "gpus",
    "cap-drop",
    "security-opt",
    "name",
    "memory",
}
COMPOSE_VARIABLES = ("COMPOSE_PROFILES", "COMPOSE_ENV_FILES")
ALL_SETTINGS = variables.written().split()
ADDRESS = re.compile(r"https?://[\w.-]+(:\d+)?(/\S*)?")
# A SPEC that is downloaded, as in service.repository.catalog.
DOWNLOADED = re.compile(r"hf:[\w.-]+/[\w.-]+|torchvision:\w+(:\w+)?|onnx-zoo:[\w-]+")


def check_flags(words: list[str]) -> dict[str, Any]:
    """The options of a `resnet-serve` command, by click's own parser.

    Raises:
        click.UsageError: no such command or option, or an impossible value.
    """
    program, name, *arguments = words
    assert program == "resnet-serve"
    command = main.get_command(click.Context(main), name)
    if command is None:
        raise click.UsageError(f"no command {name}")
    with command.make_context(name, arguments) as context:
        params = context.params
    if name == "serve":
        given = {key: value for key, value in params.items() if key != "config"}
        loading.load(given | {"models": list(given["models"]) or None}, config=params["config"])
    return params


def _docker(command: Command) -> None:
    words = command.words
    if words[0] in ("sudo", "git"):
        assert words[1] in ("chown", "pull"), command.line
        return
    assert words[0] == "docker", command.line
    {"build": _build, "run": _run, "compose": _compose}[words[1]](words)
    reached = {*compose.documented(), *COMPOSE_VARIABLES}
    reached |= set(compose.read(variables.written(), dict.fromkeys(ALL_SETTINGS, "x")))
    assert command.environment.keys() <= reached, f"{command.line}: reaches no container"


def _build(words: list[str]) -> None:
    arguments = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    given = [
        each.partition("=")[0] for at, each in enumerate(words) if words[at - 1] == "--build-arg"
    ]
    assert set(given) <= set(arguments)
    assert words[-1] == "."


def _run(words: list[str]) -> None:
    """An image of ours, with settings that it takes, or an image of Docker's own library."""
    at, flags = 2, list[tuple[str, str]]()
    while words[at].startswith("--"):
        name = words[at].removeprefix("--")
        has_value = name not in ("rm", "init", "read-only", "detach")
        assert not has_value or name in RUN_FLAGS, f"--{name}"
        flags.append((name, words[at + 1] if has_value else ""))
        at += 1 + has_value
    ours = {str(each.get("image")) for each in compose.content()["services"].values()}
    if words[at] not in ours:
        assert re.fullmatch(r"[a-z]+(:[\w.]+)?", words[at]), words[at]
        return
    given = dict(value.partition("=")[::2] for name, value in flags if name == "env")
    told = {"RESNET_SERVE_HOST": "0.0.0.0"} | given
    assert loading.read(environ=told).problems == []
    # Else it would refuse to start, as it listens beyond loopback.
    assert {"RESNET_SERVE_ALLOW_ANONYMOUS", "RESNET_SERVE_API_KEYS_FILE"} & set(given)
    assert "cuda" not in words[at] or ("gpus", "all") in flags
    mounted = [value.split(":")[1] for name, value in flags if name == "volume"]
    assert given.get("RESNET_SERVE_CACHE_DIR") in (None, *mounted)
    assert not words[at + 1 :] or check_flags(words[at + 1 :])


def _compose(words: list[str]) -> None:
    content = compose.content()
    check_compose(content)
    rest = words[2:]
    while rest[0] == "--profile":
        profiles = {
            name for each in content["services"].values() for name in each.get("profiles", [])
        }
        assert rest[1] in profiles
        rest = rest[2:]
    assert rest[0] in COMPOSE_COMMANDS
    named = [
        word
        for at, word in enumerate(rest)
        if at and not word.startswith("-") and rest[at - 1] not in COMPOSE_FLAGS
    ]
    assert set(named[:1]) <= set(content["services"])
    if rest[0] in ("exec", "run") and named[1:2] == ["resnet-serve"]:
        check_flags(named[1:])


def _cluster(command: Command) -> None:
    words = command.words
    if words[0] == "curl":
        assert any(ADDRESS.fullmatch(word) for word in words)
        return
    if words[0] == "helm":
        _helm(words)
        return
    assert words[0] == "kubectl", command.line
    known: set[str] = set()
    for path in MANIFESTS:
        for document in documents(path):
            check_manifest(document)
            known |= {f"{document['kind']}/{document['metadata']['name']}".lower()}
    text = "".join(each.read_text("utf-8") for each in MANIFESTS)
    for at, word in enumerate(words):
        if words[at - 1] == "-f":
            assert (ROOT / word).is_file(), word
        elif kind := re.fullmatch(
            r"(deployment|service|inferenceservice|clusterservingruntime)/(\S+)", word
        ):
            assert kind[0] in known, f"{word}: no file makes it"
        elif words[at - 2 : at] == ["create", "secret"] or words[at - 3 : at - 1] == [
            "create",
            "secret",
        ]:
            assert word == "generic" or word in text, f"{word}: no file asks for it"


def _helm(words: list[str]) -> None:
    """Values of our chart that exist, and files that do; what others' charts take is not known."""
    named = [word for word in words[1:] if not word.startswith("-")]
    if words[1] == "test":
        assert named[1:] == ["resnet-serve"]
        return
    assert words[1:3] == ["upgrade", "--install"], " ".join(words)
    values: Any = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    for at, word in enumerate(words):
        if words[at - 1] == "--values":
            assert (ROOT / word).is_file(), word
        elif words[at - 1] == "--set":
            place = values
            for name in word.partition("=")[0].split("."):
                place = place[name]
    chart = words[4]
    assert chart.startswith("prometheus-community/") or (ROOT / chart / "Chart.yaml").is_file()


def _check_extras(words: list[str]) -> None:
    """That `pip install` asks for extras that there are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (extras,) = re.findall(r"^\.\[([\w,]+)\]$", words[-1])
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def _install(command: Command) -> None:
    """That what is installed, made and called exists. Building is tests/test_packages.py's."""
    for line in command.line.split(" && "):
        each = Command(line)
        words = each.words
        if words[:2] == ["pip", "install"]:
            (extras,) = re.findall(r"(?:\.|\.whl\))\[([\w,]+)\]$", words[-1])
            _check_extras(["pip", "install", f".[{extras}]"])
        elif words[0] == "make":
            text = (ROOT / "Makefile").read_text("utf-8")
            for word in words[1:]:
                name, is_variable, _ = word.partition("=")
                assert f"\n{name} ?=" in text if is_variable else f"\n{name}:" in text, word
        elif words[0] == "resnet-serve":
            check_flags(words)
        elif words[0] == "torchrun":
            check_flags(words[words.index("--no-python") + 1 :])
        else:
            known = (
                "git clone",
                "cd resnet-serve",
                "python3 -m",
                ". .venv/bin/activate",
                "pip wheel",
            )
            assert line.startswith(known), line
        for flag, value in pairwise(words):
            assert flag != "-c" or (ROOT / value).is_file(), value


def _gpu(command: Command) -> None:
    if command.words[0] == "resnet-serve":
        check_flags(command.words)
    elif command.words[:2] == ["pip", "install"]:
        _check_extras(command.words)
    elif command.words[0] == "export":
        dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
        assert f" {command.words[1]} " in dockerfile, f"{command.line}: the image does not"
    else:
        assert command.words[0] in ("nvidia-smi", "nvidia-ctk", "docker"), command.line
        if command.words[0] == "docker":
            assert "run" in command.words


def _internet(command: Command) -> None:
    params = check_flags(command.words)
    said = [
        params.get("src"),
        params.get("model"),
        params.get("weights"),
        *params.get("models", ()),
        *params.get("specs", ()),
    ]
    assert any(DOWNLOADED.fullmatch(str(spec)) for spec in said), (
        f"{command.line}: why is it marked?"
    )


def _ray(command: Command) -> None:
    """That what is installed and deployed exists; tests/cluster deploys it."""
    words = command.words
    if words[:2] == ["pip", "install"]:
        _check_extras(words)
    elif words[0] == "export":
        _check_import_path(words[1].partition("=")[2])
    elif words[0] == "serve" and words[1] == "run":
        _check_import_path(words[2])
    elif words[0] == "serve" and words[1] == "deploy":
        (application,) = yaml.safe_load((ROOT / words[2]).read_text("utf-8"))["applications"]
        _check_import_path(application["import_path"])
        loading.load(config=application["args"])
    else:
        assert words[:2] in (["ray", "start"], ["serve", "status"]), command.line


def _check_import_path(path: str) -> None:
    module, _, name = path.partition(":")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), path


def _systemd(command: Command) -> None:
    """That units, options and files exist, and a client finds the socket where systemd listens."""
    program, *words = command.words
    units = {path.name for path in (ROOT / "deploy/systemd").iterdir()}
    if program == "systemctl":
        named = [word for word in words[1:] if not word.startswith("-")]
        assert words[0] in ("daemon-reload", "enable", "start", "stop", "restart", "reload")
        assert set(named) <= units
    elif program == "install":
        *sources, _ = words[words.index("-m") + 2 :]
        for source in sources:
            assert (ROOT / source).is_file() or not source.startswith("deploy/"), source
    elif program == "journalctl":
        assert f"{words[words.index('-u') + 1]}.service" in units
    elif program == "curl":
        listening = (ROOT / "deploy/systemd/resnet-serve.socket").read_text("utf-8")
        assert f"ListenStream={words[words.index('--unix-socket') + 1]}\n" in listening
    elif program == "python3":
        service = (ROOT / "deploy/systemd/resnet-serve.service").read_text("utf-8")
        assert f"ExecStart={words[-1]}/bin/resnet-serve " in service
    else:
        assert program == "/opt/resnet-serve/bin/pip", command.line
        extras = re.fullmatch(r"\.\[([\w,]+)\]", words[-1])
        assert extras is not None
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


CHECKS: dict[str, Callable[[Command], None]] = {
    "docker": _docker,
    "cluster": _cluster,
    "ray": _ray,
    "gpu": _gpu,
    "install": _install,
    "internet": _internet,
    "systemd": _systemd,
}
