"""The responses that `/openapi.json` shows, from a real service.

    python -m tests.support.api_examples --write

replaces `service/http/examples.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.conftest import client, started

ROOT = Path(__file__).parents[2]
FILE = ROOT / "service" / "http" / "examples.json"
SHIP = ROOT / "docs" / "ship.png"
DIGITS = 4
# The tags of operations that have examples.
OWN = ("Predictions", "Models", "Open Inference Protocol", "Operation")
# Which also identify the path of a model.
MODEL = "resnet10-cifar10"


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def examples_of(media: dict[str, Any]) -> list[Any]:
    """The examples of a body."""
    given = [media["example"]] if "example" in media else []
    return given + [each["value"] for each in media.get("examples", {}).values()]


def runs(method: str, operation: dict[str, Any]) -> bool:
    """Whether the reference offers to run it: it changes nothing, and what to send is known."""
    content = operation.get("requestBody", {}).get("content", {})
    media: tuple[str, dict[str, Any]] = next(iter(content.items()), ("", {}))
    known = media[0] != "application/json" or bool(examples_of(media[1]))
    return is_safe(method, operation) and known


def is_safe(method: str, operation: dict[str, Any]) -> bool:
    """Whether it changes nothing."""
    return method == "get" or "admin key" not in operation["description"]


def answered(url: str, path: str, method: str, operation: dict[str, Any]) -> Any:
    """The JSON of the response to the operation's own example, or to a picture of a ship."""
    place = url + path.format(name=MODEL, version=1)
    content = operation.get("requestBody", {}).get("content", {})
    usual = next(iter(content), None)
    if usual == "application/octet-stream":
        response = client.post(place, content=SHIP.read_bytes())
    elif usual == "multipart/form-data":
        files = [("image", (name, SHIP.read_bytes())) for name in ("first.png", "second.png")]
        response = client.post(place, files=files)
    elif usual is not None:
        response = client.post(place, json=examples_of(content["application/json"])[0])
    else:
        response = client.request(method, place)
    assert response.status_code == 200, f"{method} {path}: {response.text}"
    return response.json()


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value


def found(url: str) -> dict[str, Any]:
    """The response to each operation that changes nothing and answers in JSON."""
    document = client.get(f"{url}/openapi.json").json()
    answers = {
        operation["operationId"]: rounded(answered(url, path, method, operation))
        for path, method, operation in operations(document)
        if is_safe(method, operation)
        and operation["tags"][0] in OWN
        and "application/json" in operation["responses"].get("200", {}).get("content", {})
    }
    # Those of a version are the same.
    suffix = "OfVersion"
    return {name: answer for name, answer in answers.items() if not name.endswith(suffix)}


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    with started() as running:
        lines = [
            f"  {json.dumps(name)}: {json.dumps(answer)}"
            for name, answer in found(running.url).items()
        ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
