"""The command `models`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models import bundle, variants
from models.interchange import onnx_zoo
from models.summary import count_parameters
from service.cli.models import table as table_of
from tests.support import kinds, tiny
from tests.support.commands import run


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
    [("wied", "did you mean wide?"), ("x*", "no network matches 'x*'")],
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


def test_a_bundle_is_shown_with_its_views_its_storage_and_brief_metrics(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    measured = {"top1": 0.5, "nll": 0.25, "per_class": [{"label": "a"}]}
    made = tiny.made_bundle(metrics={"test": measured}, views="mirrored")
    made.tensors["stem.conv.weight"][0] *= 1e-6
    bundle.write(replace(made, storage="fp16"), file)
    lines = dict(line.split(maxsplit=1) for line in run("models", file).stdout.splitlines())
    assert lines["views"] == "mirrored"
    assert lines["storage"] == "fp16, but fp32 for stem.conv.weight"
    assert lines["measured"] == "test: top-1 50.00%, NLL 0.25"
    facts = json.loads(run("models", file, "--json").stdout)
    assert (facts["views"], facts["storage"]) == ("mirrored", "fp16")
    assert facts["metrics"] == {"test": measured}


@pytest.mark.parametrize(
    ("name", "outputs", "size", "channels"),
    [
        ("independent", "independent", 32, "rgb"),
        ("squashed", "exclusive", [48, 32], "rgb"),
        ("grey", "exclusive", 28, "grey"),
    ],
)
def test_weights_are_shown_with_their_outputs_and_input(
    tmp_path: Path, name: str, outputs: str, size: object, channels: str
) -> None:
    kinds.write(tmp_path, name)
    file = tmp_path / f"{name}.safetensors"
    facts = json.loads(run("models", file, "--json").stdout)
    assert (facts["outputs"], facts["input"], facts["channels"]) == (outputs, size, channels)
    lines = dict(line.split(maxsplit=1) for line in run("models", file).stdout.splitlines()[:6])
    assert (lines["outputs"], lines["channels"]) == (outputs, channels)
    assert lines["input"] == json.dumps(size)


def test_a_file_shows_what_it_holds(tmp_path: Path) -> None:
    made = tiny.made_bundle(
        outputs="independent",
        provenance={
            "source": "w.pth",
            "format": "timm",
            "layout": "timm",
            "assumed": {"pool": "max", "dilation": []},
            "notes": ["took the averaged weights"],
        },
    )
    bundle.write(made, tmp_path / "m.safetensors")
    lines = run("models", tmp_path / "m.safetensors").stdout.splitlines()
    shown = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}
    assert shown["labels"] == "Müsli, automobile, bird and 7 more"
    assert shown["preprocessed"].startswith("size 200, resize 256, crop center, interpolation bic")
    assert shown["outputs"] == "independent"
    assert shown["origin"] == "w.pth (timm, timm)"
    assert shown["assumed"] == "--set pool=max --set 'dilation=[]'"
    assert shown["note"] == "took the averaged weights"
    found = json.loads(run("models", "--json", tmp_path / "m.safetensors").stdout)
    assert found["labels"] == list(made.labels)
    assert found["preprocessing"]["resize"] == 256


def test_the_onnx_model_zoo_as_a_table_and_as_json() -> None:
    lines = run("models", "--zoo").stdout.splitlines()
    (row,) = [line for line in lines if line.startswith("resnet50-v1-7 ")]
    assert row.split() == ["resnet50-v1-7", "7", "102.6", "74.93", "92.38", "af16a04a6ec48ac4"]
    (row,) = [line for line in lines if line.startswith("resnet50-v1-12-qdq ")]
    assert row.endswith("int8: not read")
    rows = json.loads(run("models", "--zoo", "--json").stdout)
    assert [row["spec"] for row in rows if row["spec"]] == [
        f"onnx-zoo:{name}" for name in onnx_zoo.names()
    ]
    assert [row["name"] for row in json.loads(run("models", "--zoo", "*-v2-*", "--json").stdout)]
    line = run("models", "--zoo", "resnet50", status=2).stderr
    assert "did you mean resnet50-v" in line


def test_the_classes_of_a_bundle_are_shown_with_what_they_are_taken_for(tmp_path: Path) -> None:
    file, labels = tmp_path / "x.safetensors", tiny.made_bundle().labels
    per_class = [{"label": label, "accuracy": 0.5, "images": 4} for label in labels]
    confusion = [
        [2 * (row == column) + 2 * (row + 1 == column) for column in range(len(labels))]
        for row in range(len(labels))
    ]
    figures = {"top1": 0.5, "top5": 1.0, "per_class": per_class, "confusion": confusion}
    bundle.write(tiny.made_bundle(metrics={"test": figures}), file)
    text = run("models", file).stdout
    assert f"50.00% of 4, 2 taken for {labels[1]}" in text
    assert ("top-5" in text) == (len(labels) > 5)


def test_a_file_that_is_not_there_is_no_network() -> None:
    said = run("models", "mine.safetensors", status=2).stderr
    assert said.startswith("resnet-serve: mine.safetensors: no such file; ")


def test_a_file_shows_what_its_network_costs(tmp_path: Path) -> None:
    row = json.loads(run("models", "resnet20", "--json").stdout)
    facts = json.loads(run("models", "random:resnet20", "--json").stdout)
    for name in ("parameters", "layers", "depth", "macs"):
        assert facts[name] == row[name]
    lines = dict(
        line.split(maxsplit=1) for line in run("models", "random:resnet20").stdout.splitlines()
    )
    assert (lines["parameters"], lines["layers"]) == ("272,474", "22")
    assert (lines["depth"], lines["MACs"]) == ("20", "40.8 M")
    # One without a name has the depth that its blocks make.
    bundle.write(made := tiny.made_bundle(), tmp_path / "x.safetensors")
    facts = json.loads(run("models", "--json", tmp_path / "x.safetensors").stdout)
    assert facts["depth"] == made.architecture.depth
    assert facts["parameters"] == count_parameters(made.skeleton())
