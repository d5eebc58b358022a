"""Models are fetched on one host and served on another that has no network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHOSEN, COMMAND, clean_environment, client, encoded, started
from tests.support import libraries
from tests.support.fake_hub import fake_hub

# A network namespace without any interface; needs no root where users may make one.
ALONE = ["unshare", "--map-root-user", "--net"]
NOBODY = "http://127.0.0.1:9"
CUT_OFF: dict[str, Any] = dict.fromkeys(
    ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_ENDPOINT"), NOBODY
)


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in clean_environment().items() if name[:3] != "HF_"}
    return subprocess.run(
        list(map(str, arguments)),
        env=clean | CHOSEN | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture
def repository(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "tiny"
    resnet = libraries.import_transformers()
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 3}
    resnet.ResNetForImageClassification(resnet.ResNetConfig(**sizes)).save_pretrained(folder)
    prepared = (
        b'{"feature_extractor_type": "ConvNextFeatureExtractor", "size": 64,'
        b' "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"preprocessor_config.json": prepared}


def test_a_cache_that_was_copied_serves_without_a_network(
    repository: dict[str, bytes], tmp_path: Path
) -> None:
    there, here, home = tmp_path / "there", tmp_path / "here", str(tmp_path / "none")
    image = tmp_path / "x.png"
    image.write_bytes(encoded())
    with fake_hub() as hub:
        hub.repositories["me/tiny"] = repository
        hub.private.add("me/tiny")
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": home}
        fetched = command(
            COMMAND, "fetch", "hf:me/tiny", RESNET_SERVE_CACHE_DIR=str(there), **online
        )
    assert fetched.returncode == 0, fetched.stderr
    assert hub.token not in fetched.stdout + fetched.stderr

    offline = CUT_OFF | {"HF_HOME": home, "RESNET_SERVE_CACHE_DIR": str(here)}
    spec = ("--model", "hf:me/tiny")
    lacking = command(COMMAND, "serve", "--port", "0", *spec, **offline)
    assert lacking.returncode == 2
    assert lacking.stderr.count("resnet-serve: ") == 1
    assert (
        f"hf:me/tiny: is not in the cache {here}/hf, and 127.0.0.1 cannot be reached"
        in lacking.stderr
    )
    assert "run `resnet-serve fetch hf:me/tiny`, and copy that folder here" in lacking.stderr

    shutil.copytree(there / "hf", here / "hf")
    shutil.rmtree(there)
    with started(*spec, **offline) as service:
        answer = client.post(f"{service.url}/v1/classify", content=image.read_bytes())
        described = client.get(f"{service.url}/v1/models/tiny").text
    assert answer.json()["model"] == "tiny"
    assert "hf:me/tiny" in described
    assert hub.token not in described + "".join(service.log)

    if subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("may not make a network namespace")
    del offline["HF_ENDPOINT"]
    done = command(*ALONE, COMMAND, "classify", *spec, image, **offline)
    assert done.returncode == 0, done.stderr
    assert "LABEL_" in done.stdout


def test_an_interrupted_fetch_leaves_no_half_file_and_goes_on(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    with fake_hub() as hub:
        hub.repositories["me/net"] = {
            "config.json": b'{"architecture": "resnet18"}',
            "model.safetensors": content,
        }
        hub.breaks_at = 100_000
        online = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "none")}
        online["RESNET_SERVE_CACHE_DIR"] = str(tmp_path)
        with subprocess.Popen(
            [COMMAND, "fetch", "hf:me/net"],
            env=clean_environment() | online,
            stderr=subprocess.PIPE,
            text=True,
        ) as fetching:
            assert fetching.stderr is not None
            # It waits before it tries again.
            ended = any("ended early" in line for line in fetching.stderr)
            fetching.terminate()
        assert ended
        assert not list(tmp_path.rglob("model.safetensors"))
        hub.breaks_at = None
        done = command(COMMAND, "fetch", "hf:me/net", **online)
        assert done.returncode == 0, done.stderr
        assert hub.large[-1][3] == "bytes=100000-"
    (path,) = tmp_path.rglob("model.safetensors")
    assert path.read_bytes() == content
