"""A mirrored view is averaged with the plain one, at every place that shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import bundle
from models.bundle import BundleError
from models.classifier import Classifier
from models.preprocess import CIFAR
from models.views import PASSES, averaged, seen_as
from tests.support import rounding, tiny

PIXELS = torch.randint(
    256, (3, 8, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def test_maps_are_the_mean_of_both_views_with_the_mirrored_ones_mirrored_back() -> None:
    images = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.arange(6.0)
    seen: list[int] = []

    def maps(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images * weights

    assert averaged(maps, "plain") is maps
    expected = images * (weights + weights.flip(0)) / 2
    torch.testing.assert_close(averaged(maps, "mirrored")(images), expected)
    assert seen == [3 * PASSES["mirrored"]]


def test_sums_beyond_float16_do_not_overflow() -> None:
    images = torch.full((1, 1, 1, 2), 60_000.0, dtype=torch.float16)
    assert torch.equal(averaged(lambda images: images, "mirrored")(images), images)


@pytest.mark.parametrize("outputs", ["exclusive", "independent"])
def test_a_classifier_averages_the_logits_of_both_views(outputs: str) -> None:
    network = tiny.network()
    with torch.no_grad():
        network.head.get_parameter("weight").mul_(0.5)
    classifier = Classifier(network, CIFAR, 2.0, outputs, "mirrored")  # type: ignore[arg-type]
    with torch.no_grad():
        straight, mirrored = (
            network(classifier.normalise(view)) for view in (PIXELS, PIXELS.flip(2))
        )
    logits = (straight + mirrored) / 4
    expected = logits.softmax(1) if outputs == "exclusive" else logits.sigmoid()
    found = classifier(PIXELS)
    rounding.assert_near(found, expected, network, scale=float(straight.abs().max()))
    assert (found - Classifier(network, CIFAR, 2.0)(PIXELS)).abs().max() > 0.01


def test_an_image_and_its_mirror_image_have_one_answer_and_mirrored_maps() -> None:
    classifier = Classifier(tiny.network(), CIFAR, views="mirrored")
    (first, maps), (second, others) = map(classifier.with_maps, (PIXELS, PIXELS.flip(2)))
    rounding.assert_near(second, first, classifier.network)
    rounding.assert_near(others.flip(3), maps, classifier.network)


def test_other_views_put_the_metrics_aside_and_find_them_again() -> None:
    plain = tiny.made_bundle(temperature=1.5)
    mirrored = seen_as(plain, "mirrored")
    assert (mirrored.views, mirrored.metrics, mirrored.temperature) == ("mirrored", {}, 1.5)
    assert mirrored.provenance["measured"] == {"plain": plain.metrics}
    assert seen_as(mirrored, "plain") == plain
    assert seen_as(plain, "plain") is plain
    measured = replace(mirrored, metrics={"x": {"top1": 1.0}})
    again = seen_as(measured, "plain")
    assert again.metrics == plain.metrics
    assert again.provenance["measured"] == {"mirrored": {"x": {"top1": 1.0}}}
    assert seen_as(again, "mirrored") == measured


def test_views_come_back_and_are_part_of_what_a_bundle_is(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    made = tiny.made_bundle(views="mirrored")
    bundle.write(made, path)
    assert bundle.read(path).views == "mirrored"
    assert bundle.read(path).classifier().views == "mirrored"
    assert made.fingerprint() != tiny.made_bundle().fingerprint()
    with pytest.raises(BundleError, match=r"^views must be plain or mirrored, not 'both'$"):
        tiny.made_bundle(views="both")
