"""The one forward: softmax of the network of the normalised image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.classifier import Classifier, Normalise
from models.preprocess import CIFAR, IMAGENET, InputSpec
from models.resnet import ResNet
from tests.support import rounding, tiny


def noise(count: int = 4, side: int = 8) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def moderate(network: ResNet) -> ResNet:
    """`network` with logits near each other, so that no probability is all but 0 or 1."""
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(0.05)
    return network


@pytest.mark.parametrize("spec", [CIFAR, IMAGENET, replace(CIFAR, mean=(0, 0, 0), std=(1, 1, 1))])
def test_probabilities_are_the_softmax_of_the_normalised_images_logits(spec: InputSpec) -> None:
    images = noise()
    network = moderate(tiny.network(blocks=(2, 1)))
    probabilities = Classifier(network, spec)(images)
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (4, 10)

    x = images.double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (spec.mean, spec.std))
    exponents = network.double()((x - mean) / std).exp()
    expected = exponents / exponents.sum(1, keepdim=True)
    rounding.assert_probabilities_near(probabilities, expected, network)
    # A network that answers the same to everything would hide a wrong normalisation.
    assert expected.std(0).max() > 0.01


def test_every_pixel_value_is_normalised_to_float32s_precision() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    normalised = Normalise(IMAGENET)(values)
    assert normalised.shape == (1, 3, 16, 16)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        exact = (np.arange(256) / 255 - IMAGENET.mean[channel]) / IMAGENET.std[channel]
        found = normalised[0, channel].flatten().numpy()
        # A product and a sum, of factors that were rounded once; no term is larger than 5.
        np.testing.assert_allclose(found, exact, rtol=0, atol=5 * 4 * rounding.unit("fp32"))


def test_a_temperature_divides_the_logits_and_one_leaves_every_bit() -> None:
    images, network = noise(), moderate(tiny.network())
    plain = Classifier(network, CIFAR)(images)
    # The same operations over the same memory: whether the division is left out is what is asked.
    assert torch.equal(Classifier(network, CIFAR, 1.0)(images), plain)
    warm = Classifier(network, CIFAR, 4.0)(images)
    expected = plain.double().log().div(4).softmax(1)
    rounding.assert_probabilities_near(warm, expected, network)
    assert torch.equal(warm.argmax(1), plain.argmax(1))
    assert (warm - plain).abs().max() > 0.01
    cool = Classifier(network, CIFAR, 0.25)(images)
    assert (cool.max(1).values > plain.max(1).values).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stops_before_the_head(dtype: torch.dtype) -> None:
    # Close decisions: in 8 or 11 bits of mantissa, many of these logits are equal.
    classifier = Classifier(moderate(tiny.network(num_classes=1000)), CIFAR).eval()
    with torch.no_grad():
        classifier.network.head.get_parameter("bias").copy_(torch.linspace(1, 1.1, 1000))
        classifier.network.head.get_parameter("weight").mul_(0.01)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        images = classifier.normalise(noise())
        features = classifier.network.features(images)
        low = classifier.network.head(features).float().softmax(1)
        probabilities = classifier(noise())
        assert torch.is_autocast_enabled("cpu")
    assert images.dtype == torch.float32
    assert features.dtype == dtype, "the body runs in the caller's precision"
    assert probabilities.dtype == torch.float32
    assert all(len(row.unique()) < 500 for row in low)
    assert all(len(row.unique()) > 990 for row in probabilities)
    allowed = rounding.of_sums([1000, 1000])  # The softmax's own sum, and this one.
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4), rtol=0, atol=allowed)
    with torch.inference_mode():
        expected = classifier.network.head(features.float()).softmax(1)
    head = {"head": classifier.network.head.get_parameter("weight")}
    rounding.assert_probabilities_near(probabilities, expected, head)


def test_an_image_has_the_same_answer_in_any_batch() -> None:
    classifier = Classifier(tiny.network(), CIFAR).eval()
    images = noise(5)
    together = classifier(images)
    alone = torch.cat([classifier(image[None]) for image in images])
    rounding.assert_probabilities_near(together, alone, classifier)


def test_it_moves_with_its_normalisation_and_adds_nothing_to_learn() -> None:
    classifier = Classifier(tiny.network(), CIFAR)
    assert {name for name, _ in classifier.named_buffers() if name.startswith("normalise")} == {
        "normalise.scale",
        "normalise.shift",
    }
    assert len(list(classifier.parameters())) == len(list(classifier.network.parameters()))
    assert all(tensor.is_meta for tensor in classifier.to("meta").state_dict().values())
