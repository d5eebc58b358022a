"""The commands that need no server."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner, Result

from models import bundle, variants
from service.cli.main import main
from service.cli.models import table as table_of
from service.repository import catalog
from tests.conftest import COMMAND, encoded


def run(*arguments: str | Path, status: int = 0) -> Result:
    """What a command printed; in this process, which has torch already."""
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def test_the_installed_command_tells_its_version() -> None:
    said = subprocess.check_output([COMMAND, "--version"], text=True)
    assert version("resnet-serve") in said


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for index, kind in enumerate(("PNG", "JPEG", "WEBP")):
            (folder / label / f"{index}.{kind.lower()}").write_bytes(encoded(kind))
    return folder


def test_models_as_a_table_and_as_json() -> None:
    table = run("models", "preact_wide_resnet28_10").stdout
    assert "36,479,194" in table
    assert "5.24 G" in table
    row = json.loads(run("models", "wrn_28_10", "--json").stdout)
    assert row["parameters"] == 36_479_194
    assert row["layers"] == 29


def test_models_lists_every_named_network() -> None:
    rows = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(variants.names())


def test_some_networks_are_chosen_by_pattern_or_family() -> None:
    rows = json.loads(run("models", "wide_resnet50*", "--json").stdout)
    assert [row["name"] for row in rows] == ["wide_resnet50_2"]
    rows = json.loads(run("models", "preact", "--json").stdout)
    assert len(rows) == len(list(variants.names())) / 2
    lines = run("models", "cifar").stdout.splitlines()
    headings = [line for line in lines if line.startswith("ResNets for CIFAR")]
    assert headings[0] == "ResNets for CIFAR"
    assert len(headings) == len(set(headings)) == 4
    assert len({line.index("parameters") for line in lines if line.startswith("name")}) == 1
    (shipped,) = [line for line in lines if line.startswith("resnet20 ")]
    assert shipped.split() == [
        *("resnet20", "272,474", "22", "20", "40.8", "M", "32", "10", "builtin:resnet20-cifar10")
    ]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("name", "words"),
    [("wied", "did you mean wide?"), ("x*", "no network's name is like 'x*'")],
)
def test_what_stands_for_no_network_is_one_line(name: str, words: str) -> None:
    line = run("models", name, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


@pytest.mark.parametrize("width", [30, 50, 80, None])
def test_a_table_leaves_out_what_its_terminal_has_no_place_for(width: int | None) -> None:
    rows = [
        {
            "name": name,
            "parameters": 11_689_512,
            "layers": 21,
            "depth": 18,
            "macs": 1_814_073_344,
            "input": 224,
            "classes": 1000,
        }
        for name in ("resnet18", "resnet34")
    ]
    heading, header, *lines = table_of(rows, width)
    assert "ResNets for ImageNet" in heading
    for line in (header, *lines):
        assert len(line) <= (width or 200)
        assert "11,689,512" in line or line is header
    assert ("weights" in header) == (width is None or width > 80)
    assert ("depth" in header) == (width != 30)
    assert "MACs" in header


def test_headings_are_bold_but_where_nobody_wants_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "resnet18", "parameters": 1, "layers": 1, "depth": 1}
    row |= {"macs": 10**6, "input": 32, "classes": 10}
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in "".join(table_of([row, row], None))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in "".join(table_of([row, row], None))


def test_an_unknown_network_is_one_line_with_the_nearest() -> None:
    line = run("models", "resnt50", status=2).stderr
    assert line.count("\n") == 1
    assert "resnet50" in line


def test_classify_prints_a_line_for_each_image(photos: Path) -> None:
    lines = run("classify", photos, "--model", "random:resnet20").stdout.splitlines()
    assert len(lines) == 6
    assert all("%" in line for line in lines)


def test_classify_writes_every_format_alike(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    outputs = [tmp_path / f"out.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
    for output in outputs:
        inputs = (photos / "cat", tmp_path / "broken.png")
        run("classify", *inputs, "--model", "random:resnet20", "--top-k", "2", "--output", output)
    lines = [json.loads(line) for line in outputs[0].read_text().splitlines()]
    assert [len(line["predictions"]) for line in lines] == [2, 2, 2, 0]
    assert "send a whole" in lines[3]["error"]
    with outputs[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", "1", "2", ""]
    table = pyarrow.parquet.read_table(outputs[2]).to_pylist()
    assert [row["label"] or "" for row in table] == [row["label"] for row in rows]
    flat = [p["probability"] for line in lines for p in line["predictions"]]
    assert [float(row["probability"]) for row in rows[:6]] == pytest.approx(flat)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere.png"], "no such file or folder"),
        (["--output", "x.xlsx", "/"], ".jsonl, .csv, .parquet"),
        (["--model", "builtin:x", __file__], "builtin: has no 'x'; one of resnet10-cifar10"),
        (["--precision", "int4", __file__], "not 'int4'; did you mean int8?"),
    ],
)
def test_classify_says_what_is_wrong_in_one_line(arguments: list[str], words: str) -> None:
    line = run("classify", *arguments, status=2).stderr
    assert line.count("\n") == 1
    assert words in line


def test_convert_makes_a_bundle_that_loads(tmp_path: Path) -> None:
    network = variants.build("resnet20", shortcut="A")
    names = {"stem.conv": "conv1", "stem.norm": "bn1", "head": "linear"}
    state = {}
    for name, value in network.state_dict().items():
        theirs = name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        for stage in range(3):
            theirs = theirs.replace(f"stages.{stage}.", f"layer{stage + 1}.")
        state[f"module.{theirs}"] = value
    torch.save({"state_dict": state, "best_prec1": 91.2}, tmp_path / "r.th")
    said = run("convert", "--from", "cifar", tmp_path / "r.th", tmp_path / "r.safetensors").stdout
    assert "resnet20, shortcut option A" in said
    converted = bundle.read(tmp_path / "r.safetensors")
    assert converted.name == "r"
    for name, value in network.state_dict().items():
        assert converted.tensors[name].equal(value)


def test_convert_shows_what_differs(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "r.th")
    done = run("convert", "--from", "cifar", tmp_path / "r.th", tmp_path / "out", status=2)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_convert_makes_an_onnx_graph_and_reads_it_back(tmp_path: Path) -> None:
    graph, back = tmp_path / "r.onnx", tmp_path / "r.safetensors"
    arguments = ("--to", "onnx", "--with-preprocessing", "builtin:resnet20-cifar10", graph)
    assert "resnet20" in run("convert", *arguments).stdout
    said = run("convert", "--from", "onnx", graph, back).stdout
    assert "layout ONNX graph, without its softmax" in said
    ours = catalog.load("builtin:resnet20-cifar10").bundle
    found = bundle.read(back)
    assert (found.input, found.labels) == (ours.input, ours.labels)
    assert found.tensors["head.weight"].equal(ours.tensors["head.weight"])


def test_convert_writes_for_another_library_and_reads_it_back(tmp_path: Path) -> None:
    for library, variant in (("torchvision", "resnet18"), ("timm", "preact_resnet18")):
        theirs, ours = tmp_path / "w.pth", tmp_path / "w.safetensors"
        said = run("convert", "--to", library, f"random:{variant}", theirs).stdout
        assert f"layout {library}" in said
        run("convert", "--from", library, theirs, ours)
        expected = catalog.load(f"random:{variant}").bundle.tensors
        converted = bundle.read(ours).tensors
        assert all(converted[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "torchvision", "random:preact_resnet18"], "no pre-activation networks"),
        (["--to", "caffe", "random:resnet18"], "--to caffe: one of onnx"),
        (["--to", "torchvison", "random:resnet18"], "--to torchvison: did you mean torchvision?"),
        (["--from", "tensorflow", "nowhere"], "--from tensorflow: one of cifar, flax"),
        (["--set", "eps=0.001", "random:resnet18"], "--set: only with --from"),
        (["--labels", "cifar10", "random:resnet18"], "--labels: only with --from"),
        (["--from", "onnx", "--with-preprocessing", "x"], "goes with --to onnx"),
        (["--from", "onnx", "nowhere.onnx"], "nowhere.onnx: No such file"),
        (["torchvision:resnet19"], "torchvision publishes no weights for 'resnet19'"),
        (["nowhere"], "nowhere: no such file"),
        (["--from", "timm", "nowhere"], "nowhere: No such file or directory"),
    ],
)
def test_convert_says_what_is_wrong_in_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    line = run("convert", *arguments, tmp_path / "out", status=2).stderr
    assert line.count("\n") == 1
    assert words in line
    assert not list(tmp_path.iterdir())


def test_evaluate_measures_what_the_labels_say(photos: Path) -> None:
    figures = json.loads(run("evaluate", photos, "--model", "random:resnet20", "--json").stdout)
    assert figures["images"] == 6
    assert figures["top1"] in (0, 0.5, 1)


def test_evaluate_refuses_classes_that_the_model_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "unicorn" / "a.png").write_bytes(encoded())
    done = run("evaluate", tmp_path, "--model", "random:resnet20", status=2)
    assert "'unicorn' is no label of the model" in done.stderr


def test_train_finds_a_missing_folder_before_it_trains(photos: Path, tmp_path: Path) -> None:
    done = run("train", "--data", photos, tmp_path / "nowhere" / "x.safetensors", status=2)
    assert "there is no folder" in done.stderr


def test_train_writes_a_bundle_that_tells_how(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained.safetensors"
    data = ("--data", photos, "--test-data", photos)
    short = ("--epochs", "1", "--batch-size", "2", "--shortcut", "A", "--eager")
    said = run("train", *data, *short, output).stdout
    assert f"wrote {output}" in said
    trained = catalog.load(str(output)).bundle
    assert trained.labels == ("cat", "dog")
    assert trained.architecture.shortcut == "A"
    recipe = trained.provenance["recipe"]
    assert (recipe["name"], recipe["unit"], recipe["phases"][-1]["until"]) == ("quick", "epochs", 1)
    assert trained.provenance["changed"].keys() == {"batch_size", "phases"}
    assert trained.metrics[photos.name]["images"] == 6
    further = tmp_path / "further.safetensors"
    shorter = ("--iterations", "1", "--batch-size", "2", "--eager")
    run("train", "--weights", output, *data, *shorter, further)
    provenance = catalog.load(str(further)).bundle.provenance
    assert provenance["start"]["fingerprint"] == trained.fingerprint()


def test_train_with_seeds_tells_their_mean_and_deviation(photos: Path, tmp_path: Path) -> None:
    output, card = tmp_path / "trained.safetensors", tmp_path / "card.md"
    card.write_text("# Cats and dogs")
    network = ("--set", "blocks=[1]", "--set", "planes=[4]", "--device", "cpu", "--card", card)
    command = ("train", "--data", photos, "--test-data", photos, "--batch-size", "2", *network)
    said = run(*command, "--iterations", "2", "--seeds", "111,222", output).stdout
    figures = []
    for seed in (111, 222):
        trained = catalog.load(str(tmp_path / f"trained-{seed}.safetensors")).bundle
        assert trained.provenance["seed"] == seed
        assert trained.card == "# Cats and dogs"
        figures.append(trained.metrics[photos.name]["top1"])
    mean, deviation = statistics.fmean(figures), statistics.pstdev(figures)
    assert f"{photos.name}, 2 seeds: top-1 {mean:.2%} +- {deviation:.2%}" in said
    assert (tmp_path / "trained-curves.png").read_bytes().startswith(b"\x89PNG")
    again = run(*command, "--iterations", "2", "--seeds", "111,222", "--resume", output).stdout
    assert again.count("is done") == 2


def test_a_run_that_was_stopped_is_not_begun_anew_unasked(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.run").mkdir()
    (tmp_path / "x.run" / "state.pt").write_bytes(b"")
    done = run("train", "--data", photos, tmp_path / "x.safetensors", status=2)
    assert done.stderr == (
        f"resnet-serve: {tmp_path / 'x.run'} holds a run that was stopped; "
        "--resume goes on with it, --restart forgets it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "he2017"], "no recipe is called 'he2017'; did you mean he2016?"),
        (["--variant", "resnet21"], "no variant is called 'resnet21'"),
        (["--variant", "resnet20", "--weights", "x"], "--weights or --variant, not both"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--weights", "random:resnet20", "--shortcut", "C"], "weights do not fit"),
        (["--set", "block=[1]"], "block must be one of basic, bottleneck"),
        (["--epochs", "1", "--iterations", "1"], "--epochs or --iterations, not both"),
        (["--resume", "--restart"], "--resume or --restart, not both"),
        (["--hold-out", "6"], "of 6 images 6 cannot be held out"),
        (["--batch-size", "7"], "6 images are not one batch of 7"),
        (["--batch-size", "2", "--accumulate", "3"], "cannot be divided into 3 parts"),
        (["--device", "cuda:9"], "device cuda:9: torch sees"),
        (["--card", "nowhere.md"], "nowhere.md"),
        (["--name", "cats/dogs"], "name must be printable characters"),
    ],
)
def test_train_says_what_is_wrong_in_one_line(
    photos: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run("train", "--data", photos, *arguments, tmp_path / "x.safetensors", status=2)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("resnet-serve: ")
    assert words in line
    assert not (tmp_path / "x.safetensors").exists()


def test_the_recipes_are_listed() -> None:
    said = run("train", "--list-recipes").stdout
    assert "he2015: He 2015, section 4.2" in said
    assert "resnet20                              0.27M     8.75 %" in said
