"""Models are fetched on one host and served on another that has no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import CHOSEN, COMMAND, clean_environment, client, encoded, started
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


# A network of transformers' with one block of eight planes; importing transformers takes seconds.
CONVOLUTIONS = {
    "resnet.embedder.embedder": (8, 3, 7, 7),
    "resnet.encoder.stages.0.layers.0.layer.0": (8, 8, 3, 3),
    "resnet.encoder.stages.0.layers.0.layer.1": (8, 8, 3, 3),
}
CONFIG = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 8,
    "hidden_sizes": [8],
    "depths": [1],
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
}
PREPARED = {
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "size": 64,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@pytest.fixture
def repository() -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    state = {
        "classifier.1.weight": torch.randn(3, 8, generator=generator),
        "classifier.1.bias": torch.zeros(3),
    }
    for name, shape in CONVOLUTIONS.items():
        state[f"{name}.convolution.weight"] = torch.randn(shape, generator=generator) / 10
        for part in ("weight", "bias", "running_mean", "running_var"):
            value = 1.0 if part in ("weight", "running_var") else 0.0
            state[f"{name}.normalization.{part}"] = torch.full((8,), value)
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "preprocessor_config.json": json.dumps(PREPARED).encode(),
        "model.safetensors": safetensors.torch.save(state),
    }


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
