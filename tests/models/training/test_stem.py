"""A whitened stem answers to the training images with uncorrelated values of variance 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.classifier import Normalise
from models.data.augment import Augmentation
from models.data.datasets import Dataset
from models.data.source import Resident
from models.resnet import ResNet
from models.training.stem import whiten_stem
from tests.support import tiny


def smooth(count: int = 200) -> Dataset:
    """Noise whose neighbouring pixels are alike, as in photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.clip(coarse + random.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8)
    return Dataset(images, np.zeros(count, dtype=np.int64), ("only",), "made")


PLAIN = Augmentation(crop_padding=0, flip=False)
DATA = smooth()


def whitened(width: int, **changes: Any) -> tuple[torch.Tensor, torch.Tensor, ResNet]:
    torch.manual_seed(0)
    changes = {"planes": (width, width), "stem_channels": width, "preact": True, **changes}
    network = ResNet(tiny.architecture(**changes))
    before = network.stem.conv.weight.detach().clone()
    whiten_stem(network, Resident(DATA, "cpu", PLAIN), tiny.INPUT, seed=0)
    return network.stem.conv.weight.detach(), before, network


@pytest.mark.parametrize("preact", [False, True])
def test_responses_to_training_patches_are_white(preact: bool) -> None:
    weight, before, network = whitened(60, preact=preact)
    x = Normalise(tiny.INPUT)(torch.from_numpy(DATA.images))
    patches = F.unfold(x, 3).transpose(1, 2).reshape(-1, 27)
    found = patches @ weight.flatten(1)[:27].T
    moments = (found.T @ found / len(found)).double()
    eigenvalues = torch.linalg.eigvalsh((patches.T @ patches / len(patches)).double()).flip(0)
    expected = torch.diag(eigenvalues / (eigenvalues + 5e-4))
    torch.testing.assert_close(moments, expected, atol=1e-2, rtol=0)
    assert torch.equal(weight[27:54], -weight[:27])
    assert torch.equal(weight[54:], before[54:]), "the rest keep their values"
    assert network.stem.conv.weight.requires_grad


def test_a_narrow_stem_gets_the_strongest_components() -> None:
    wide, _, _ = whitened(60)
    narrow, _, _ = whitened(8)
    torch.testing.assert_close(narrow, torch.cat([wide[:4], -wide[:4]]))


def test_a_large_kernel_is_whitened_at_its_stride() -> None:
    weight, before, _ = whitened(16, stem="imagenet")
    assert weight.shape[2:] == (7, 7)
    assert torch.equal(weight[8:], -weight[:8])
    assert not torch.equal(weight, before)


def test_equal_seeds_whiten_equally_with_augmentation() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        network = ResNet(tiny.architecture())
        whiten_stem(network, Resident(DATA, "cpu", Augmentation()), tiny.INPUT, seed=seed)
        found.append(network.stem.conv.weight.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
