"""The pieces of the benchmarks that no user runs through the service."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.common import images
from benchmarks.serving import ceilings
from models.preprocess import CIFAR
from service.inference.tasks import Pixels
from tests.conftest import encoded


def test_photos_are_distinct_and_of_the_right_size() -> None:
    made = images.photos(3)
    assert len(set(made)) == 3
    assert made == images.photos(3)
    for data in made:
        assert 0.9 * images.PHOTO_BYTES < len(data) <= images.PHOTO_BYTES
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == ("JPEG", images.PHOTO_SIZE)


def test_small_images_are_distinct() -> None:
    made = images.small(32, 5)
    assert len(set(made)) == 5
    with Image.open(io.BytesIO(made[0])) as image:
        assert (image.format, image.size) == ("PNG", (32, 32))


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no files"):
        images.read(tmp_path)


def test_the_engine_is_asked_for_every_batch_size() -> None:
    asked: set[int] = set()

    def infer(batch: list[Pixels]) -> ceilings.Probabilities:
        asked.add(len(batch))
        return np.zeros((len(batch), 10), np.float32)

    rates = ceilings.engine_rates(infer, [np.zeros((32, 32, 3), np.uint8)], seconds=0.01)
    assert asked == set(ceilings.BUCKETS)
    assert min(rates.values()) > 0


def test_one_thread_decodes() -> None:
    assert ceilings.decode_rate([encoded()], CIFAR, seconds=0.02) > 0


@pytest.mark.slow
def test_the_echo_answers() -> None:
    rates = ceilings.echo_rates([encoded()], seconds=0.2)
    assert set(rates) == {"1", "16", "64"}
    assert min(rates.values()) > 0
