"""Networks with a user's own block and head, from the command line and as a service."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from models.resnet import ResNet
from tests.conftest import client, encoded, started
from tests.support import made, tiny
from tests.support.commands import run
from tests.support.own_blocks import Cosine, Squeezed
from tests.support.waiting import until

MODULE = "tests.support.own_blocks"
ROOT = Path(__file__).parents[2]
KEY = "an-admin-key-for-tests"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = ResNet(tiny.ARCHITECTURE, block=Squeezed)
    network.set_head(Cosine(8, 10))
    made = models.from_network(
        tiny.randomised(network).eval(),
        name="own",
        input=tiny.INPUT,
        labels=[f"class {index}" for index in range(10)],
        provenance={"source": "a loop of my own"},
    )
    path = tmp_path_factory.mktemp("own") / "own.safetensors"
    models.write(made, path)
    return path


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_is_served_as_its_own_network_computes(file: Path, workers: str) -> None:
    image = encoded(size=(8, 8))
    with started(
        *("--model", str(file), "--allow-code", MODULE),
        PYTHONPATH=str(ROOT),
        RESNET_SERVE_PRECISION="fp32",
        RESNET_SERVE_WORKERS=workers,
        RESNET_SERVE_ADMIN_KEYS=KEY,
        RESNET_SERVE_MODEL_FOLDER=str(file.parent),
    ) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        (served,) = client.get(f"{service.url}/v1/models", headers=headers).json()["models"]
        assert (served["architecture"], served["engine"], served["explain"]) == (
            "custom",
            "eager",
            False,
        )
        answer = client.post(f"{service.url}/v1/classify?top_k=10", content=image, headers=headers)
        found = {row["label"]: row["probability"] for row in answer.json()["predictions"]}
        classifier = models.read(file, allow=[MODULE]).classifier()
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
        with torch.no_grad():
            expected = classifier(torch.from_numpy(pixels.copy())[None])[0]
        for index, value in enumerate(expected.tolist()):
            assert found[f"class {index}"] == pytest.approx(value, abs=1e-4)


def test_what_is_not_allowed_is_not_served_and_may_not_be_asked_for(
    file: Path, tmp_path: Path
) -> None:
    line = run("serve", "--model", file, "--allow-code", "a b", status=2).stderr
    assert "must be import paths such as package.module:Class" in line
    config = tmp_path / "serve.yaml"
    config.write_text("models: [{spec: 'random:resnet20', engine: eager, max_batch: 1}]")
    with started(
        "--config",
        str(config),
        PYTHONPATH=str(ROOT),
        RESNET_SERVE_ADMIN_KEYS=KEY,
        RESNET_SERVE_MODEL_FOLDER=str(file.parent),
    ) as service:
        headers = {"Authorization": f"Bearer {KEY}"}
        for body in ({"spec": str(file)}, {"spec": str(file), "allow_code": [MODULE]}):
            refused = client.put(f"{service.url}/v1/models/own", json=body, headers=headers)
            assert refused.status_code == 422
        config.write_text(f"models: [{{spec: {file}}}]\nallow_code: ['{MODULE}:Squeezed']")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: any("SIGHUP changed nothing: " in line for line in service.log))
        assert any("changes to allow_code take effect at the next" in x for x in service.log)
        assert [
            row["name"]
            for row in client.get(f"{service.url}/v1/models", headers=headers).json()["models"]
        ] == ["resnet20"]


@pytest.mark.parametrize(
    "command",
    [
        ["classify", "--model", "FILE", "IMAGE"],
        ["evaluate", "--model", "FILE", "DATA"],
        ["convert", "FILE", "OUT"],
        ["check", "FILE", "PAIR"],
        ["train", "--weights", "FILE", "--data", "DATA", "--iterations", "1", "--eager", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_it_in_one_line_until_it_is_allowed(
    file: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "x.png").write_bytes(encoded(size=(8, 8)))
    network = models.load(file, allow=[MODULE])
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        np.savez(tmp_path / "pair.npz", input=images, output=network(images))
    paths = {
        "FILE": file,
        "IMAGE": tmp_path / "x.png",
        "DATA": made.folder(tmp_path / "data", 20),
        "OUT": tmp_path / "out.safetensors",
        "PAIR": tmp_path / "pair.npz",
    }
    if command[0] == "evaluate":  # Its classes are the model's.
        folder = tmp_path / "named" / "class 3"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(encoded(size=(8, 8)))
        paths["DATA"] = folder.parent
    words = [str(paths.get(word, word)) for word in command]
    if command[0] == "train":
        words += ["--batch-size", "4"]
    line = run(*words, status=2).stderr
    assert line.count("\n") == 1
    assert f"{MODULE}:Squeezed, which is only imported if you allow it" in line
    run(*words, "--allow-code", MODULE)
    if "OUT" in command:
        again = models.read(paths["OUT"], allow=[MODULE])
        assert again.own_code == (f"{MODULE}:Squeezed", f"{MODULE}:Cosine")


def test_it_is_described_without_being_imported(file: Path) -> None:
    facts = json.loads(run("models", "--json", file).stdout)
    assert (facts["block"], facts["head"]) == (f"{MODULE}:Squeezed", f"{MODULE}:Cosine")
    text = run("models", file).stdout
    assert f"block         {MODULE}:Squeezed" in text
    assert "origin        a loop of my own" in text


def test_other_formats_say_that_they_cannot_hold_it(file: Path, tmp_path: Path) -> None:
    for form in ("onnx", "timm", "torchvision"):
        out = tmp_path / f"x.{form}"
        line = run("convert", "--to", form, "--allow-code", MODULE, file, out, status=2).stderr
        assert line.count("\n") == 1
        assert not out.exists()


def test_a_block_of_ones_own_is_trained_from_the_command_line(tmp_path: Path) -> None:
    data, out = made.folder(tmp_path / "data", 12), tmp_path / "out.safetensors"
    short = ("--data", data, "--iterations", "1", "--batch-size", "4", "--eager")
    tiny_network = ("--set", "blocks=[1]", "--set", "planes=[4]")
    run("train", "--block", f"{MODULE}:Plain", *tiny_network, *short, out)
    assert models.read(out, allow=[f"{MODULE}:Plain"]).block == f"{MODULE}:Plain"
    line = run("train", "--block", "nowhere:Block", *short, tmp_path / "y.safetensors", status=2)
    assert "its block nowhere:Block cannot be imported (ModuleNotFoundError" in line.stderr


def test_what_no_engine_computes_in_8_bits_is_not_calibrated(file: Path, tmp_path: Path) -> None:
    data, out = made.folder(tmp_path / "data", 12), tmp_path / "out.safetensors"
    done = run("calibrate", "--model", file, "--allow-code", MODULE, data, out, status=2)
    assert "own cannot be computed in int8" in done.stderr.splitlines()[-1]
    assert not out.exists()
