from __future__ import annotations

from dataclasses import replace

from models.preprocess import CIFAR, IMAGENET
from service.engines.decode_cost import decode_seconds, typical_file


def test_a_photograph_is_typical_of_large_inputs_and_a_small_png_of_small_ones() -> None:
    assert typical_file(CIFAR).startswith(b"\x89PNG")
    photo = typical_file(IMAGENET)
    assert photo.startswith(b"\xff\xd8\xff")
    assert 30_000 < len(photo) < 60_000
    assert decode_seconds(CIFAR) < decode_seconds(IMAGENET)


def test_networks_of_any_input_have_a_typical_file() -> None:
    huge = replace(IMAGENET, size=1200, resize=1300)
    assert decode_seconds(huge) > 0
