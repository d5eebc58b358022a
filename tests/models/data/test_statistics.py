"""The statistics are those of all pixels of all images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data import datasets, statistics
from models.data.collection import find
from models.preprocess import CHANNELS, Channels, InputSpec


def folder(path: Path, count: int = 9) -> Path:
    random = np.random.default_rng(0)
    for number in range(count):
        file = path / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 200, (14, 11, 3), dtype=np.uint8)).save(file)
    return path


def described(channels: Channels, **changes: Any) -> InputSpec:
    half = (0.5,) * CHANNELS[channels]
    return InputSpec(size=8, resize=10, channels=channels, mean=half, std=half, **changes)


@pytest.mark.parametrize("channels", ["rgb", "bgr", "grey"])
def test_they_are_those_of_the_pixels_that_the_network_sees(
    tmp_path: Path, channels: Channels
) -> None:
    spec = described(channels)
    pixels = datasets.read(folder(tmp_path), spec).images / 255
    mean, std = statistics.statistics(find(tmp_path), spec)
    assert mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())
    assert std == pytest.approx(pixels.std((0, 1, 2)).tolist())


def test_a_channel_that_never_varies_is_not_divided_by_zero(tmp_path: Path) -> None:
    mean, std = statistics.statistics(find(folder(tmp_path)), described("rgba"))
    assert (mean[3], std[3]) == (1.0, 1.0)
    assert max(std[:3]) < 0.5


def test_of_many_images_a_random_part_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, whole = described("rgb"), find(folder(tmp_path))
    everything = statistics.statistics(whole, spec)
    monkeypatch.setattr(statistics, "MOST_IMAGES", 4)
    part = statistics.statistics(whole, spec)
    assert part != everything
    assert part == statistics.statistics(whole, spec)
    assert part[0] == pytest.approx(everything[0], abs=0.05)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    spec, bad = described("rgb"), folder(tmp_path) / "cat" / "0.png"
    bad.write_bytes(b"")
    found = find(tmp_path)
    with pytest.raises(ValueError, match=r"0\.png is not a readable image"):
        statistics.statistics(found, spec)
    mean, _ = statistics.statistics(found, spec, corrupt="skip")
    bad.unlink()
    assert mean == statistics.statistics(find(tmp_path), spec)[0]
