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

from models import bundle, bundling, labels
from models.evaluation.independent import average_precision
from models.preprocess import InputSpec
from models.views import seen_as
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
def many(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """60 images, of which the network takes a quarter for others."""
    return answered(tmp_path_factory.mktemp("many"), model, 60)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """16 of the classes that the network takes them for, but every fourth."""
    return answered(tmp_path_factory.mktemp("photos"), model, 16)


def answered(folder: Path, model: Path, count: int) -> Path:
    opened = bundle.read(model)
    classifier = opened.classifier()
    for seed in range(count):
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


def test_mirrored_views_are_averaged_said_and_fitted_but_not_in_ten_crops(
    model: Path, many: Path, tmp_path: Path
) -> None:
    mirrored, out = tmp_path / "mirrored.safetensors", tmp_path / "fitted.safetensors"
    bundle.write(seen_as(bundle.read(model), "mirrored"), mirrored)
    plain = figures("--model", model, many)
    found = figures("--model", mirrored, "--fit-temperature", out, many)
    assert (plain["views"], found["views"]) == ("plain", "mirrored")
    assert found["nll"] != plain["nll"]
    assert bundle.read(out).views == "mirrored"
    assert figures("--model", out, many)["nll"] == pytest.approx(found["fitted"]["nll"], rel=1e-4)
    assert "center crops, mirrored views)" in run("--model", mirrored, many).stdout
    said = refusal("--model", mirrored, "--crops", "ten", many)
    assert f"`resnet-serve convert --views plain {mirrored} OUT.safetensors`" in said


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


def test_a_fitted_temperature_is_written_and_used(model: Path, many: Path, tmp_path: Path) -> None:
    photos = many
    out = tmp_path / "calibrated.safetensors"
    before = figures("--model", model, photos)
    told = run("--model", model, "--fit-temperature", out, photos).stdout.splitlines()[-1]
    fitted, plain = bundle.read(out), bundle.read(model)
    assert fitted.temperature > 1.5, "it was too sure"
    assert tiny.same_bits(fitted.tensors, plain.tensors)
    kept = fitted.provenance["temperature"]
    least, most = kept["interval"]
    assert least < fitted.temperature < most < 4 * least
    interval = f"(95 % confidence: {least:.3g} to {most:.3g}, 60 images)"
    assert f"temperature {fitted.temperature:.4g} {interval}; on the images it was" in told
    assert kept["ece_before"] == before["ece"]
    assert (kept["images"], kept["data"], kept["engine"]) == (60, photos.name, "eager")
    after = figures("--model", out, photos)
    assert after["temperature"] == fitted.temperature
    assert after["nll"] == pytest.approx(kept["nll"], rel=1e-4)
    assert after["nll"] < before["nll"]
    assert after["ece"] == pytest.approx(kept["ece"], abs=1e-5)
    assert after["confusion"] == before["confusion"]
    # There is nothing left to correct.
    again = figures("--model", out, "--fit-temperature", tmp_path / "again.safetensors", photos)
    assert again["fitted"]["temperature"] == pytest.approx(fitted.temperature, rel=1e-3)


def test_a_temperature_that_the_images_do_not_determine_is_not_written(
    model: Path, photos: Path, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    few = refusal("--model", model, "--fit-temperature", out, photos)
    assert "too few images to fit a temperature: 16; at least 50 are needed" in few
    right = answered(tmp_path / "right", model, 0)
    for file in many.rglob("*.png"):  # Those that the network is right about, and the others twice.
        if int(file.stem) % 4:
            for copy in range(2):
                (right / file.parent.name).mkdir(exist_ok=True, parents=True)
                target = right / file.parent.name / f"{copy}{file.name}"
                target.write_bytes(file.read_bytes())
    all_right = refusal("--model", model, "--fit-temperature", out, right)
    assert "90 images favour 0.05 or less, since nearly all predictions are right" in all_right
    assert not out.exists()


LABELS = ("cat", "dog", "frog", "owl")


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with independent labels."""
    made = bundling.from_network(
        tiny.network(num_classes=4),
        **tiny.described(input=SPEC, labels=LABELS, outputs="independent"),
    )
    file = tmp_path_factory.mktemp("independent") / "labels.safetensors"
    bundle.write(made, file)
    return file


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images with up to three labels; none has the last."""
    folder = tmp_path_factory.mktemp("listed")
    random = np.random.default_rng(0)
    lines = ["file,labels"]
    for seed in range(60):
        (folder / f"{seed}.png").write_bytes(picture(seed))
        present = [label for label in ("frog", "cat", "dog") if random.random() < 0.4]
        lines.append(f"{seed}.png,{';'.join(present)}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


def labels_by_hand(model: Path, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    opened = bundle.read(model)
    classifier = opened.classifier()
    rows, present = [], []
    for line in path.read_text().splitlines()[1:]:
        name, _, names = line.partition(",")
        pixels = decode_image((path.parent / name).read_bytes(), opened.input, 1000).pixels
        rows.append(classifier(torch.from_numpy(pixels)[None]).detach().numpy()[0])
        present.append([label in names.split(";") for label in LABELS])
    return np.array(rows), np.array(present)


def test_independent_labels_have_figures_of_their_own(independent: Path, listed: Path) -> None:
    found = figures("--model", independent, listed)
    rows, present = labels_by_hand(independent, listed)
    right = (rows >= 0.5) == present
    assert (found["images"], found["outputs"], found["threshold"]) == (60, "independent", 0.5)
    assert found["exact_match"] == pytest.approx(right.all(1).mean())
    assert found["mean_accuracy"] == pytest.approx(right.mean())
    assert [row["label"] for row in found["per_label"]] == list(LABELS)
    assert [row["images"] for row in found["per_label"]] == present.sum(0).tolist()
    accuracies = [row["accuracy"] for row in found["per_label"]]
    assert accuracies == pytest.approx(right.mean(0).tolist())
    precisions = [row["average_precision"] for row in found["per_label"]]
    assert precisions[3] is None, "no image has the label"
    expected = [average_precision(rows[:, k], present[:, k]) for k in range(3)]
    assert precisions[:3] == pytest.approx(expected, abs=1e-6)
    assert found["mean_average_precision"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["top1"] is None
    assert sum(found["reliability"]["images"]) == 240
    assert 0 < found["ece"] < 1
    assert "confusion" not in found
    assert figures("--model", independent, "--crops", "ten", listed)["nll"] != found["nll"]


def test_independent_labels_are_a_table_of_text(independent: Path, listed: Path) -> None:
    lines = run("--model", independent, listed).stdout.splitlines()
    assert lines[0].startswith("tiny-cifar10 on labels.csv: 60 images (eager, fp32, center")
    words = ["mAP", "accuracy", "exact", "ECE", "NLL", "label", *LABELS]
    assert [line.split()[0] for line in lines[1:]] == words
    assert "mean over 3 of 4 labels" in lines[1]
    assert lines[-1].split()[2:] == ["-", "0"]
    assert max(map(len, lines)) < 80


def test_folders_of_classes_are_one_label_each(independent: Path, tmp_path: Path) -> None:
    for seed, label in enumerate(("cat", "dog", "frog", "cat", "owl")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{seed}.png").write_bytes(picture(seed))
    found = figures("--model", independent, tmp_path)
    assert [row["images"] for row in found["per_label"]] == [2, 1, 1, 1]
    assert found["top1"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert "top-1" in run("--model", independent, tmp_path).stdout
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "x.png").write_bytes(picture(9))
    line = refusal("--model", independent, tmp_path)
    assert "class 'fine' is not one of the model's labels; a CSV list can have images with" in line


def test_independent_labels_have_a_reliability_diagram_and_no_confusions(
    independent: Path, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.evaluation.plots.DPI", 60)
    run("--model", independent, "--reliability", tmp_path / "x.svg", listed)
    assert "</svg>" in (tmp_path / "x.svg").read_text()
    line = refusal("--model", independent, "--confusion", tmp_path / "x.png", listed)
    assert "--confusion: the labels of tiny-cifar10 are independent" in line
    assert not (tmp_path / "x.png").exists()


def test_independent_labels_are_calibrated_by_their_cross_entropy(
    independent: Path, listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    opened = bundle.read(independent)
    pairs = labels_by_hand(independent, listed)
    # Labels as a network with milder answers has them.
    logits = np.log(pairs[0] / (1 - pairs[0]))
    drawn = np.random.default_rng(1).random(logits.shape) < 1 / (1 + np.exp(-logits / 3))
    lines = ["file,labels"]
    for number, present in enumerate(drawn):
        names = [label for label, there in zip(LABELS, present, strict=True) if there]
        lines.append(f"{number}.png,{';'.join(names)}")
    (listed.parent / "drawn.csv").write_text("\n".join(lines))
    found = figures("--model", independent, "--fit-temperature", out, listed.parent / "drawn.csv")
    fitted = bundle.read(out)
    least, most = found["fitted"]["interval"]
    assert least < 3 < most
    assert (fitted.outputs, fitted.temperature) == (opened.outputs, found["fitted"]["temperature"])
    after = figures("--model", out, listed.parent / "drawn.csv")
    assert after["nll"] == pytest.approx(found["fitted"]["nll"], rel=1e-4)
    assert after["nll"] < found["nll"]


def test_what_has_no_classes_or_other_ones_is_refused(
    model: Path, listed: Path, tmp_path: Path
) -> None:
    line = refusal("--model", model, listed)
    assert "some of its images have several labels or none, but tiny-cifar10 gives each" in line
    headless = bundling.from_network(
        tiny.network(num_classes=0), **tiny.described(input=SPEC, labels=())
    )
    bundle.write(headless, tmp_path / "x.safetensors")
    for name in (("evaluate",), ("calibrate", listed.parent)):
        arguments = (*name, "--model", tmp_path / "x.safetensors", tmp_path / "y.safetensors")
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 2
        assert "tiny-cifar10 has no head" in done.stderr.splitlines()[-1]
        assert len(done.stderr.splitlines()) == 1


def test_eight_bits_of_independent_labels_are_compared_by_their_answers(
    independent: Path, listed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    said = command("calibrate", "--model", independent, listed, out).stdout
    assert "keep all their labels" in said
    calibration = bundle.read(out).calibration
    assert 0 <= calibration["labels_agreement"] <= 1
    assert "top1_agreement" not in calibration


GREY = {"channels": "grey", "mean": (0.5,), "std": (0.25,)}


@pytest.mark.parametrize(
    "changes",
    [
        GREY,
        {"channels": "bgr"},
        {"channels": "rgba", "mean": (0.5,) * 4, "std": (0.25,) * 4},
        {"crop": "squash"},
        {"crop": "letterbox", "resize": 8, "fill": (90, 0, 200)},
        {"size": (8, 10), "resize": (12, 14)},
        {"interpolation": "bicubic"},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_inputs_of_every_kind_are_measured_as_they_are_served(
    photos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec = replace(SPEC, **changes)
    network = tiny.network(in_channels=spec.shape[2])
    made = bundling.from_network(
        network, **tiny.described(input=spec, labels=labels.read("cifar10"))
    )
    bundle.write(made, tmp_path / "x.safetensors")
    found = figures("--model", tmp_path / "x.safetensors", photos)
    rows = list(by_hand(tmp_path / "x.safetensors", photos))
    expected = -np.mean([np.log(row[target]) for target, row in rows])
    assert found["nll"] == pytest.approx(expected, rel=1e-4)
    if changes.get("crop") != "letterbox":
        ten = figures("--model", tmp_path / "x.safetensors", "--crops", "ten", photos)
        assert ten["nll"] != found["nll"]


def test_folders_called_by_wordnets_ids_are_imagenets_classes(tmp_path: Path) -> None:
    network = tiny.network(num_classes=1000)
    names = labels.read("imagenet1k")
    made = bundling.from_network(network, **tiny.described(input=SPEC, labels=names))
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
