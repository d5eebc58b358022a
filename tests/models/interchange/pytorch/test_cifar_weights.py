from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from models.interchange import convert
from models.interchange.pytorch import cifar, cifar_weights
from models.preprocess import CIFAR, IMAGENET
from tests.support import libraries, reference
from tests.support.said import said
from tests.support.shared import SHARED, needs_shared


def test_each_row_has_the_checksum_of_one_file() -> None:
    rows = cifar_weights.WEIGHTS
    assert len({row.sha256 for row in rows}) == len(rows)
    assert all(re.fullmatch(r"[0-9a-f]{8}", row.sha256) for row in rows)
    layouts = {layout.name for layout in cifar.LAYOUTS}
    assert all(f"names as in {row.repository}" in layouts for row in rows)


@needs_shared
@pytest.mark.parametrize("file", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_a_published_file_leaves_nothing_to_assume(file: str) -> None:
    path = SHARED / "weights" / file
    made = convert.convert("cifar", path, said(strict=True))
    name = file.partition("-")[0]
    assert made.variant == name
    assert made.provenance["weights"] == f"akamaster/pytorch_resnet_cifar10 {name}"
    assert "assumed" not in made.provenance
    assert made.input == replace(CIFAR, mean=IMAGENET.mean, std=IMAGENET.std)
    assert made.metrics["cifar10-test"]["measured_by"] == "akamaster/pytorch_resnet_cifar10"


def test_names_alone_do_not_say_whose_weights_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """distiller has the names of chenyaofo, and another normalisation."""
    import torch

    theirs = reference.Network("chenyaofo", reference.BasicBlock, (1, 1, 1), 4, 10)
    path = tmp_path / "r.pth"
    torch.save(libraries.randomised(theirs, 32).state_dict(), path)
    made = convert.convert("cifar", path)
    assert {"mean", "std", "labels"} <= made.provenance["assumed"].keys()
    assert made.metrics == {}
    digest = made.provenance["sha256"]
    row = replace(cifar_weights.WEIGHTS[-1], sha256=digest[:8], labels="cifar10", top1=50.0)
    monkeypatch.setattr(cifar_weights, "WEIGHTS", (row,))
    known = convert.convert("cifar", path)
    assert "assumed" not in known.provenance
    assert (known.input.mean, known.input.std) == row.normalisation
    assert known.metrics["cifar10-test"]["top1"] == 0.5
