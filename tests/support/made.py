"""Images that a tiny network tells apart within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from models.data.datasets import Dataset

CLASSES = ("blue", "green", "red")


def coloured(count: int, source: str = "made", seed: int = 0, side: int = 32) -> Dataset:
    """Noise that is mostly red, green or blue."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    images = random.integers(0, 128, (count, side, side, 3))
    images[np.arange(count), :, :, targets] += 127
    return Dataset(images.astype(np.uint8), 2 - targets.astype(np.int64), CLASSES, source)


def folder(path: Path, count: int, seed: int = 0) -> Path:
    """The same as CLASS/FILE.png."""
    data = coloured(count, seed=seed)
    for number, (image, target) in enumerate(zip(data.images, data.targets, strict=True)):
        file = path / CLASSES[target] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return path
