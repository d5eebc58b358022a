"""Pixels to probabilities on the device: normalisation, network, and softmax or sigmoid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.preprocess import InputSpec
from models.resnet import ResNet
from models.views import Views, averaged

Outputs = Literal["exclusive", "independent"]


def as_probabilities(logits: Tensor, outputs: Outputs) -> Tensor:
    """Float32 [N, K] from float32 logits [N, K]; see `Classifier`."""
    return logits.softmax(1) if outputs == "exclusive" else logits.sigmoid()


class Normalise(nn.Module):
    """From pixels 0 to 255 [N, H, W, C], uint8 or float32, to float32 [N, C, H, W] in
    channels-last memory."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        mean, std = np.array(spec.mean, dtype=np.float64), np.array(spec.std, dtype=np.float64)
        # (x / 255 - mean) / std, as one multiplication and one addition.
        self.scale = nn.Buffer(torch.tensor(1 / (255 * std), dtype=torch.float32))
        self.shift = nn.Buffer(torch.tensor(-mean / std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        normalised = torch.addcmul(self.shift, images.to(torch.float32), self.scale)
        return normalised.permute(0, 3, 1, 2)


class Classifier(nn.Module):
    """From pixels [N, H, W, C] on the network's device to float32 probabilities [N, K].

    Evaluation and serving share this forward. Normalisation, head and softmax run in float32
    even under autocast: the 8 bits of bfloat16's mantissa would tie classes in close decisions.
    `temperature` divides the logits (Guo 2017, arXiv:1706.04599, section 4.2); 1.0 changes no
    bit. `outputs`: "exclusive" classes, whose probabilities are the softmax of the logits, or
    "independent" ones, each the sigmoid of its logit. A network without a head has none: K is 0.
    `views`: see `models.views.averaged`; "mirrored" computes each image twice.
    """

    def __init__(
        self,
        network: ResNet,
        spec: InputSpec,
        temperature: float = 1.0,
        outputs: Outputs = "exclusive",
        views: Views = "plain",
    ) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.network = network
        self.temperature = temperature
        self.outputs = outputs
        self.views = views

    if TYPE_CHECKING:  # To torch's Module, the result of a call is anything.

        def __call__(self, images: Tensor) -> Tensor: ...

    def forward(self, images: Tensor) -> Tensor:
        return self.with_maps(images)[0]

    def with_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities, and the feature maps [N, C, h, w] that the head sees the means of."""
        maps = averaged(self.network.maps, self.views)(self.normalise(images))
        features = maps.mean((2, 3))
        with torch.autocast(images.device.type, enabled=False):
            return self.probabilities(self.logits(features.float())), maps

    def logits(self, features: Tensor) -> Tensor:
        """Float32 [N, K] from float32 features."""
        if isinstance(self.network.head, nn.Identity):
            return features[:, :0]
        return cast("Tensor", self.network.head(features))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Float32 [N, K] from float32 logits."""
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return as_probabilities(logits, self.outputs)
