"""What is deployed, and what stands in front of it; without a cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.types import Message, Receive, Scope, Send

from service.errors import ConfigError

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    # Those of Ray, when it is imported.
    pytest.mark.filterwarnings("ignore"),
]

ROOT = Path(__file__).parents[2]


def built(**args: Any) -> tuple[Any, list[Any]]:
    """The ingress and the models of an application."""
    from deploy.ray.app import app

    ingress = app(args)._bound_deployment
    return ingress, [model._bound_deployment for model in ingress.init_args[1:]]


def test_a_deployment_for_each_model() -> None:
    rows = [
        {"spec": "builtin:resnet20-cifar10", "device": ["cuda:0", "cuda:1"], "max_queue": 300},
        {"spec": "path/to/mine.safetensors"},
        {"spec": "random:resnet20", "name": "untrained"},
    ]
    ingress, models = built(models=rows)
    assert ingress.name == "ingress"
    assert [model.name for model in models] == ["resnet20-cifar10", "mine", "untrained"]
    assert [model.ray_actor_options["num_gpus"] for model in models] == [2, 0, 0]
    assert models[0].max_queued_requests == 300
    assert models[0].max_ongoing_requests > 300
    assert [model.init_args[0]["models"] for model in models] == [[row] for row in rows]


def test_engines_are_given_no_keys() -> None:
    ingress, (model,) = built(api_keys=["a-key-of-many-letters"], max_pixels=1000)
    assert ingress.init_args[0]["api_keys"] == ["a-key-of-many-letters"]
    assert model.init_args[0].keys() == {"max_pixels", "models"}


def test_settings_of_a_file_and_over_it(tmp_path: Path) -> None:
    config = tmp_path / "resnet-serve.yaml"
    config.write_text(yaml.safe_dump({"max_pixels": 1000, "request_timeout_ms": 5}))
    ingress, _ = built(config=str(config), request_timeout_ms="7")
    assert ingress.init_args[0]["max_pixels"] == 1000
    assert ingress.init_args[0]["request_timeout_ms"] == 7


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"max_pixel": 1}, "max_pixel: unknown setting; did you mean max_pixels?"),
        ({"config": "/nowhere.yaml"}, "/nowhere.yaml: No such file"),
        (
            {"models": [{"spec": "a/x.onnx"}, {"spec": "b/x.onnx"}]},
            "models[1].name: 'x' is already",
        ),
        ({"models": [{"spec": "b/ingress.onnx"}]}, "models[0].name: 'ingress' is already"),
    ],
)
def test_a_configuration_that_cannot_be(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        built(**args)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_our_yaml_is_what_ray_and_we_expect() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "service.ray.app:app"
    ingress, models = built(**application.args)
    named = {deployment.name for deployment in application.deployments}
    assert named == {ingress.name, *(model.name for model in models)}


def test_only_replicas_import_torch() -> None:
    code = "import service.ray.app, service.ray.repository, sys; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    assert subprocess.run(command, check=False).returncode == 0


def started(status: int, kind: bytes, *more: tuple[bytes, bytes]) -> Message:
    headers = [(b"content-type", kind), *more]
    return {"type": "http.response.start", "status": status, "headers": headers}


JSON, TEXT = b"application/json", b"text/plain"
TWICE = ((b"x-request-id", b"mine"), (b"X-Request-ID", b"mine"))


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([started(200, JSON, *TWICE)], 200),
        ([started(503, JSON, *TWICE)], 503),
        ([started(404, TEXT, *TWICE)], 404),
        ([started(500, TEXT)], 503),
        ([started(503, TEXT)], 503),
        ([started(429, TEXT)], 429),
        ([started(408, TEXT)], 504),
        ([], 503),  # Ray's answer where an ingress died.
    ],
)
def test_what_ray_refuses_is_said_as_all_else_is(messages: list[Message], status: int) -> None:
    from service.ray.proxy import ProblemMiddleware, middlewares

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in [*messages, {"type": "http.response.body", "body": b"what Ray says"}]:
            if messages:
                await send(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    assert [str(each) for each in middlewares()] == ["Middleware(ProblemMiddleware)"]
    scope = {"type": "http", "path": "/v1/classify", "headers": [(b"x-request-id", b"mine")]}
    asyncio.run(ProblemMiddleware(app)(scope, receive, send))
    start, body = sent
    headers = start["headers"]
    assert start["status"] == status
    assert [value for name, value in headers if name == b"x-request-id"] == [b"mine"]
    assert (b"x-content-type-options", b"nosniff") in headers
    ours = not messages or (messages[0]["headers"][0][1] == TEXT and status != 404)
    assert dict(headers)[b"content-type"].startswith(b"application/problem+json") == ours
    assert (b"retry-after" in dict(headers)) == (ours and status in (429, 503))
    assert (body["body"] == b"what Ray says") != ours
