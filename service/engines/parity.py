"""How much an engine's probabilities differ from those of plain PyTorch in fp32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service import runtime
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.eager import eager

IMAGES = 8
# Largest difference of a probability: far above the effect of rounding on trained networks, far
# below that of a wrong layout, a lost layer or a misread weight.
TOLERANCES = {"fp32": 0.005, "bf16": 0.1, "fp16": 0.05, "int8": 0.25}


class ParityError(RuntimeError):
    """An engine's probabilities differ too much to be served."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Compared with fp32: the share of `images` with the same top-1 class, and the largest
    difference of a probability."""

    images: int
    top1_agreement: float
    max_difference: float


def reference(blueprint: Blueprint) -> NDArray[np.float32]:
    """Probabilities [P, K] of the sample images, by plain PyTorch in fp32 on the CPU."""
    exact = replace(
        blueprint,
        device="cpu",
        precision="fp32",
        max_batch=IMAGES,
        threads=runtime.spinning_threads(),
    )
    path = exact.cached("reference", ".npy", IMAGES)
    shape = (IMAGES, blueprint.bundle.architecture.num_classes)
    probabilities = cache.load(path, lambda file: np.load(file).reshape(shape))
    if probabilities is None:
        images = sample_images(blueprint.bundle.input.size)
        probabilities = eager(exact).launch(images, IMAGES)().by_class()
        cache.store(path, partial(_write, probabilities))
    return probabilities


def _write(probabilities: NDArray[np.float32], path: Path) -> None:
    with path.open("wb") as file:  # Given a path, NumPy would append a suffix.
        np.save(file, probabilities)


def check(
    infer: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]],
    sizes: Collection[int],
    lanes: int,
    blueprint: Blueprint,
    tolerance: float | None,
) -> Parity:
    """The parity of `infer`, over all batch sizes and lanes: each may be a program of its own.

    `infer` computes one batch, and each call uses the next of the engine's `lanes`. `tolerance`
    None: the default of the precision.

    Raises:
        ParityError: a probability differs by more than the tolerance.
    """
    expected = reference(blueprint)
    images = sample_images(blueprint.bundle.input.size)
    limit = TOLERANCES[blueprint.precision] if tolerance is None else tolerance
    agreed, computed, largest = 0, 0, 0.0
    for size in sizes:
        for rows in _batches(size, lanes, whole=size == max(sizes)):
            probabilities = infer([images[row] for row in rows])
            difference = float(np.abs(probabilities - expected[rows]).max())
            # Written so that NaN is refused.
            if not difference <= limit:
                raise ParityError(
                    f"its probabilities differ from fp32 by up to {difference:.3g} in a batch of "
                    f"{size}, more than parity_tolerance {limit:g}"
                )
            agreed += int((probabilities.argmax(1) == expected[rows].argmax(1)).sum())
            computed, largest = computed + size, max(largest, difference)
    return Parity(IMAGES, agreed / computed, largest)


def _batches(size: int, lanes: int, *, whole: bool) -> Iterator[NDArray[np.intp]]:
    """The sample images in each batch of `size`: one for every lane, and if `whole`, all images."""
    for batch in range(max(lanes, -(-IMAGES // size) if whole else 1)):
        yield (batch * size + np.arange(size)) % IMAGES


def sample_images(side: int) -> list[NDArray[np.uint8]]:
    """The same smooth, colourful uint8 [side, side, 3] on every machine."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)
    bicubic = Image.Resampling.BICUBIC
    return [np.asarray(Image.fromarray(image).resize((side, side), bicubic)) for image in coarse]
