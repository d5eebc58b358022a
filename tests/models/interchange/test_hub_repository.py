from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.interchange import download
from models.interchange.connection import DownloadError
from models.interchange.hub_repository import snapshot
from tests.support.fake_hub import FakeHub, fake_hub

TIMM = json.dumps({"architecture": "resnet18"}).encode()
WEIGHTS = bytes(range(256)) * 100
NAME = "me/net"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "library"))
    with fake_hub() as running:
        running.repositories[NAME] = {"config.json": TIMM, "model.safetensors": WEIGHTS}
        monkeypatch.setenv("HF_ENDPOINT", f"{running.url}/")
        yield running


def refusal(spec: str, cache: Path) -> str:
    with pytest.raises(DownloadError, match=r"\A[^\n]+\Z") as caught:
        snapshot(spec, cache)
    return str(caught.value)


def test_a_repository_is_downloaded_once_and_at_one_commit(hub: FakeHub, tmp_path: Path) -> None:
    first = snapshot(NAME, tmp_path)
    assert (first.folder, first.commit) == (tmp_path / NAME / hub.commit, hub.commit)
    assert (first.weights, first.kind) == ("model.safetensors", "timm")
    assert first.downloaded == {"config.json", "model.safetensors"}
    assert (first.folder / first.weights).read_bytes() == WEIGHTS
    paths = [path for _, path, _, _ in hub.asked]
    assert paths[0] == f"/{NAME}/resolve/main/config.json"
    assert all(f"/resolve/{hub.commit}/" in path for path in paths[2:])
    asked = len(hub.asked)
    assert snapshot(NAME, tmp_path) == first
    assert len(hub.asked) == asked
    assert not list(tmp_path.rglob("*.part"))


def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.busy = 2
    assert snapshot(NAME, tmp_path).commit == hub.commit
    assert hub.busy == 0


def test_a_damaged_file_is_downloaded_again(hub: FakeHub, tmp_path: Path) -> None:
    path = snapshot(NAME, tmp_path).folder / "model.safetensors"
    path.write_bytes(WEIGHTS[::-1])
    again = snapshot(NAME, tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert again.downloaded == {"model.safetensors"}


def test_a_later_commit_is_used_when_it_is_asked_for(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = snapshot(NAME, tmp_path)
    assert snapshot(NAME, tmp_path, renew=True).downloaded == frozenset()
    hub.commit, hub.repositories[NAME]["model.safetensors"] = "b" * 40, WEIGHTS * 2
    assert snapshot(NAME, tmp_path) == first
    later = snapshot(NAME, tmp_path, renew=True)
    assert (later.commit, (later.folder / later.weights).read_bytes()) == ("b" * 40, WEIGHTS * 2)
    assert snapshot(NAME, tmp_path) == later
    assert (first.folder / first.weights).read_bytes() == WEIGHTS
    # Without a network, what is there is good.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert snapshot(NAME, tmp_path, renew=True) == later


def test_a_token_opens_private_repositories_and_goes_nowhere_else(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.private.add(NAME)
    caplog.set_level(logging.DEBUG)
    said = refusal(NAME, tmp_path)
    assert said == "does not exist or is private; set HF_TOKEN to a token that may read it"
    monkeypatch.setenv("HF_TOKEN", "hf_another-token")
    assert refusal(NAME, tmp_path).endswith("the token in HF_TOKEN may not read it")
    monkeypatch.setenv("HF_TOKEN", f" {hub.token}\n")
    found = snapshot(NAME, tmp_path)
    assert {authorization for _, _, authorization, _ in hub.large} == {None}
    kept = "".join(path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert hub.token not in kept + caplog.text + repr(found)
    assert "signature" not in kept + caplog.text


def test_the_token_file_of_the_library_is_read(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private.add(NAME)
    (tmp_path / "library").mkdir()
    (tmp_path / "library/token").write_text(f"{hub.token}\n")
    assert snapshot(NAME, tmp_path).commit
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("hf_another-token")
    monkeypatch.setenv("HF_TOKEN_PATH", str(elsewhere))
    assert "may not read it" in refusal(NAME, tmp_path / "other")


def test_what_is_wrong_is_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories |= {
        "me/gated": {},
        "google/vit": {"config.json": b'{"model_type": "vit"}'},
        "me/empty": {"config.json": TIMM},
        "me/none": {},
        "me/list": {"config.json": b"[]"},
    }
    hub.gated.add("me/gated")
    assert "is gated; accept its conditions at" in refusal("me/gated", tmp_path)
    assert "has no revision v9" in refusal(f"{NAME}@v9", tmp_path)
    assert "does not exist or is private" in refusal("no/such", tmp_path)
    assert "holds vit, not a ResNet" in refusal("google/vit", tmp_path)
    assert "neither model.safetensors nor pytorch_model.bin" in refusal("me/empty", tmp_path)
    assert refusal("me/none", tmp_path) == "has no config.json"
    assert refusal("me/list", tmp_path) == "config.json: not a JSON object"
    for spec in ("me", "../..", "me/../x", "me/net@../x", "me/net@a/../b", "me/net@a?b", ".a/b"):
        assert "name a repository as OWNER/NAME" in refusal(spec, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "schlüssel")
    assert "a token is printable ASCII" in refusal(NAME, tmp_path)
    assert "schl" not in refusal(NAME, tmp_path)


def test_damage_on_the_way_leaves_nothing_behind(hub: FakeHub, tmp_path: Path) -> None:
    hub.damage = b"!"
    assert "nothing was kept" in refusal(NAME, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("model")]
    hub.damage = b""
    assert snapshot(NAME, tmp_path).weights == "model.safetensors"


def test_an_interrupted_download_is_continued(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.breaks_at = 5000
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    assert "ended early" in refusal(NAME, tmp_path)
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.breaks_at = None
    found = snapshot(NAME, tmp_path)
    assert hub.large[-1][3] == "bytes=5000-"
    assert (found.folder / found.weights).read_bytes() == WEIGHTS


def test_all_parts_of_a_sharded_model_are_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    files = hub.repositories[NAME]
    files["model-1-of-2.safetensors"] = files.pop("model.safetensors")
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "names model-2-of-2.safetensors, which it does not have" in refusal(NAME, tmp_path)
    files["model-2-of-2.safetensors"] = WEIGHTS[::-1]
    found = snapshot(NAME, tmp_path)
    assert found.weights == "model.safetensors.index.json"
    assert (found.folder / "model-2-of-2.safetensors").read_bytes() == WEIGHTS[::-1]
    for outside in ("../x", "/etc/passwd", "a/b"):
        index["weight_map"]["b"] = outside
        files["model.safetensors.index.json"] = json.dumps(index).encode()
        hub.commit = os.urandom(20).hex()
        assert "which is no file beside it" in refusal(NAME, tmp_path / "other")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nothing_is_asked(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert refusal(NAME, tmp_path) == f"is not in the cache {tmp_path}, and {variable} is set"
    monkeypatch.delenv(variable)
    found = snapshot(NAME, tmp_path)
    asked = len(hub.asked)
    monkeypatch.setenv(variable, "1")
    assert snapshot(NAME, tmp_path) == snapshot(NAME, tmp_path, renew=True) == found
    assert len(hub.asked) == asked


def test_what_the_library_has_downloaded_is_used(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library/hub/models--me--net"
    folder = library / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (library / "refs").mkdir()
    (library / "refs/main").write_text("c" * 40)
    (folder / "config.json").write_bytes(TIMM)
    assert snapshot(NAME, tmp_path / "ours").commit == hub.commit  # It lacks the weights.
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    assert snapshot(NAME, tmp_path / "other").folder == folder
    assert snapshot(f"{NAME}@{'c' * 40}", tmp_path / "other").folder == folder
    # To fetch is to have it in our own cache.
    assert snapshot(NAME, tmp_path / "other", renew=True).commit == hub.commit
