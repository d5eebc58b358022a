"""Who may ask what, and that nobody sees the keys."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.config.keys import read
from service.config.loading import load
from service.config.settings import Settings
from service.config.variables import PREFIX
from service.errors import ConfigError, Forbidden, Unauthorized
from service.http.access import (
    ADMIN_METHODS,
    OPEN,
    OPEN_FOLDERS,
    ApiKeyMiddleware,
    Keys,
    digest,
    matches,
)
from service.http.app import ENDPOINTS
from service.http.listener import check_exposure, listen
from service.http.routers import classify
from service.inference.jobs import Priority

API, OTHER, ADMIN = "an-api-key-0123456789", "another-key-0123456789", "an-admin-key-0123456789"


def keys(**given: Any) -> Keys:
    return Keys(Settings.model_validate(given))


def scope(method: str, path: str, **headers: str) -> dict[str, Any]:
    sent = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": sent, "state": {}}


BOTH = {"api_keys": [API, OTHER], "admin_keys": [ADMIN]}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {API}"},
        {"authorization": f"bearer {OTHER}"},
        {"x_api_key": OTHER},
        {"x_api_key": ADMIN},
        {"authorization": "Basic of-a-proxy-before-us", "x_api_key": API},
    ],
)
def test_any_key_is_taken_in_either_header(headers: dict[str, str]) -> None:
    keys(**BOTH).check(scope("POST", "/v1/classify", **headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_api_key": ""},
        {"x_api_key": API[:-1]},
        {"x_api_key": f"{API}x"},
        {"x_api_key": API.upper()},
        {"authorization": API},
        {"authorization": f"Basic {API}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {API},{OTHER}"},
        # Only the first is looked at.
        {"authorization": "Bearer wrong", "x_api_key": API},
    ],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/v2/models/a", "/nowhere", "//"])
def test_all_else_is_refused_wherever_it_goes(headers: dict[str, str], path: str) -> None:
    with pytest.raises(Unauthorized):
        keys(**BOTH).check(scope("POST", path, **headers))


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/health/ready", "/web/app.js"])
def test_who_cannot_have_a_key_yet_needs_none(path: str) -> None:
    keys(**BOTH).check(scope("GET", path))


def test_a_prediction_by_put_is_no_change_of_the_models() -> None:
    for path in ("/v1/classify", "/v1/embed", "/v1/explain"):
        keys().check(scope("PUT", path))
        keys(**BOTH).check(scope("PUT", path, x_api_key=API))
        with pytest.raises(Unauthorized):
            keys(**BOTH).check(scope("PUT", path))


@pytest.mark.parametrize("path", ["/ping", "/up"])
def test_a_platforms_health_check_needs_none(path: str) -> None:
    both = keys(**BOTH, vertex_health_route="/up", vertex_predict_route="/up")
    both.check(scope("GET", path))
    with pytest.raises(Unauthorized):  # A prediction may have the same path.
        both.check(scope("POST", path))
    with pytest.raises(Unauthorized):
        keys(**BOTH, platforms=["kserve_v1"]).check(scope("GET", path))


def test_a_verb_of_a_model_changes_nothing() -> None:
    keys().check(scope("PUT", "/v1/models/a:predict"))
    with pytest.raises(Unauthorized):
        keys(**BOTH).check(scope("PUT", "/v1/models/a:predict"))
    for path in ("/v1/models/a:", "/v1/models/:a", "/v1/models/a:/b", "/v1/models/a"):
        with pytest.raises(Forbidden):
            keys().check(scope("PUT", path))


def test_without_keys_everybody_may_use_and_nobody_may_change() -> None:
    open_to_all = keys()
    open_to_all.check(scope("POST", "/v1/classify"))
    for method in ("PUT", "DELETE"):
        with pytest.raises(Forbidden, match="set admin_keys or admin_keys_file"):
            open_to_all.check(scope(method, "/v1/models/a"))


def test_models_are_changed_with_an_admin_key_only() -> None:
    both = keys(**BOTH)
    both.check(scope("PUT", "/v1/models/a", x_api_key=ADMIN))
    with pytest.raises(Forbidden, match="needs an admin key"):
        both.check(scope("PUT", "/v1/models/a", x_api_key=API))
    with pytest.raises(Unauthorized):
        both.check(scope("DELETE", "/v1/models/a"))
    with pytest.raises(Unauthorized):
        keys(admin_keys=[ADMIN]).check(scope("DELETE", "/v1/models/a", x_api_key=API))
    with pytest.raises(Forbidden, match="set admin_keys"):
        keys(api_keys=[API]).check(scope("DELETE", "/v1/models/a", x_api_key=API))


@pytest.mark.parametrize(
    ("given", "key", "raised"),
    [
        ({}, None, False),
        ({}, "guess-0123456789", False),
        (BOTH, API, True),
        (BOTH, ADMIN, True),
        ({"admin_keys": [ADMIN]}, None, False),
        ({"admin_keys": [ADMIN]}, ADMIN, True),
        (BOTH | {"raise_priority": "admin_key"}, API, False),
        (BOTH | {"raise_priority": "admin_key"}, ADMIN, True),
        ({"raise_priority": "anyone"}, None, True),
    ],
)
def test_the_highest_priority_is_for_those_who_are_known(
    given: dict[str, Any], key: str | None, raised: bool
) -> None:
    headers = scope("POST", "/v2/models/a/infer", **({"x_api_key": key} if key else {}))["headers"]
    permitted = keys(**given).permitted
    assert permitted(headers, Priority.FIRST) == (Priority.FIRST if raised else Priority.NORMAL)
    for priority in (Priority.NORMAL, Priority.LAST):
        assert permitted(headers, priority) == priority


SEND_ONE = "send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
NO_ADMINS = (
    "models cannot be changed by requests: no admin key is configured; "
    "set admin_keys or admin_keys_file"
)


@pytest.mark.parametrize(
    ("given", "method", "path", "key", "error"),
    [
        (BOTH, "GET", "/v1/models", None, Unauthorized(f"a key is required; {SEND_ONE}")),
        (BOTH, "GET", "/v1/models", "x", Unauthorized(f"unknown key; {SEND_ONE}")),
        (BOTH, "PUT", "/v1/models/a", None, Unauthorized(f"a key is required; {SEND_ONE}")),
        (
            BOTH,
            "PUT",
            "/v1/models/a",
            API,
            Forbidden("this request needs an admin key, and the key is not one"),
        ),
        ({}, "PUT", "/v1/models/a", None, Forbidden(NO_ADMINS)),
        ({}, "POST", "/v2/repository/models/a/load", None, Forbidden(NO_ADMINS)),
        # What changes no model is everybody's, though there is no such method or path.
        ({}, "GET", "/v1/models/a", None, None),
        ({}, "PUT", "/v1/models", None, None),
        ({}, "DELETE", "/v1/classify", None, None),
        (BOTH, "GET", "/v1/models/a", API, None),
        (BOTH, "DELETE", "/v1/classify", API, None),
    ],
)
def test_a_refusal_says_what_to_do(
    given: dict[str, list[str]], method: str, path: str, key: str | None, error: Exception | None
) -> None:
    headers = {"x_api_key": key} if key else {}
    refused: Exception | None = None
    try:
        keys(**given).check(scope(method, path, **headers))
    except (Unauthorized, Forbidden) as caught:
        refused = caught
    assert (type(refused), str(refused)) == (type(error), str(error))


Message = MutableMapping[str, Any]


def through(guarded: Scope) -> tuple[Scope | None, list[Message]]:
    """What comes to the application behind the guard, and what is answered."""
    came: list[Scope] = []
    answered: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        answered.append(message)

    async def app(inner: Scope, inner_receive: Receive, inner_send: Send) -> None:
        came.append(inner)
        assert await inner_receive() == {"type": "http.request"}
        await inner_send({"type": "of the application"})

    asyncio.run(ApiKeyMiddleware(app, keys(**BOTH))(guarded, receive, send))
    return (came[0] if came else None), answered


def test_only_who_has_a_key_comes_to_the_application() -> None:
    asked = scope("POST", "/v1/classify", x_api_key=API)
    came, answered = through(asked)
    assert came is asked
    assert answered == [{"type": "of the application"}]

    came, answered = through(scope("POST", "/v1/classify"))
    assert came is None
    start, body = answered
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    assert json.loads(body["body"])["detail"] == f"a key is required; {SEND_ONE}"

    came, answered = through(scope("POST", "/v2/models/a/infer"))
    assert came is None
    assert json.loads(answered[1]["body"]) == {"error": f"a key is required; {SEND_ONE}"}


def test_the_start_of_the_service_needs_no_key() -> None:
    starting: Scope = {"type": "lifespan"}
    came, answered = through(starting)
    assert came is starting
    assert answered == [{"type": "of the application"}]


IMAGES = ("/v1/classify", "/v1/embed", "/v1/explain")


def test_every_route_that_is_there_is_guarded() -> None:
    """A route that is added must be open on purpose, and what changes something for admins."""
    both = keys(**BOTH)
    every = [*classify.ROUTES, *(r for each in ENDPOINTS for r in each.router.routes)]
    routes = [route for route in every if isinstance(route, Route)]
    assert len(routes) > 8
    for route in routes:
        for method in route.methods or ():
            path = route.path.replace("{name}", "a").replace("{file}", "a")
            if path in OPEN or path.startswith(OPEN_FOLDERS):
                assert method in {"GET", "HEAD"}
                continue
            with pytest.raises(Unauthorized):
                both.check(scope(method, path))
            if method not in {"GET", "HEAD"} and not path.startswith(IMAGES):
                assert method in ADMIN_METHODS
                with pytest.raises(Forbidden):
                    both.check(scope(method, path, x_api_key=API))


def test_keys_can_be_replaced_while_the_service_runs() -> None:
    live = keys(api_keys=[API])
    live.update(Settings.model_validate({"api_keys": [OTHER]}))
    live.check(scope("GET", "/v1/models", x_api_key=OTHER))
    with pytest.raises(Unauthorized):
        live.check(scope("GET", "/v1/models", x_api_key=API))


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def counting(a: bytes, b: bytes, compare: Any = hmac.compare_digest) -> bool:
        compared.append(b)
        return bool(compare(a, b))

    monkeypatch.setattr(hmac, "compare_digest", counting)
    known = [digest(key.encode()) for key in (API, OTHER, ADMIN)]
    for key, matched in ((API, True), (ADMIN, True), ("wrong", False), ("", False)):
        compared.clear()
        assert matches(key.encode(), known) is matched
        assert compared == known


def test_keys_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the shop\n\n  {OTHER}\n")
    path.chmod(0o640)
    environ = {
        f"{PREFIX}API_KEYS": f"{API}, {API}2",
        f"{PREFIX}API_KEYS_FILE": str(path),
        f"{PREFIX}ADMIN_KEYS": ADMIN,
    }
    settings = load(environ=environ)
    assert [key.get_secret_value() for key in settings.api_keys] == [API, f"{API}2", OTHER]
    assert [key.get_secret_value() for key in settings.admin_keys] == [ADMIN]


def test_a_file_of_keys_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# für den Laden\n{API}\n", "utf-8")
    path.chmod(0o600)
    assert [key.get_secret_value() for key in read(path)] == [API]
    code = (
        "import locale, pathlib, sys; from service.config import keys; "
        "assert locale.getencoding() != 'UTF-8'; [key] = keys.read(pathlib.Path(sys.argv[1])); "
        "print(key.get_secret_value())"
    )
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, str(path)]
    said = subprocess.run(command, env=os.environ | plain, capture_output=True, check=False)
    assert (said.stdout.decode().strip(), said.stderr) == (API, b"")


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0, ["No such file"]),
        (b"", 0o600, ["contains no keys"]),
        (b"# nothing\n", 0o600, ["contains no keys"]),
        (API.encode(), 0o644, ["only by its owner", "chmod 600"]),
        (API.encode(), 0o660, ["only by its owner", "chmod 600"]),
        (f"{API}\nsecret-but-short".encode()[:-1], 0o600, ["line 2", "at least 16"]),
        (b"secret \xc3\xa9 0123456789 abcdef", 0o600, ["line 1", "ASCII"]),
        (b"\xff\xfe", 0o600, ["not UTF-8 text"]),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_one_line(
    tmp_path: Path, content: bytes | None, mode: int, words: list[str]
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load(environ={f"{PREFIX}ADMIN_KEYS_FILE": str(path)})
    message = str(caught.value)
    assert message.startswith("RESNET_SERVE_ADMIN_KEYS_FILE: ")
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message
    assert "secret" not in message
    assert API not in message


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize(
    "text",
    [
        "{name}: [secret]",
        "{name}: secret",
        "{name}: [secret, [secret]]",
        "{name}: [*secret]",
        "{name}: [secret",
        "{name}: {{secret: secret}}",
        "{name}: ['secret key with spaces']",
        "{name}: {{secret: 1, secret: 2}}",
    ],
)
def test_no_message_about_a_configuration_has_a_key(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text.format(name=name))
    with pytest.raises(ConfigError) as caught:
        load(config=str(path), environ={})
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load(environ={f"{PREFIX}{name.upper()}": "secret"})
    variable = f"{PREFIX}{name.upper()}"
    assert str(caught.value).startswith(f"{variable}: {name}[0]: must be at least 16")
    assert "secret" not in str(caught.value)


def test_settings_show_their_keys_only_on_purpose() -> None:
    settings = Settings.model_validate(BOTH)
    shown = repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    shown += json.dumps(settings.model_dump(mode="json"))
    for key in (API, OTHER, ADMIN):
        assert key not in shown
    assert Settings.model_validate(json.loads(json.dumps(settings.revealed()))) == settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_hosts_are_served_with_keys_or_on_purpose(host: str) -> None:
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    with listen(host, 0) as listeners:
        with pytest.raises(ConfigError) as caught:
            check_exposure(Settings(host=host), listeners)
        for word in ("api_keys", "api_keys_file", "host: 127.0.0.1", "allow_anonymous: true"):
            assert word in str(caught.value)
        with pytest.raises(ConfigError):
            check_exposure(Settings.model_validate({"admin_keys": [ADMIN]}), listeners)
        check_exposure(Settings(host=host, allow_anonymous=True), listeners)
        check_exposure(Settings.model_validate({"api_keys": [API]}), listeners)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_this_host_needs_no_keys(host: str) -> None:
    with listen(host, 0) as listeners:
        check_exposure(Settings(host=host), listeners)


@pytest.mark.parametrize("origin", ["example.org", "https://a/path", "https://", "ftp://a", "null"])
def test_an_origin_is_a_scheme_and_a_host(origin: str) -> None:
    with pytest.raises(ConfigError, match="CORS_ORIGINS: must be origins"):
        load(environ={f"{PREFIX}CORS_ORIGINS": f"https://example.org, {origin}"})
