"""`resnet-serve config`: every mistake at once, and where each setting is from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from models import bundle, bundling
from models.resnet import ResNet
from service.config.loading import read
from service.repository import catalog
from tests.conftest import clean_environment
from tests.support import tiny
from tests.support.commands import run
from tests.support.own_blocks import Plain

CONTRACT = """
host: 127.0.0.1
port: 8000
models:
  - name: resnet50
    spec: torchvision:resnet50
    device: auto
    precision: auto
    engine: auto
    max_batch: 32
    max_delay_ms: 0
    max_queue: 256
"""
KEY = "an-api-key-0123456789"


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def checked(tmp_path: Path, text: str) -> list[str]:
    """What `config check` says of a file, without the file's path."""
    path = write(tmp_path, text)
    lines = run("config", "check", "--config", path, status=2).stderr.splitlines()
    return [line.removeprefix(f"{path}:") for line in lines]


def test_every_problem_is_a_line_with_its_place_and_what_is_allowed(tmp_path: Path) -> None:
    text = """prot: 1
port: eighty
host: a
host: b
log_level: infos
models:
  - spec: random:resnet20
    engine: opnvino
  - {name: b, max_bach: 3, device: 3}
  - 4
workers: 1.5
"""
    assert checked(tmp_path, text) == [
        "4: host: already set in line 3",
        "1: prot: unknown setting; did you mean port?",
        "2: port: must be a whole number, not 'eighty'",
        "5: log_level: must be 'debug', 'info', 'warning' or 'error', not 'infos'; "
        "did you mean info?",
        "8: models[0].engine: must be 'auto', 'fused', 'eager', 'compile' or 'openvino', "
        "not 'opnvino'; did you mean openvino?",
        "9: models[1].spec: is missing",
        "9: models[1].device: must be auto, cpu, cuda, cuda:all, cuda:N, or a list of these, not 3",
        "9: models[1].max_bach: unknown setting; did you mean max_batch?",
        "10: models[2]: must be a mapping of settings, such as "
        "`spec: builtin:resnet10-cifar10`, not 4",
        "11: workers: must be a whole number, not 1.5",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "1: not YAML: a bracket or brace is not closed"),
        ("a: *b", "1: not YAML: a value that begins with * or &; quote it"),
        ("? [1]\n: 2", "not YAML: a list or mapping as a key"),
        ("[" * 600, "nested too deeply"),
        ("[1]", "must be a mapping"),
        ("1: 2", "1: 1: unknown setting"),
        ("models: [{spec: 'random:resnet20', 3: 4}]", "names of settings must be text, not 3"),
        ("models: &m [*m]", "models[0]"),
        ("port: \x00", "not YAML: a control character"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (line,) = checked(tmp_path, text)
    assert words in line


def test_what_is_wrong_elsewhere_is_told_where_a_person_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "models: [{spec: 'random:resnet20'}, {spec: 'random:resnet32'}]")
    monkeypatch.setenv("RESNET_SERVE_PORTT", "1")
    monkeypatch.setenv("RESNET_SERVE_MAX_QUEUE", "many")
    said = run("config", "check", "--config", path, "--workers", "70", status=2).stderr
    assert said.splitlines() == [
        "environment variable RESNET_SERVE_PORTT is not a setting; did you mean RESNET_SERVE_PORT?",
        "--workers: must be at most 64, not 70",
        "RESNET_SERVE_MAX_QUEUE: must be a whole number, not 'many'",
    ]


def test_specs_files_and_addresses_are_looked_at_too(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    bundle.write(catalog.load("random:resnet20").bundle, whole)
    part = tmp_path / "part.safetensors"
    part.write_bytes(whole.read_bytes()[:-1])
    other = tmp_path / "other.safetensors"
    other.write_bytes((2).to_bytes(8, "little") + b"{}")
    text = f"""host: 0.0.0.0
port: 0
tls_key: /nowhere.pem
models:
  - spec: {whole}
  - spec: {part}
  - spec: {other}
  - spec: {tmp_path}
  - spec: bultin:x
  - spec: builtin:resnet20-cifar100
  - spec: random:resnt20
  - spec: torchvision:resnt50
  - spec: hf:nobody
  - spec: hf:owner/name
  - {{spec: 'random:', name: own, architecture: {{blocks: [1]}}}}
"""
    lines = checked(tmp_path, text)
    for line, words in zip(
        lines,
        [
            "tls_certificate: is missing; tls_key needs it",
            "3: tls_key: /nowhere.pem: No such file or directory",
            "1: host: on 0.0.0.0 other hosts",
            "6: models[1].spec: {}: not a complete safetensors file",
            "7: models[2].spec: {}: safetensors, but not a resnet-serve bundle",
            "8: models[3].spec: {}: a folder must contain exactly one",
            "9: models[4].spec: bultin:x: no such file; did you mean builtin:x?",
            "10: models[5].spec: builtin:resnet20-cifar100: no such embedded model; did you mean",
            "11: models[6].spec: random:resnt20: ",
            "12: models[7].spec: torchvision:resnt50: ",
            "13: models[8].spec: hf:nobody: name a repository as OWNER/NAME",
            "15: models[10].spec: random: architecture: it lacks block, planes, stem",
        ],
        strict=True,
    ):
        begin, _, end = words.partition("{}")
        assert line.startswith(begin)
        assert end in line


def test_code_that_is_not_allowed_is_a_problem_and_is_not_imported(tmp_path: Path) -> None:
    module = Plain.__module__
    made = bundling.from_network(ResNet(tiny.ARCHITECTURE, block=Plain), **tiny.described())
    bundle.write(made, tmp_path / "own.safetensors")
    text = f"models: [{{spec: {tmp_path / 'own.safetensors'}}}]\n"
    (line,) = checked(tmp_path, text)
    assert line.startswith("1: models[0].spec: ")
    assert f"its block is code, {module}:Plain, which is only imported if you allow it" in line
    path = write(tmp_path, f"{text}allow_code: ['{module}:Plain']\n")
    assert ": ok; serves " in run("config", "check", "--config", path).stdout


def test_what_is_right_is_one_line_and_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path, CONTRACT)
    assert run("config", "check", "--config", path).stdout == f"{path}: ok; serves resnet50\n"
    probe = """
import sys
from service.cli.main import main
main(standalone_mode=False)
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", probe, "config", "check", "--config", str(path)]
    assert subprocess.check_output(command, text=True).splitlines()[-1] == "False"


def test_each_setting_is_shown_with_its_origin_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""port: 1
api_keys: [{KEY}]
models:
  - &first {{spec: 'random:resnet20', max_batch: 4}}
  - {{<<: *first, name: other}}
"""
    path = write(tmp_path, text)
    monkeypatch.setenv("RESNET_SERVE_PORT", "2")
    monkeypatch.setenv("RESNET_SERVE_MAX_QUEUE", "3")
    arguments = ("config", "show", "--config", path, "--engine", "eager")
    said = run(*arguments).stdout
    assert KEY not in said
    origins: dict[str, str] = {}
    for line in said.splitlines():
        setting, _, origin = line.partition("  # ")
        origins[setting.strip()] = origin.strip()
    assert origins["port: 2"] == "RESNET_SERVE_PORT"
    assert origins['host: "127.0.0.1"'] == "default"
    assert origins['api_keys: ["**********"]'] == f"{path}:2"
    assert origins['- spec: "random:resnet20"'] in (f"{path}:4", f"{path}:5")
    assert origins['engine: "eager"'] == "--engine"
    assert origins["max_queue: 3"] == "RESNET_SERVE_MAX_QUEUE"
    # It is YAML that says the same again.
    shown = yaml.safe_load(said)
    assert shown["port"] == 2
    assert [row["name"] for row in shown["models"]] == [None, "other"]

    found = json.loads(run(*arguments, "--json").stdout)
    assert KEY not in json.dumps(found)
    assert found["port"] == {"value": 2, "source": "environment", "place": "RESNET_SERVE_PORT"}
    assert found["host"] == {"value": "127.0.0.1", "source": "default", "place": None}
    first, second = found["models"]
    assert first["max_batch"] == {"value": 4, "source": "file", "place": f"{path}:4"}
    assert second["max_batch"] == {"value": 4, "source": "file", "place": f"{path}:5"}
    assert second["engine"] == {"value": "eager", "source": "flag", "place": "--engine"}


def test_models_as_flags_are_shown_as_such() -> None:
    found = json.loads(run("config", "show", "--json", "--model", "random:resnet20").stdout)
    (row,) = found["models"]
    assert row["spec"] == {"value": "random:resnet20", "source": "flag", "place": "--model"}
    assert row["max_batch"]["source"] == "default"
    (line,) = run("config", "show", "--port", "x", status=2).stderr.splitlines()[-1:]
    assert "'x' is not a valid integer" in line
    assert "port: must be at most" in run("config", "show", "--port", "70000", status=2).stderr


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(run("config", "schema").stdout)


def test_the_schema_is_one(schema: Any) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "text",
    [
        CONTRACT,
        "models: [{spec: a, device: [cuda:0, cuda:1]}]\ncors_origins: ['https://example.org']",
        f"api_keys: [{KEY}]\ncache_dir: /tmp\nlog_format: json\nengine_threads: 3",
    ],
)
def test_what_the_service_takes_the_schema_takes(schema: Any, tmp_path: Path, text: str) -> None:
    assert read(config=str(write(tmp_path, text)), environ={}).problems == []
    jsonschema.validate(yaml.safe_load(text), schema)


@pytest.mark.parametrize(
    "text",
    [
        "prot: 1",
        "port: eighty",
        "port: 70000",
        "models: []",
        "models: [{name: a}]",
        "models: [{spec: a, engine: triton}]",
        "models: [{spec: a, max_bach: 2}]",
        "models: [{spec: a, device: gpu}]",
        "models: [{spec: a, device: [cpu, gpu]}]",
        "models: [{spec: a, name: x y}]",
        "device: cpu",
        "workers: 0",
        "log_level: loud",
        "cors_origins: [example.org]",
    ],
)
def test_what_the_service_refuses_the_schema_refuses(
    schema: Any, tmp_path: Path, text: str
) -> None:
    assert read(config=str(write(tmp_path, text)), environ={}).problems
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), schema)
