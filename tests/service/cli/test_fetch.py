"""`resnet-serve fetch`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.interchange import download, torchvision_weights
from tests.support.commands import run
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.unruly import answer, unruly

CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "RESNET_SERVE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("RESNET_SERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    with fake_hub() as running:
        files = {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": CONTENT}
        running.repositories["me/net"] = files
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_each_file_is_shown_and_is_there_the_second_time(hub: FakeHub, tmp_path: Path) -> None:
    path = tmp_path / "cache/hf/me/net" / hub.commit / "model.safetensors"
    line = f"hf:me/net: {path}, 25,600 bytes, sha256 {SHA256}"
    first = run("fetch", "hf:me/net", "builtin:resnet20-cifar10", "random:resnet18")
    lines = first.stdout.splitlines()
    assert line in lines
    assert lines[-2:] == [
        "builtin:resnet20-cifar10: nothing to fetch",
        "random:resnet18: nothing to fetch",
    ]
    assert path.read_bytes() == CONTENT
    again = run("fetch", "hf:me/net").stdout.splitlines()
    assert again[-1] == f"{line}, already there"
    assert len(again) == 2


def test_what_fails_does_not_keep_the_others_from_being_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    wanted = ("hf:no/such", "torchvision:resnet20", "nowhere.safetensors", "hf:me/net")
    done = run("fetch", *wanted, status=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("resnet-serve: ")]
    assert [line.split(": ")[1] for line in errors] == list(wanted[:3])
    assert "does not exist or is private" in errors[0]
    assert "did you mean resnet" in errors[1]
    assert "no such file" in errors[2]
    assert SHA256 in done.stdout


def test_json_has_a_row_for_each_spec(hub: FakeHub) -> None:
    done = run("fetch", "--json", "hf:me/net", "builtin:resnet20-cifar10", "hf:no/such", status=1)
    net, embedded, missing = json.loads(done.stdout)
    assert [file["bytes"] for file in net["files"]] == [28, len(CONTENT)]
    assert net["files"][1]["sha256"] == SHA256
    assert [file["already_there"] for file in net["files"]] == [False, False]
    assert (embedded["files"], embedded["error"], net["error"]) == ([], None, None)
    assert "does not exist" in missing["error"]


def test_a_settings_file_names_models_and_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    cache = tmp_path / "elsewhere"
    settings.write_text(
        f"cache_dir: {cache}\nmodels:\n  - spec: hf:me/net\n  - spec: random:resnet20\n"
    )
    os.environ.pop("RESNET_SERVE_CACHE_DIR")
    printed = run("fetch", "--config", settings).stdout
    assert str(cache / "hf/me/net") in printed
    assert "random:resnet20: nothing to fetch" in printed
    third = tmp_path / "third"
    assert str(third / "hf") in run("fetch", "--cache-dir", third, "hf:me/net").stdout


def test_torchvisions_weights_are_put_where_serve_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = torchvision_weights.Published("resnet18", "IMAGENET1K_V9", SHA256[:8], 232, 70.5, 90.25)
    monkeypatch.setattr(torchvision_weights, "WEIGHTS", (row,))
    with unruly(answer(200, CONTENT)) as server:
        monkeypatch.setattr(torchvision_weights, "URL", server.url)
        done = run("fetch", "--cache-dir", tmp_path, "torchvision:resnet18")
    assert f"{tmp_path}/torchvision/{row.file}, 25,600 bytes, sha256 {SHA256}" in done.stdout
    assert "downloading" in done.stderr
    assert "already there" in run("fetch", "--cache-dir", tmp_path, "torchvision:resnet18").stdout


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    line = run("fetch", "--cache-dir", tmp_path / "file", "hf:me/net", status=1).stderr
    assert f"{tmp_path}/file" in line
    assert "Not a directory" in line


def test_the_token_is_never_shown(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private.add("me/net")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = run("fetch", "hf:me/net", "hf:no/such", status=1)
    shown = run("config", "show").output
    kept = "".join(path.read_text("latin-1") for path in tmp_path.rglob("*.json"))
    assert SHA256 in done.stdout
    assert hub.token not in done.output + shown + kept
