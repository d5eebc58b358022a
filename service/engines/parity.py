"""How much an engine's results differ from those of plain PyTorch in fp32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.preprocess import InputSpec
from service import runtime
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.eager import eager

IMAGES = 8
# Largest difference of a probability, or of a feature in parts of the largest one: far above the
# effect of rounding on trained networks, far below that of a wrong layout, a lost layer or a
# misread weight.
TOLERANCES = {"fp32": 0.005, "bf16": 0.1, "fp16": 0.05, "int8": 0.25}


class ParityError(RuntimeError):
    """An engine's results differ too much to be served."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Compared with fp32: the share of `images` with the same top-1 class, and the largest
    difference of a probability. For a network without classes, the share of those with the same
    largest feature, and the largest difference of a feature in parts of the largest one."""

    images: int
    top1_agreement: float
    max_difference: float


def reference(blueprint: Blueprint) -> NDArray[np.float32]:
    """Probabilities [P, K] or features [P, F] of the sample images, by plain PyTorch in fp32 on the
    CPU; see `service.engines.comparison`."""
    exact = replace(
        blueprint,
        device="cpu",
        precision="fp32",
        max_batch=IMAGES,
        threads=runtime.spinning_threads(),
    )
    path = exact.cached("reference", ".npy", IMAGES)
    architecture, comparison = blueprint.bundle.architecture, blueprint.comparison
    shape = (IMAGES, architecture.num_classes or architecture.out_channels)
    values = cache.load(path, lambda file: np.load(file).reshape(shape))
    if values is None:
        images = sample_images(blueprint.bundle.input)
        values = comparison.values(
            eager(exact).launch(images, IMAGES, [comparison.task] * IMAGES)()
        )
        cache.store(path, partial(_write, values))
    return values


def _write(values: NDArray[np.float32], path: Path) -> None:
    with path.open("wb") as file:  # Given a path, NumPy would append a suffix.
        np.save(file, values)


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
        ParityError: a value differs by more than the tolerance.
    """
    expected, comparison = reference(blueprint), blueprint.comparison
    images = sample_images(blueprint.bundle.input)
    limit = TOLERANCES[blueprint.precision] if tolerance is None else tolerance
    agreed, computed, largest = 0, 0, 0.0
    for size in sizes:
        for rows in _batches(size, lanes, whole=size == max(sizes)):
            found = infer([images[row] for row in rows])
            difference = comparison.difference(found, expected[rows])
            # Written so that NaN is refused.
            if not difference <= limit:
                raise ParityError(
                    f"its {comparison.name} differ from fp32 by up to {difference:.3g} in a batch "
                    f"of {size}, more than parity_tolerance {limit:g}"
                )
            agreed += int((found.argmax(1) == expected[rows].argmax(1)).sum())
            computed, largest = computed + size, max(largest, difference)
    return Parity(IMAGES, agreed / computed, largest)


def _batches(size: int, lanes: int, *, whole: bool) -> Iterator[NDArray[np.intp]]:
    """The sample images in each batch of `size`: one for every lane, and if `whole`, all images."""
    for batch in range(max(lanes, -(-IMAGES // size) if whole else 1)):
        yield (batch * size + np.arange(size)) % IMAGES


def sample_images(spec: InputSpec) -> list[NDArray[np.uint8]]:
    """The same smooth, colourful uint8 [H, W, C] on every machine."""
    return smooth_images(spec.shape, IMAGES, seed=0)


def smooth_images(shape: tuple[int, int, int], count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Distinct smooth, colourful uint8 [H, W, C], which depend on nothing but the arguments."""
    height, width, channels = shape
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 4, 4, channels), dtype=np.uint8)

    def enlarged(channel: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(image)

    return [np.stack([*map(enlarged, np.moveaxis(each, 2, 0))], axis=2) for each in coarse]
