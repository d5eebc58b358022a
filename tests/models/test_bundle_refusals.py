"""What is no whole bundle is refused with one line, and nothing in it runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from models import bundle, bundle_header, bundling, labels
from models.bundle import BundleError, WeightsMismatch
from models.preprocess import IMAGENET
from models.resnet import build
from tests.support import tiny

CHANGED = "its checksum does not match: the file was changed or damaged"


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(BundleError) as caught:
        bundle.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable(), "one line, and no control characters"
    return message.removeprefix(f"{path}: ")


def forge(path: Path, *, drop: str | None = None, reseal: bool = True, **changes: Any) -> None:
    """Rewrites the metadata as another program would, from the format's description alone."""
    with safetensors.safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["resnet-serve"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = description.pop("checksum")
    description.update(changes)
    if drop:
        del description[drop]
    if reseal:
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
        checksum = digest.hexdigest()
    metadata = {"resnet-serve": json.dumps({**description, "checksum": checksum})}
    safetensors.torch.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"card": 3}, "card must be text"),
    ],
)
def test_temperatures_and_cards_are_checked(
    bundle_file: Path, changes: dict[str, Any], words: str
) -> None:
    forge(bundle_file, **changes)
    assert words in refusal(bundle_file)


def test_a_temperature_of_one_may_be_written_out(bundle_file: Path) -> None:
    forge(bundle_file, temperature=1, card="")
    read = bundle.read(bundle_file)
    assert (read.temperature, read.card) == (1.0, "")


def test_the_format_can_be_written_from_its_description(bundle_file: Path) -> None:
    forge(bundle_file, name="by-another-program")
    read = bundle.read(bundle_file)
    assert read.name == "by-another-program"
    assert tiny.same_bits(read.tensors, tiny.made_bundle().tensors)


def test_a_file_cut_anywhere_is_refused(bundle_file: Path) -> None:
    whole = bundle_file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = {*range(12), *range(12, len(whole), 97), header - 1, header, header + 1, len(whole) - 1}
    messages = set()
    for cut in sorted(cuts):
        bundle_file.write_bytes(whole[:cut])
        messages.add(refusal(bundle_file).partition(" (")[0])
    assert messages == {
        bundle_header.OTHER,
        bundle_header.TRUNCATED,
        "not a whole safetensors file",
    }
    bundle_file.write_bytes(whole + b"\0")
    assert "not a whole safetensors file" in refusal(bundle_file)


def test_a_file_with_any_byte_changed_is_refused(bundle_file: Path) -> None:
    whole = bundle_file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    choose = random.Random(0)
    offsets = {
        *range(16),
        *choose.sample(range(16, header), 250),
        *choose.sample(range(header, len(whole)), 100),
        len(whole) - 1,
    }
    for offset in sorted(offsets):
        # 0xff makes every header byte something that JSON does not mean the same by.
        changed = whole[offset] ^ 0xFF
        bundle_file.write_bytes(whole[:offset] + bytes([changed]) + whole[offset + 1 :])
        refusal(bundle_file)
    for offset in choose.sample(range(header, len(whole)), 100):
        bundle_file.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        assert refusal(bundle_file) == CHANGED


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"variant": "resnet20"},
        {"labels": list(labels.read("cifar10"))},
        {"provenance": {}},
        {"metrics": {"cifar10-test": {"top1": 0.99, "images": 10_000}}},
        {"input": asdict(IMAGENET)},
        {"architecture": asdict(tiny.architecture(shortcut_padding="end"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_metadata_is_refused(bundle_file: Path, change: dict[str, Any]) -> None:
    forge(bundle_file, reseal=False, **change)
    assert refusal(bundle_file) == CHANGED


def test_a_tensor_under_another_name_is_refused(bundle_file: Path) -> None:
    data = bundle_file.read_bytes()
    # Equal in length and shape: only the checksum can tell.
    swapped = data.replace(b"stages.0.0.bn1.weight", b"@").replace(
        b"stages.0.0.bn2.weight", b"stages.0.0.bn1.weight"
    )
    bundle_file.write_bytes(swapped.replace(b'"@"', b'"stages.0.0.bn2.weight"'))
    assert refusal(bundle_file) == CHANGED


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ({"format": 2}, "bundle format 2; this version reads format 1"),
        ({"format": "new"}, "bundle format new; this version reads format 1"),
        ({"drop": "format"}, "its resnet-serve metadata is damaged"),
        ({"drop": "name"}, "its resnet-serve metadata is incomplete"),
        ({"drop": "input"}, "its resnet-serve metadata is incomplete"),
        ({"labels": ["one", "two"]}, "2 labels do not fit 10 classes"),
        ({"variant": "resnet21"}, "no variant is called 'resnet21'; nearest: "),
        ({"surplus": 1}, "made by a newer resnet-serve, whose 'surplus' this one does not know"),
        (
            {"architecture": {**asdict(tiny.ARCHITECTURE), "gates": 2}},
            "newer resnet-serve, whose 'g",
        ),
        (
            {"input": {**asdict(IMAGENET), "tiles": 2}},
            "made by a newer resnet-serve, whose 'tiles'",
        ),
        (
            {"architecture": {**asdict(tiny.ARCHITECTURE), "in_channels": 1}},
            "in_channels must be 3 for rgb images, not 1",
        ),
        (
            {"architecture": {**asdict(tiny.ARCHITECTURE), "shortcut": "D"}},
            "shortcut must be one of A, B, C, conv, not 'D'",
        ),
        ({"input": {**asdict(IMAGENET), "size": 300}}, "resize must be at least size (300)"),
    ],
    ids=str,
)
def test_whole_files_that_mean_nothing_to_us_are_refused(
    bundle_file: Path, forged: dict[str, Any], message: str
) -> None:
    forge(bundle_file, **forged)
    assert message in refusal(bundle_file)


def test_weights_of_another_variant_are_refused_with_the_difference(bundle_file: Path) -> None:
    forge(
        bundle_file,
        architecture=asdict(tiny.architecture(shortcut="A", num_classes=10, planes=(4, 6))),
    )
    with pytest.raises(WeightsMismatch) as caught:
        bundle.read(bundle_file)
    difference = caught.value.difference
    assert "- head.weight [10, 6]" in difference
    assert "+ head.weight [10, 8]" in difference
    assert "+ stages.1.0.shortcut.conv.weight [8, 4, 1, 1]" in difference
    assert not any("shortcut" in line for line in difference if line.startswith("-"))
    assert not any("stages.0." in line for line in difference)
    count = len({line.split()[1] for line in difference})
    assert f"{count} tensors differ, first - head.weight [10, 6]; + head.weight" in refusal(
        bundle_file
    )


class Runs:
    """Unpickling this touches a file."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[[str, int], object], tuple[str, int]]:
        return os.mkdir, (str(self.touched), 0o700)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_pytorch_checkpoints_are_refused_and_nothing_in_them_runs(
    tmp_path: Path, form: str, protocol: int
) -> None:
    touched, path = tmp_path / "touched", tmp_path / "model.safetensors"
    evil = {"weight": torch.ones(2), "evil": Runs(touched)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol))
    else:
        torch.save(
            evil,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=form == "zip",
        )
    assert "a PyTorch checkpoint (pickle), not a bundle; `resnet-serve convert" in refusal(path)
    assert not touched.exists()
    # The file does run code where it is unpickled.
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert touched.exists()


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert refusal(path) == "No such file or directory"
    assert "Is a directory" in refusal_of_directory(tmp_path)
    for content in (b"", b"{", b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + b"0" * 100):
        path.write_bytes(content)
        assert refusal(path) == bundle_header.OTHER
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    assert refusal(path).startswith(
        "safetensors, but not a resnet-serve bundle; `resnet-serve conv"
    )
    for metadata in ("", "[]", "7", "{}", '{"format": 1}', '"text"'):
        safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"resnet-serve": metadata})
        assert refusal(path) == "its resnet-serve metadata is damaged"


def refusal_of_directory(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        bundle.read(path)
    return str(caught.value)


@pytest.mark.parametrize("length", [0x10280, 0x10380, 0x10480, 0x10580])
def test_a_header_of_any_length_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"

    def write(padding: int) -> int:
        bundle.write(tiny.made_bundle(provenance={"source": "x" * padding}), path)
        header: int = struct.unpack("<Q", path.read_bytes()[:8])[0]
        return header

    # The format rounds headers up to multiples of 8 bytes.
    assert write(length - write(0)) == length
    assert bundle.read(path).name == "tiny-cifar10"


@pytest.mark.parametrize(
    "change",
    [{"planes": [10**12, 10**12]}, {"planes": [10**30, 10**30]}, {"width": 1e300}],
    ids=["memory", "integers", "width"],
)
def test_networks_of_impossible_size_are_refused(bundle_file: Path, change: dict[str, Any]) -> None:
    forge(bundle_file, architecture={**asdict(tiny.ARCHITECTURE), **change})
    refusal(bundle_file)


def test_metadata_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"resnet-serve": "[" * 100_000}
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, metadata)
    assert refusal(path) == "its resnet-serve metadata is damaged"


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"name": "two words"},
        {"name": "../a"},
        {"labels": list(range(10))},
        {"labels": "ten chars!"},
    ],
    ids=str,
)
def test_impossible_names_and_labels_are_refused(bundle_file: Path, change: dict[str, Any]) -> None:
    forge(bundle_file, **change)
    refusal(bundle_file)


CONVERT = "`resnet-serve convert --from FORMAT SRC DST` makes one"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"name": 7}, "name must be text, not 7"),
    ({"name": "two words"}, "name must be printable characters other than spaces and"),
    ({"labels": "ten chars!"}, "labels must be a list of texts, in the order of the classes"),
    ({"labels": list(range(10))}, "labels must be a list of texts, in the order of the classes"),
    (
        {"labels": ["one"] * 9 + [None]},
        "labels must be a list of texts, in the order of the classes",
    ),
    ({"variant": "resnet20"}, "the architecture is not resnet20's"),
    (
        {"card": "x" * 20_001},
        "card must have at most 20000 bytes, not 20001",
    ),
    ({"card": 3}, "card must be text, not 3"),
    (
        {"card": "a\vb"},
        r"card must be Markdown text, without the control character '\x0b'",
    ),
    ({"temperature": 0}, "temperature must be a number from 1e-06 to 1e+06, not 0"),
    ({"temperature": "1"}, "temperature must be a number from 1e-06 to 1e+06, not '1'"),
    ({"format": 2}, "bundle format 2; this version reads format 1"),
    (
        {"surplus": 1},
        "made by a newer resnet-serve, whose 'surplus' this one does not know; upgrade",
    ),
    ({"drop": "input"}, "its resnet-serve metadata is incomplete ('input')"),
    (
        {"architecture": {**asdict(tiny.ARCHITECTURE), "planes": [10**12, 10**12]}},
        "planes must be at most 1,000,000",
    ),
    (
        # Three convolutions with four tensors of normalisation each, and the head's weight.
        {"architecture": asdict(tiny.architecture(planes=(4, 6), num_classes=10))},
        "weights do not fit its architecture: 16 tensors differ, "
        "first - head.weight [10, 6]; + head.weight [10, 8] (- expected, + found)",
    ),
]


@pytest.mark.parametrize(
    ("forged", "message"),
    REFUSALS,
    ids=[f"{at}-{next(iter(row))}" for at, (row, _) in enumerate(REFUSALS)],
)
def test_a_refusal_says_what_is_wrong(
    bundle_file: Path, forged: dict[str, Any], message: str
) -> None:
    forge(bundle_file, **forged)
    said = refusal(bundle_file)
    assert said.startswith(message) if "spaces" in message else said == message


def test_what_is_no_bundle_is_told_how_to_become_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    assert refusal(path) == f"safetensors, but not a resnet-serve bundle; {CONVERT}"
    # Without a tensor, a header is all there is.
    safetensors.torch.save_file({}, path)
    assert refusal(path) == f"safetensors, but not a resnet-serve bundle; {CONVERT}"
    path.write_bytes(pickle.dumps({"weight": 1}, 2))
    assert refusal(path) == f"a PyTorch checkpoint (pickle), not a bundle; {CONVERT} from it"


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"])
@pytest.mark.parametrize("length", [5, 8, 9, 100])
def test_checkpoints_are_known_by_how_they_begin(tmp_path: Path, start: bytes, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(start.ljust(length, b"x"))
    assert refusal(path) == f"a PyTorch checkpoint (pickle), not a bundle; {CONVERT} from it"
    path.write_bytes(b"x" + start.ljust(length, b"x"))
    assert refusal(path) == bundle_header.OTHER


@pytest.mark.parametrize("length", [1, 2**31, 2**63, 2**64 - 1])
def test_a_header_beyond_the_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{")
    cut = bundle_header.TRUNCATED
    assert refusal(path).partition(" (")[0] == (
        "not a whole safetensors file" if length == 1 else cut
    )


def test_weights_of_a_named_network_are_refused_by_its_name(tmp_path: Path) -> None:
    made = bundling.from_network(
        build("resnet20", shortcut="A", num_classes=10), **tiny.described()
    )
    assert made.variant == "resnet20"
    path = tmp_path / "x.safetensors"
    bundle.write(made, path)
    del made.tensors["head.bias"]
    words = "weights do not fit resnet20: 1 tensors differ, first - head.bias [10]"
    with pytest.raises(WeightsMismatch) as caught:
        made.network()
    assert str(caught.value) == f"{words} (- expected, + found)"
    with pytest.raises(WeightsMismatch) as caught:
        bundle.write(made, path)
    assert str(caught.value).startswith("weights do not fit its architecture: 1 tensors differ")
    wider = {**asdict(made.architecture), "num_classes": 10, "planes": [16, 32, 65]}
    forge(path, architecture=wider, variant=None)
    assert refusal(path).startswith("weights do not fit its architecture: ")
    forge(path, architecture=asdict(made.architecture), variant="resnet20", labels=["x"] * 10)
    assert bundle.read(path).variant == "resnet20"


def test_a_tensor_of_another_type_is_refused(bundle_file: Path) -> None:
    made = tiny.made_bundle()
    made.tensors["head.weight"] = made.tensors["head.weight"].half()
    with pytest.raises(BundleError) as caught:
        made.network()
    assert str(caught.value) == "head.weight must be torch.float32, not torch.float16"
    assert not isinstance(caught.value, WeightsMismatch)


def test_a_refusal_by_the_system_says_the_systems_reason(tmp_path: Path) -> None:
    path = tmp_path / "missing.safetensors"
    assert refusal(path) == "No such file or directory"
    with pytest.raises(BundleError) as caught:
        bundle.read(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: Is a directory"
