"""`resnet-serve evaluate`: what it measures, draws and writes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from models import bundle, labels
from models.preprocess import InputSpec
from service.cli.bulk import inputs, stream
from service.cli.main import main
from service.inference.decoding import decode_image
from service.repository import catalog, offline
from tests.conftest import encoded
from tests.support import tiny
from tests.support.commands import run as command

CLASSES = ("cat", "dog", "frog")
SIDE = 12
SPEC = InputSpec(size=8, resize=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def run(*arguments: str | Path, status: int = 0) -> Result:
    """What `evaluate` printed on the CPU, by plain PyTorch, which starts at once."""
    fixed = ("evaluate", "--device", "cpu", "--engine", "eager", "--precision", "fp32")
    done = CliRunner().invoke(main, [*fixed, *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def figures(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json", *arguments).stdout)
    return found


def refusal(*arguments: str | Path) -> str:
    *before, line = run(*arguments, status=2).stderr.splitlines()
    assert line.startswith("resnet-serve: ")
    assert not any("resnet-serve" in each for each in before), "one line, and progress bars"
    return line


def picture(seed: int, side: int = SIDE) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side + 5, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that is far too sure of its answers; it sees 8 of the 12 pixels."""
    made = tiny.made_bundle(input=SPEC, labels=labels.read("cifar10"))
    file = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    bundle.write(made, file)
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """16 of the classes that the network takes them for, but every fourth."""
    folder = tmp_path_factory.mktemp("photos")
    opened = bundle.read(model)
    classifier = opened.classifier()
    for seed in range(16):
        data = picture(seed)
        pixels = torch.from_numpy(decode_image(data, opened.input, 1000).pixels)
        answer = int(classifier(pixels[None]).argmax())
        label = opened.labels[answer if seed % 4 else (answer + 1) % 10]
        (folder / label).mkdir(exist_ok=True)
        (folder / label / f"{seed}.png").write_bytes(data)
    return folder


def by_hand(model: Path, photos: Path) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The class of each photo and what `classify` answers to it."""
    opened, warm = offline.open_model(str(model), device="cpu", engine="eager", precision="fp32")
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    batches = stream.classify(inputs.entries([photos]), opened, warm, 10, 1)
    for file, row in zip(files, chain.from_iterable(batches), strict=True):
        scores = {p["class_id"]: p["probability"] for p in row["predictions"]}
        yield opened.labels.index(file.parent.name), np.array([scores[i] for i in range(10)])


def test_every_figure_is_that_of_the_answers_one_by_one(model: Path, photos: Path) -> None:
    found = figures("--model", model, photos)
    answers = list(by_hand(model, photos))
    confusion = np.zeros((10, 10), int)
    for target, row in answers:
        confusion[target, row.argmax()] += 1
    assert found["confusion"] == confusion.tolist()
    assert found["images"] == len(answers) == 16
    assert found["top1"] == confusion.trace() / 16 == 0.75
    ranks = [int((row > row[target]).sum()) for target, row in answers]
    assert found["top5"] == sum(rank < 5 for rank in ranks) / 16
    assert found["nll"] == pytest.approx(-np.mean([np.log(row[t]) for t, row in answers]), rel=1e-4)
    assert 0 < found["ece"] < 1
    assert [row["label"] for row in found["per_class"]] == list(labels.read("cifar10"))
    assert [row["images"] for row in found["per_class"]] == confusion.sum(1).tolist()
    for index, row in enumerate(found["per_class"]):
        right, images = confusion[index, index], confusion[index].sum()
        assert row["accuracy"] == (right / images if images else None)
    assert not confusion.sum(1).all(), "a class without images"
    assert sum(found["reliability"]["images"]) == 16
    assert (found["crops"], found["engine"], found["precision"]) == ("center", "eager", "fp32")


def test_the_text_is_short_and_aligned(model: Path, photos: Path) -> None:
    lines = run("--model", model, photos).stdout.splitlines()
    assert lines[0].startswith(f"tiny-cifar10 on {photos.name}: 16 images (eager, fp32, center")
    assert [line.split()[0] for line in lines[1:5]] == ["top-1", "top-5", "ECE", "NLL"]
    kinds = [line.split()[0] for line in lines[5:]]
    assert sorted(set(kinds)) == ["taken", "worst"]
    assert kinds == sorted(kinds, reverse=True)
    assert max(map(kinds.count, kinds)) <= 3
    assert len({line.index(" of ") for line in lines[5:]}) == 1
    assert max(map(len, lines)) < 80


def test_ten_crops_are_averaged(model: Path, photos: Path) -> None:
    centre, ten = (figures("--model", model, "--crops", each, photos) for each in ("center", "ten"))
    assert (ten["images"], ten["crops"]) == (16, "ten")
    assert ten["nll"] != centre["nll"]
    small = ("--model", "random:resnet20", "--crops", "ten")
    assert "use --crops center" in refusal(*small, photos)
    assert "serving" in refusal("--crops", "ten", "--fit-temperature", "x.safetensors", photos)


def test_unreadable_files_fail_or_are_skipped_and_named(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(picture(0))
    (tmp_path / "dog" / "b.png").write_bytes(b"broken")
    assert "dog/b.png is not a readable image" in refusal("--model", model, tmp_path)
    done = run("--model", model, "--corrupt", "skip", "--json", tmp_path)
    found = json.loads(done.stdout)
    assert (found["images"], found["skipped"]) == (3, found["skipped"][:1])
    assert found["skipped"][0].startswith("dog/b.png is not a readable image")
    assert "left out 1: dog/b.png is no" in done.stderr


def test_pictures_are_written(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.evaluation.plots.DPI", 60)
    files = (tmp_path / "confusion.png", tmp_path / "reliability.svg")
    run("--model", model, "--confusion", files[0], "--reliability", files[1], photos)
    with Image.open(files[0]) as image:
        assert min(image.size) > 200
    assert "</svg>" in files[1].read_text()
    assert ".png" in refusal("--confusion", tmp_path / "x.doc", photos)
    assert "no folder" in refusal("--reliability", tmp_path / "nowhere" / "x.png", photos)


def test_a_fitted_temperature_is_written_and_used(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"
    before = figures("--model", model, photos)
    told = run("--model", model, "--fit-temperature", out, photos).stdout.splitlines()[-1]
    fitted, plain = bundle.read(out), bundle.read(model)
    assert fitted.temperature > 1.5, "it was too sure"
    assert tiny.same_bits(fitted.tensors, plain.tensors)
    assert f"temperature {fitted.temperature:.4g}; on the images it was fitted on" in told
    kept = fitted.provenance["temperature"]
    assert kept["ece_before"] == before["ece"]
    assert (kept["images"], kept["data"], kept["engine"]) == (16, photos.name, "eager")
    after = figures("--model", out, photos)
    assert after["temperature"] == fitted.temperature
    assert after["nll"] == pytest.approx(kept["nll"], rel=1e-4)
    assert after["nll"] < before["nll"]
    assert after["ece"] == pytest.approx(kept["ece"], abs=1e-5)
    assert after["confusion"] == before["confusion"]
    # There is nothing left to correct.
    again = figures("--model", out, "--fit-temperature", tmp_path / "again.safetensors", photos)
    assert again["fitted"]["temperature"] == pytest.approx(fitted.temperature, rel=1e-3)


def test_folders_called_by_wordnets_ids_are_imagenets_classes(tmp_path: Path) -> None:
    network = tiny.network(num_classes=1000)
    names = labels.read("imagenet1k")
    made = bundle.from_network(network, **tiny.described(input=SPEC, labels=names))
    bundle.write(made, tmp_path / "x.safetensors")
    for wnid, index in (("n01440764", 0), ("n02123045", 281), ("n15075141", 999)):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture(index))
    found = figures("--model", tmp_path / "x.safetensors", tmp_path / "val")
    counts = {i: row["images"] for i, row in enumerate(found["per_class"]) if row["images"]}
    assert counts == {0: 1, 281: 1, 999: 1}
    assert found["per_class"][0]["label"] == "tench"


def test_conversion_and_calibration_keep_temperature_and_card(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    made = replace(bundle.read(model), temperature=1.5, card="# Tiny")
    own, copied, quantised = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    bundle.write(made, own)
    for arguments in (("convert", own, copied), ("calibrate", "--model", own, photos, quantised)):
        assert CliRunner().invoke(main, list(map(str, arguments))).exit_code == 0
    for path in (copied, quantised):
        kept = catalog.load(str(path)).bundle
        assert (kept.temperature, kept.card) == (1.5, "# Tiny")
    assert catalog.load(str(quantised)).bundle.calibration["ranges"]
    said = CliRunner().invoke(main, ["models", str(quantised)]).stdout
    assert said.endswith("\n\n# Tiny\n")
    assert "temperature   1.5\n" in said
    shown = json.loads(CliRunner().invoke(main, ["models", "--json", str(copied)]).stdout)
    assert (shown["card"], shown["name"]) == ("# Tiny", "tiny-cifar10")


def test_any_network_is_measured_by_its_own_engine(photos: Path) -> None:
    found = json.loads(command("evaluate", photos, "--model", "random:resnet20", "--json").stdout)
    assert found["images"] == 16
    assert 0 <= found["top1"] <= 1


def test_it_refuses_classes_that_the_model_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "unicorn" / "a.png").write_bytes(encoded())
    done = command("evaluate", tmp_path, "--model", "random:resnet20", status=2)
    assert "'unicorn' is not one of the model's labels" in done.stderr
