from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.config.loading import load, read
from service.config.settings import ModelSettings, Settings
from service.config.variables import PREFIX
from service.errors import ConfigError


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return str(path)


def test_the_embedded_model_is_served_by_default() -> None:
    settings = load(environ={})
    assert [model.spec for model in settings.models] == ["builtin:resnet10-cifar10"]
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "{host: file, port: 1, request_timeout_ms: 5}")
    environ = {f"{PREFIX}HOST": "environment", f"{PREFIX}PORT": "2"}
    settings = load({"port": 3, "host": None}, config=config, environ=environ)
    assert (settings.host, settings.port, settings.request_timeout_ms) == ("environment", 3, 5)


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "port: 4711")
    assert load(environ={f"{PREFIX}CONFIG": config}).port == 4711


def test_a_platforms_variables_are_below_all_of_ours(tmp_path: Path) -> None:
    platform = {"AIP_HTTP_PORT": "1", "AIP_PREDICT_ROUTE": "/p/", "AIP_HEALTH_ROUTE": ""}
    reading = read(environ=platform)
    assert reading.settings is not None
    assert (reading.settings.port, reading.settings.vertex_predict_route) == (1, "/p")
    assert reading.settings.vertex_health_route is None
    assert reading.merged.origin(("port",)) == ("environment", "AIP_HTTP_PORT")
    config = write(tmp_path, "{port: 2, vertex_predict_route: /q}")
    reading = read(config=config, environ=platform)
    assert reading.settings is not None
    assert (reading.settings.port, reading.settings.vertex_predict_route) == (2, "/q")
    assert reading.merged.origin(("port",)) == ("file", f"{config}:1")
    assert load(environ=platform | {f"{PREFIX}PORT": "3"}).port == 3
    assert load({"port": 4}, environ=platform).port == 4
    assert load(environ={"SAGEMAKER_BIND_TO_PORT": "5"}).port == 5


def test_platforms_in_the_environment_are_a_list() -> None:
    assert load(environ={}).platforms == ["kserve_v1", "torchserve", "sagemaker", "vertex"]
    assert load(environ={f"{PREFIX}PLATFORMS": "vertex, sagemaker"}).platforms == [
        "vertex",
        "sagemaker",
    ]
    assert load(environ={f"{PREFIX}PLATFORMS": ""}).platforms == []


def test_models_in_the_environment_are_a_list_of_specs() -> None:
    settings = load(environ={f"{PREFIX}MODELS": "random:resnet18, /bundles/a.safetensors"})
    assert [m.spec for m in settings.models] == ["random:resnet18", "/bundles/a.safetensors"]


def test_a_model_in_the_environment_or_as_a_flag_can_have_a_name() -> None:
    environ = {f"{PREFIX}MODELS": "cats=/mnt/models,./a=b.safetensors,/x/a=b"}
    rows = [(m.name, m.spec) for m in load(environ=environ).models]
    assert rows == [("cats", "/mnt/models"), (None, "./a=b.safetensors"), (None, "/x/a=b")]
    (row,) = load({"models": ["cats=torchvision:resnet18"]}, environ={}).models
    assert (row.name, row.spec) == ("cats", "torchvision:resnet18")


def test_a_model_setting_in_the_environment_or_as_a_flag_goes_to_every_model(
    tmp_path: Path,
) -> None:
    config = write(
        tmp_path, "models: [{spec: a, max_batch: 4, precision: bf16}, {spec: b, max_batch: 8}]"
    )
    settings = load({"precision": "fp32"}, config=config, environ={f"{PREFIX}MAX_QUEUE": "7"})
    rows = [(m.spec, m.max_batch, m.precision, m.max_queue) for m in settings.models]
    assert rows == [("a", 4, "fp32", 7), ("b", 8, "fp32", 7)]


@pytest.mark.parametrize(
    ("given", "devices", "limits"),
    [
        ({}, ["cpu"], (32, 256)),
        ({}, ["cuda:0"], (256, 1024)),
        ({}, ["cpu", "cuda:1"], (256, 1024)),
        ({"max_batch": 64}, ["cpu"], (64, 256)),
        ({"max_batch": 65}, ["cpu"], (65, 260)),
        ({"max_batch": 1024}, ["cuda:0"], (1024, 4096)),
        ({"max_queue": 10}, ["cuda:0"], (256, 10)),
        ({"max_batch": 8, "max_queue": 300}, ["cuda:0"], (8, 300)),
    ],
)
def test_limits_that_are_unset_depend_on_the_devices(
    given: dict[str, Any], devices: list[str], limits: tuple[int, int]
) -> None:
    assert ModelSettings(spec="a", **given).limits(devices) == limits


def test_a_model_setting_in_the_environment_goes_to_models_given_as_flags() -> None:
    settings = load({"models": ["a", "b"]}, environ={f"{PREFIX}MAX_DELAY_MS": "5"})
    assert [(m.spec, m.max_delay_ms) for m in settings.models] == [("a", 5), ("b", 5)]


def test_devices_as_a_flag_are_a_list_as_in_the_environment() -> None:
    assert load({"device": "cpu, cpu"}, environ={}).models[0].device == ["cpu", "cpu"]
    assert load({"device": "cpu"}, environ={}).models[0].device == "cpu"


def test_a_model_setting_applies_to_the_embedded_model_too() -> None:
    settings = load(environ={f"{PREFIX}DEVICE": "cpu,cpu"})
    assert settings.models[0].spec == "builtin:resnet10-cifar10"
    assert settings.models[0].device == ["cpu", "cpu"]


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting() -> None:
    environ = {
        "RESNET_SERVE_PORT": "tcp://10.0.0.1:8000",
        "RESNET_SERVE_SERVICE_HOST": "10.0.0.1",
        "RESNET_SERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load(environ=environ) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1", ["prot", "unknown setting", "did you mean port?"]),
        ("zzz: 1", ["zzz", "allowed: host, port"]),
        ("port: eighty", ["port", "whole number", "'eighty'"]),
        ("host: ''", ["host", "an address, a name or unix:PATH"]),
        ("port: 70000", ["port", "at most 65535", "70000"]),
        ("models: []", ["models", "at least 1"]),
        ("models: [{name: a}]", ["models[0].spec", "missing"]),
        ("models: [{spec: ''}]", ["models[0].spec", "write a SPEC such as builtin:resnet10"]),
        ("models: [{spec: a, engine: triton}]", ["models[0].engine", "'auto'", "'triton'"]),
        ("models: [{spec: a, max_bach: 2}]", ["models[0].max_bach", "did you mean max_batch?"]),
        (
            "models: [{spec: a, device: gpu}]",
            ["models[0].device", "cuda:N, or a list", "'gpu'"],
        ),
        ("models: [{spec: a, device: 3}]", ["models[0].device: ", "3"]),
        ("models: [{spec: a, name: x y}]", ["models[0].name", "'x y'"]),
        ("models: [{spec: a, name: x/y}]", ["models[0].name", "'x/y'"]),
        ("models: [{spec: a, name: ''}]", ["models[0].name", "it is empty"]),
        (f"models: [{{spec: a, name: {'x' * 101}}}]", ["models[0].name", "at most 100"]),
        ("models: [{spec: a, name: n}, {spec: b, name: n}]", ["models", "'n'", "twice"]),
        ("device: cpu", ["device", "is a setting of a model", "models[0].device"]),
        ("workers: 0", ["workers", "at least 1", "0"]),
        ("models: 3", ["models", "must be a list", "3"]),
        ("platforms: [torchserv]", ["platforms[0]", "'kserve_v1'", "did you mean torchserve?"]),
        ("platforms: torchserve", ["platforms", "must be a list"]),
        ("vertex_predict_route: predict", ["vertex_predict_route", "a path such as /predict"]),
        ("[1, 2]", ["mapping", "list"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    config = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(config=config, environ={})
    message = str(caught.value)
    assert "\n" not in message
    for word in [config, *words]:
        assert word in message


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({f"{PREFIX}PROT": "1"}, ["RESNET_SERVE_PROT", "did you mean RESNET_SERVE_PORT?"]),
        ({f"{PREFIX}PORT": "x"}, ["RESNET_SERVE_PORT: must be a ", "whole number", "'x'"]),
        ({f"{PREFIX}CONFIG": ""}, ["RESNET_SERVE_CONFIG: the path is empty"]),
        ({f"{PREFIX}CONFIG": "/nowhere.yaml"}, ["/nowhere.yaml", "No such file"]),
        ({f"{PREFIX}ARCHITECTURE": "{}"}, ["RESNET_SERVE_ARCHITECTURE", "only a file"]),
        ({f"{PREFIX}MAX_BATCH": "0"}, ["RESNET_SERVE_MAX_BATCH: must be at least 1"]),
        ({f"{PREFIX}PLATFORMS": "vertx"}, ["PLATFORMS", "platforms[0]", "did you mean vertex?"]),
        ({"AIP_HTTP_PORT": "http"}, ["AIP_HTTP_PORT: must be a whole number", "'http'"]),
        ({"SAGEMAKER_BIND_TO_PORT": "0x50"}, ["SAGEMAKER_BIND_TO_PORT: must ", "'0x50'"]),
        ({"AIP_HEALTH_ROUTE": "health"}, ["AIP_HEALTH_ROUTE: ", "a path such as", "'health'"]),
        ({"AIP_PREDICT_ROUTE": "/a{b}"}, ["AIP_PREDICT_ROUTE: ", "a path such as", "'/a{b}'"]),
    ],
)
def test_a_wrong_environment_is_said_in_one_line(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environ=environ)
    message: Any = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_without_the_extra_grpc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.config.setting_types.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^--grpc-port: .* pip install 'grpcio"):
        load({"grpc_port": 0}, environ={})
