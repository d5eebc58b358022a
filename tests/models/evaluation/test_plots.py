"""Pictures are drawn of few and of many classes, and refused before any work is done."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.evaluation import plots
from models.evaluation.confidence import reliability


def drawn(path: Path) -> NDArray[np.uint8]:
    """Its pixels, which are not all alike."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 5
    return pixels


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quicker, and whatever is seen is seen in the finer picture too."""
    monkeypatch.setattr(plots, "DPI", 50)


@pytest.mark.parametrize("count", [3, 22, 300])
def test_a_single_mistake_is_seen_among_any_number_of_classes(tmp_path: Path, count: int) -> None:
    labels = [f"class {index}" for index in range(count)]
    confusion = np.diag(np.full(count, 50))
    plots.draw_confusion(confusion, labels, tmp_path / "a.png")
    confusion[count - 1, 0] = 1
    plots.draw_confusion(confusion, labels, tmp_path / "b.png")
    before, after = (drawn(tmp_path / name) for name in ("a.png", "b.png"))
    assert before.shape == after.shape
    assert (np.abs(before.astype(int) - after).max(axis=2) > 20).sum() >= 4


def test_squares_of_classes_keep_the_largest_share() -> None:
    shares = np.zeros((5, 5))
    shares[0, 4], shares[3, 1] = 0.5, 0.25
    assert plots._largest(shares, 2).tolist() == [[0, 0, 0.5], [0.25, 0, 0], [0, 0, 0]]
    assert np.array_equal(plots._largest(shares, 1), shares)


def test_a_class_without_images_is_no_division_by_zero(tmp_path: Path) -> None:
    plots.draw_confusion(np.array([[2, 1], [0, 0]]), ["a", "b"], tmp_path / "x.svg")
    assert "</svg>" in (tmp_path / "x.svg").read_text()


def test_reliability_is_drawn(tmp_path: Path) -> None:
    rows = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], dtype=np.float32)
    plots.draw_reliability(reliability(rows, np.array([1, 0, 1])), tmp_path / "x.png", "title")
    drawn(tmp_path / "x.png")
    plots.draw_reliability(reliability(rows, np.array([1, 0, 1])), tmp_path / "x.svg")
    exclusive = drawn(tmp_path / "x.png")
    bins = reliability(rows, np.array([1, 0, 1]))
    plots.draw_reliability(bins, tmp_path / "y.png", "title", independent=True)
    assert not np.array_equal(drawn(tmp_path / "y.png"), exclusive), "its axes have other names"


def test_what_cannot_be_drawn_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plots.check(tmp_path / "x.PNG")
    with pytest.raises(ValueError, match=r"x\.jpeg: .* \.png, \.svg, \.pdf"):
        plots.check(tmp_path / "x.jpeg")
    with pytest.raises(ValueError, match="there is no folder"):
        plots.check(tmp_path / "nowhere" / "x.png")
    for name in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="needs matplotlib: pip install 'matplotlib>="):
        plots.check(tmp_path / "x.png")
