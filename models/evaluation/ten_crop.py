"""Ten-crop testing: the mean prediction of ten views of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.evaluation.evaluate import Infer
from models.preprocess import InputSpec

Pixels = NDArray[np.uint8]


def whole(spec: InputSpec) -> InputSpec:
    """The input specification that reads images large enough for the crops of `ten`.

    The centred square of the resized image, `spec.resize` pixels a side (Krizhevsky 2012,
    sections 2 and 4.1; He 2015, arXiv:1512.03385, section 3.4, adopts its 10-crop testing); or
    what the network's input is cut out of, where that is no square.

    Raises:
        ValueError: images are not resized to more than the network sees.
    """
    seen, (height, width) = (spec.height, spec.width), spec.box
    if (height, width) == seen or height < seen[0] or width < seen[1]:
        sees = seen[0] if seen[0] == seen[1] else f"{seen[0]} x {seen[1]}"
        raise ValueError(
            f"ten crops need images resized to more than the {sees} pixels that the network "
            "sees; this model's are not, use --crops center"
        )
    return replace(spec, size=spec.resize)


def ten(image: Pixels, height: int, width: int) -> list[Pixels]:
    """The four corners and the centre of uint8 [H, W, C], each of that size, and their mirrors.

    In order: top left, top right, bottom left, bottom right, centre, and these five mirrored.
    """
    bottom, right = image.shape[0] - height, image.shape[1] - width
    # Halves round to even, as in serving.
    corners = (
        (0, 0),
        (0, right),
        (bottom, 0),
        (bottom, right),
        (round(bottom / 2), round(right / 2)),
    )
    views = [image[top : top + height, left : left + width] for top, left in corners]
    return views + [view[:, ::-1] for view in views]


def averaged(infer: Infer, spec: InputSpec) -> Infer:
    """`infer` on `ten` crops of each image, of the size that `spec` says: the mean of their
    probabilities, float32 [N, K]."""

    def ten_times(images: Sequence[Pixels]) -> NDArray[np.float32]:
        views = [view for image in images for view in ten(image, spec.height, spec.width)]
        rows = infer(views)
        means = rows.reshape(len(images), 10, -1).mean(axis=1, dtype=np.float64)
        probabilities: NDArray[np.float32] = means.astype(np.float32)
        return probabilities

    return ten_times
