"""How far an engine's answers are from those of plain PyTorch in fp32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service import runtime
from service.engines import cache
from service.engines.blueprint import Blueprint
from service.engines.eager import eager

IMAGES = 8
# Of a probability. Far above what rounding does to trained networks, far below what a wrong
# layout, a lost layer or a misread weight does.
TOLERANCES = {"fp32": 0.005, "bf16": 0.1, "fp16": 0.05, "int8": 0.25}


class ParityError(RuntimeError):
    """An engine's answers differ too much to be served."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Against fp32: the share of `images` with the same likeliest class, and the largest
    difference of any probability."""

    images: int
    top1_agreement: float
    max_difference: float


def reference(blueprint: Blueprint) -> NDArray[np.float32]:
    """Probabilities [P, K] of the images, by plain PyTorch in fp32 on the CPU."""
    exact = replace(
        blueprint,
        device="cpu",
        precision="fp32",
        max_batch=IMAGES,
        threads=runtime.spinning_threads(),
    )
    path = exact.cached("reference", ".npy", IMAGES)
    shape = (IMAGES, blueprint.bundle.architecture.num_classes)
    found = cache.kept(path, lambda file: np.load(file).reshape(shape))
    if found is None:
        images = test_images(blueprint.bundle.input.size)
        made = found = eager(exact).launch(images, IMAGES)().by_class()
        cache.keep(path, lambda file: np.save(file, made))
    return found


def check(
    infer: Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]],
    blueprint: Blueprint,
    tolerance: float | None,
) -> Parity:
    """The parity of `infer`; `tolerance` None is the precision's own.

    Raises:
        ParityError: a probability differs by more than the tolerance.
    """
    expected = reference(blueprint)
    found = infer(test_images(blueprint.bundle.input.size))
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    difference = float(np.abs(found - expected).max())
    limit = TOLERANCES[blueprint.precision] if tolerance is None else tolerance
    # Written so that NaN is refused.
    if not difference <= limit:
        raise ParityError(
            f"its probabilities are up to {difference:.3g} from fp32, "
            f"more than parity_tolerance {limit:g}"
        )
    return Parity(IMAGES, agreement, difference)


def test_images(side: int) -> list[NDArray[np.uint8]]:
    """The same smooth, colourful uint8 [side, side, 3] on every machine."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)
    bicubic = Image.Resampling.BICUBIC
    return [np.asarray(Image.fromarray(each).resize((side, side), bicubic)) for each in coarse]
