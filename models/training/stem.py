"""A stem that begins by whitening patches of the training images."""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier import Normalise
from models.data.source import Source
from models.preprocess import InputSpec
from models.resnet import ResNet

IMAGES, PIXELS = 5000, 20_000_000  # As many as Jordan takes; of large images, fewer.
BATCH = 100
LEAST_VARIANCE = 5e-4


@torch.no_grad()
def whiten_stem(network: ResNet, source: Source, spec: InputSpec, *, seed: int) -> None:
    """Replaces filters of the stem by ones that whiten patches (Jordan, arXiv:2404.00498, section
    3.2).

    They are the eigenvectors of the patches' second moments, each divided by
    sqrt(eigenvalue + 5e-4), in decreasing order; then the same with the other sign, as a ReLU
    follows. Filters beyond twice the size of a patch keep their values; if there are fewer, the
    patches' last components have none. The patches are those of the normalised images that
    training begins with, augmented as they are.
    """
    weight = network.stem.conv.weight
    moments = _second_moments(network, source, spec, seed)
    values, vectors = torch.linalg.eigh(moments)
    filters = (vectors / (values + LEAST_VARIANCE).sqrt()).T.flip(0)
    count = min(len(filters), len(weight) // 2)
    chosen = filters[:count].reshape(count, *weight.shape[1:])
    weight[: 2 * count] = torch.cat([chosen, -chosen]).to(weight)


def _second_moments(network: ResNet, source: Source, spec: InputSpec, seed: int) -> Tensor:
    """Float64 [D, D] of patches of D values, as the stem's convolution sees them."""
    convolution = network.stem.conv
    kernel, stride = convolution.kernel_size, convolution.stride
    normalise = Normalise(spec)
    images = min(len(source), IMAGES, max(1, PIXELS // (spec.height * spec.width)))
    size = min(BATCH, images)
    batches = source.batches(
        seed=seed, epoch=0, start=0, batch_size=size, rank=0, world=1, device="cpu"
    )
    patch = convolution.weight[0].numel()
    total, count = torch.zeros(patch, patch, dtype=torch.float64), 0
    for pixels, _ in islice(batches, images // size):
        x = normalise(pixels)
        if isinstance(network.input_norm, nn.BatchNorm2d):  # As it is while training.
            x = F.batch_norm(x, None, None, training=True, eps=network.input_norm.eps)
        patches = F.unfold(x, kernel, stride=stride).transpose(1, 2).reshape(-1, patch)
        total += (patches.T @ patches).double()
        count += len(patches)
    return total / count
