from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import numpy_helper

from models import bundling
from models.interchange import convert, hub, onnx_zoo, torchvision_weights
from models.interchange.comparison import compare
from models.interchange.connection import DownloadError
from models.preprocess import IMAGENET
from models.resnet import build
from service.errors import ConfigError
from service.repository import catalog
from tests.support import gluon, libraries

COMMIT = "0" * 40
# A hub with these files; nothing else.
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: Files) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """A mirror of the hub that tells no checksums, and a plain server of files."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].replace(COMMIT, "main")
        self.server.asked.append(f"{self.command} {path}")
        content = self.server.files.get(path)
        if content is None:
            owned = any(path.startswith(f"/{name}/") for name in OWNED)
            revision = owned and "/resolve/main/" not in path
            code = "EntryNotFound" if owned else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if revision else code)
            if owned:
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


OWNED = ("timm/resnet18.a_tag", "microsoft/resnet-tiny", "google/vit", "me/empty")


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub({}) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def resnet18_pth(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("published") / "r.pth"
    network = build("resnet18")
    made = bundling.from_network(
        network,
        name="r",
        input=IMAGENET,
        labels=[f"class {i}" for i in range(network.architecture.num_classes)],
        provenance={},
    )
    convert.export_to("torchvision", made, path)
    return path.read_bytes()


@pytest.fixture
def row(
    server: Hub, resnet18_pth: bytes, monkeypatch: pytest.MonkeyPatch
) -> torchvision_weights.Published:
    """A resnet18 that a server on this machine publishes."""
    digest = hashlib.sha256(resnet18_pth).hexdigest()[:8]
    made = torchvision_weights.Published("resnet18", "IMAGENET1K_V9", digest, 232, 70.5, 90.25)
    server.files[f"/{made.file}"] = resnet18_pth
    monkeypatch.setattr(torchvision_weights, "WEIGHTS", (*torchvision_weights.WEIGHTS, made))
    monkeypatch.setattr(torchvision_weights, "URL", server.url)
    return made


def test_published_weights_are_downloaded_once_and_described(
    server: Hub, row: torchvision_weights.Published, tmp_path: Path
) -> None:
    for spec in ("resnet18", "resnet18:V9", "resnet18:IMAGENET1K_V9", "resnet18:DEFAULT"):
        made = hub.from_torchvision(spec, tmp_path / "cache")
        assert (made.name, made.variant) == ("resnet18", "resnet18")
        assert made.input.resize == 232
        assert made.metrics["imagenet1k-val"]["top5"] == 0.9025
        assert made.provenance["source"] == row.file
    assert server.asked == [f"GET /{row.file}"]
    loaded = catalog.load("torchvision:resnet18", cache_dir=tmp_path)
    assert loaded.sha256 == made.provenance["sha256"]
    assert loaded.source == "torchvision:resnet18"
    assert (tmp_path / "torchvision" / row.file).is_file()


def test_a_cache_that_cannot_be_written_is_done_without(
    row: torchvision_weights.Published, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert hub.from_torchvision("resnet18", tmp_path / "file").input.resize == 232
    assert hub.from_torchvision("resnet18", Path("/proc/none")).input.resize == 232


def test_what_is_wrong_is_one_line(
    server: Hub, row: torchvision_weights.Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(spec: str) -> str:
        with pytest.raises(ConfigError, match=r"\A[^\n]+\Z") as caught:
            catalog.load(spec, cache_dir=tmp_path)
        return str(caught.value)

    assert "no weights for 'resnet20'; did you mean resnet" in refusal("torchvision:resnet20")
    assert "no weights 'V7'; use one of IMAGENET1K_V1" in refusal("torchvision:resnet18:V7")
    assert "404" in refusal("torchvision:resnet34")
    server.files[f"/{row.file}"] += b"more"
    assert "nothing was kept" in refusal("torchvision:resnet18")
    monkeypatch.setattr(torchvision_weights, "URL", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="run `resnet-serve fetch torchvision:resnet18`"):
        hub.from_torchvision("resnet18", tmp_path)
    assert "name a repository as OWNER/NAME" in refusal("hf:resnet-50")


@pytest.fixture(scope="module")
def zoo_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A narrow ResNet-18 as the ONNX model zoo publishes one: alone, and with its test data."""
    folder = tmp_path_factory.mktemp("zoo") / "resnet18v1"
    folder.mkdir()
    model = folder / "resnet18v1.onnx"
    onnx.save(gluon.Zoo("resnet18-v1-7", widths=(8, 16, 32, 64)).model, model)
    session = onnxruntime.InferenceSession(str(model))
    images = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    outputs = {"input_0": images, "output_0": session.run(None, {"data": images})[0]}
    (folder / "test_data_set_0").mkdir()
    for name, array in outputs.items():
        content = numpy_helper.from_array(array).SerializeToString()
        (folder / "test_data_set_0" / f"{name}.pb").write_bytes(content)
    with tarfile.open(folder.parent / "m.tar.gz", "w:gz") as archive:
        archive.add(folder, "resnet18v1")
    return {
        "/resnet18-v1-7.onnx": model.read_bytes(),
        "/resnet18-v1-7.tar.gz": (folder.parent / "m.tar.gz").read_bytes(),
    }


@pytest.fixture
def zoo(
    server: Hub, zoo_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> onnx_zoo.ZooModel:
    """The zoo's table, as if it published that file on this machine."""
    model, archive = (hashlib.sha256(content).hexdigest() for content in zoo_files.values())
    size = len(zoo_files["/resnet18-v1-7.onnx"])
    made = replace(onnx_zoo.MODELS[0], size=size, sha256=model, archive_sha256=archive)
    # No name says how wide it is.
    monkeypatch.setattr(onnx_zoo.ZooModel, "variant", None)
    server.files.update(zoo_files)
    monkeypatch.setattr(onnx_zoo, "MODELS", (made, *onnx_zoo.MODELS[1:]))
    monkeypatch.setattr(onnx_zoo, "URL", server.url)
    return made


def test_the_model_zoos_files_are_downloaded_once_and_described(
    server: Hub, zoo: onnx_zoo.ZooModel, tmp_path: Path
) -> None:
    for _ in range(2):
        loaded = catalog.load("onnx-zoo:resnet18-v1-7", cache_dir=tmp_path)
    made = loaded.bundle
    assert server.asked == ["GET /resnet18-v1-7.onnx"]
    assert (loaded.source, loaded.sha256) == ("onnx-zoo:resnet18-v1-7", zoo.sha256)
    assert (made.name, made.input, made.metrics) == (zoo.name, onnx_zoo.INPUT, zoo.metrics)
    assert "assumed" not in made.provenance
    assert (tmp_path / "onnx-zoo" / zoo.file).is_file()


def test_the_model_zoos_test_data_agrees_with_its_model(
    server: Hub, zoo: onnx_zoo.ZooModel, tmp_path: Path
) -> None:
    (pair,) = hub.zoo_test_data(zoo.name, tmp_path)
    assert pair.name == "resnet18v1/test_data_set_0"
    assert compare(hub.from_onnx_zoo(zoo.name, tmp_path), pair).agrees
    hub.zoo_test_data(zoo.name, tmp_path)
    assert server.asked == ["GET /resnet18-v1-7.tar.gz", "GET /resnet18-v1-7.onnx"]


def test_what_the_model_zoo_does_not_serve_is_one_line(
    server: Hub, zoo: onnx_zoo.ZooModel, tmp_path: Path
) -> None:
    def refusal(spec: str) -> str:
        with pytest.raises(ConfigError, match=r"\A[^\n]+\Z") as caught:
            catalog.load(spec, cache_dir=tmp_path)
        return str(caught.value)

    assert "no ResNet called 'resnet19-v1-7'; did you mean" in refusal("onnx-zoo:resnet19-v1-7")
    assert "is not read; the same network in fp32" in refusal("onnx-zoo:resnet50-v1-12-int8")
    assert server.asked == []
    assert "404" in refusal("onnx-zoo:resnet34-v1-7")
    server.files["/resnet18-v1-7.onnx"] += b"more"
    assert "nothing was kept" in refusal("onnx-zoo:resnet18-v1-7")


def ask(endpoint: str, home: Path, *specs: str) -> list[Any]:
    """The bundle of each SPEC, or the refusal."""
    answers: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", endpoint)
        patch.setenv("HF_HOME", str(home / "none"))
        for spec in specs:
            try:
                answers.append(hub.from_huggingface(spec, home / "hf"))
            except ValueError as error:
                answers.append(str(error))
    return answers


def test_repositories_become_bundles_and_are_kept(server: Hub, tmp_path: Path) -> None:
    theirs = libraries.import_timm().create_model("resnet18", num_classes=3)
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    config = {
        "architecture": "resnet18",
        "pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 1.0, "tag": "a_tag"},
        "label_names": ["a", "b", "c"],
    }
    folder = tmp_path / "tiny"
    resnet = libraries.import_transformers()
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 3}
    resnet.ResNetForImageClassification(resnet.ResNetConfig(**sizes)).save_pretrained(folder)
    prepared = {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": 64,
    }
    main, timm, tiny_net = "resolve/main", *OWNED[:2]
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), tmp_path / "t.bin")
    server.files.update(
        {
            f"/{timm}/{main}/config.json": json.dumps(config).encode(),
            f"/{timm}/{main}/model.safetensors": safetensors.torch.save(state),
            f"/{tiny_net}/{main}/config.json": (folder / "config.json").read_bytes(),
            f"/{tiny_net}/{main}/preprocessor_config.json": json.dumps(prepared).encode(),
            f"/{tiny_net}/{main}/pytorch_model.bin": (tmp_path / "t.bin").read_bytes(),
            f"/google/vit/{main}/config.json": b'{"model_type": "vit"}',
            f"/me/empty/{main}/config.json": b'{"model_type": "resnet"}',
        }
    )
    answers = ask(
        server.url,
        tmp_path,
        timm,
        tiny_net,
        "google/vit",
        "me/empty",
        "no/such",
        f"{timm}@other",
        "me",
    )
    assert answers[0].name == "resnet18.a_tag"
    assert answers[0].provenance["source"] == f"hf:{timm}"
    assert answers[0].provenance["commit"] == COMMIT
    assert answers[1].provenance["format"] == "huggingface"
    assert answers[2:] == [
        "holds vit, not a ResNet of timm or transformers",
        "has neither model.safetensors nor pytorch_model.bin",
        "does not exist or is private; set HF_TOKEN to a token that may read it",
        "the repository has no revision other",
        "name a repository as OWNER/NAME or OWNER/NAME@REVISION",
    ]
    made = answers[0]
    assert (made.labels, made.input.size, made.input.resize) == (("a", "b", "c"), 160, 160)
    assert libraries.difference(made.network(), theirs.eval(), 64) <= 1
    assert answers[1].input.resize == 73

    # The same without a network, and what was never asked for.
    asked = len(server.asked)
    again = ask(server.url, tmp_path, timm, tiny_net)
    assert len(server.asked) == asked
    offline = ask("http://127.0.0.1:9", tmp_path, timm, tiny_net, "other/one")
    for kept in (again, offline):
        assert [made.provenance for made in kept[:2]] == [made.provenance for made in answers[:2]]
    assert offline[2] == (
        f"is not in the cache {tmp_path}/hf, and 127.0.0.1 cannot be reached "
        "(Connection refused); on a host with network, run `resnet-serve fetch hf:other/one`, and "
        "copy that folder here"
    )
