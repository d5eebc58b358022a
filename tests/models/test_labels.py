"""Class names are complete, distinct and in the order of the weights that everyone shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import labels
from tests.support.shared import SHARED, needs_shared


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10", 10), ("cifar100", 100), ("imagenet1k", 1000)]
)
def test_the_known_labels_are_complete_and_distinct(name: str, count: int) -> None:
    known = labels.read(name)
    assert len(known) == len(set(known)) == count
    assert labels.default(count) == known


def test_imagenet_is_in_the_order_of_its_synsets() -> None:
    imagenet = labels.read("imagenet1k")
    facts = {
        0: "tench",
        207: "golden retriever",
        281: "tabby",
        # Two synsets of the same word, told apart.
        134: "crane bird",
        517: "crane",
        638: "maillot",
        639: "maillot tank suit",
        999: "toilet tissue",
    }
    found = {index: imagenet[index] for index in facts}
    assert found[281] in {"tabby", "tabby cat"}
    assert {**found, 281: "tabby"} == facts


@needs_shared
def test_imagenet_is_the_list_that_torchvision_has() -> None:
    text = (SHARED / "reference" / "imagenet_classes.json").read_text("utf-8")
    rows = json.loads(text)["classes"]
    assert labels.read("imagenet1k") == tuple(row["torchvision"] for row in rows)


@needs_shared
def test_cifar_is_in_the_order_of_its_own_metadata() -> None:
    known = json.loads((SHARED / "reference" / "layouts.json").read_text("utf-8"))["labels"]
    assert labels.read("cifar10") == tuple(known["cifar10"]["labels"])
    assert [label.replace(" ", "_") for label in labels.read("cifar100")] == known["cifar100"][
        "fine"
    ]


def test_cifar_has_its_own_order() -> None:
    assert labels.read("cifar10") == (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    cifar100 = labels.read("cifar100")
    assert (cifar100[0], cifar100[99]) == ("apple", "worm")
    assert list(cifar100) == sorted(cifar100)


def test_classes_of_no_known_data_set_are_numbered() -> None:
    assert labels.default(3) == ("class 0", "class 1", "class 2")
    assert labels.default(0) == ()


def test_a_file_holds_one_label_a_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("Müsli\r\n  two words \nlast".encode())
    assert labels.read(str(file)) == ("Müsli", "two words", "last")


@pytest.mark.parametrize("content", [b"", b"\n", b"a\n\nb\n", b"a\n  \n"])
def test_an_empty_line_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="have an empty line or none at all") as caught:
        labels.read(str(file))
    assert str(file) in str(caught.value)


def test_what_is_neither_known_nor_readable_is_refused_in_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "labels.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for source in ("cifar11", str(tmp_path), str(tmp_path / "missing")):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
            labels.read(source)
        message = str(caught.value)
        assert message.startswith(
            f"labels {source!r} are neither cifar10, cifar100, imagenet1k nor a file that can be "
            "read ("
        )
    with pytest.raises(ValueError, match="the file is not text in UTF-8"):
        labels.read(str(binary))


def test_imagenet_has_its_synset_ids_and_other_labels_have_none() -> None:
    ids = labels.synsets(labels.read("imagenet1k"))
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[207], ids[999]) == ("n01440764", "n02099601", "n15075141")
    assert labels.synsets(labels.read("cifar10")) == ()
