from __future__ import annotations

import numpy as np
import pytest

from models.interchange import normalisations
from models.interchange.normalisations import Normalisation, is_of_pixels, of_affine
from models.preprocess import InputSpec


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("known", normalisations.OF_RGB)
def test_the_affine_function_of_a_normalisation_gives_it_back(
    known: Normalisation, pixels: bool
) -> None:
    mean, std = np.array(known) * (255 if pixels else 1)
    found = of_affine(1 / std, -mean / std, pixels=pixels)
    np.testing.assert_allclose(found, known, rtol=1e-6)
    if max(known[1]) > 1 / 255:
        assert is_of_pixels(1 / std, -mean / std) == pixels


def test_every_normalisation_is_one_of_a_specification() -> None:
    for channels, known in (
        ("rgb", normalisations.OF_RGB),
        ("grey", normalisations.OF_GREY),
    ):
        for mean, std in known:
            InputSpec(size=32, resize=32, mean=mean, std=std, channels=channels)  # type: ignore[arg-type]
