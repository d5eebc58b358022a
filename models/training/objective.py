"""What a training step computes: the loss of a batch of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier import Normalise
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.training.balance import weighted_targets


class Objective(nn.Module):
    """The loss for pixels [N, H, W, C] and their targets; and float32 [2], the loss again and the
    share of answers that are the `labels`, int64 [N].

    Targets are int64 [N], or probabilities float32 [N, K]. `smoothing`: label smoothing
    (arXiv:1512.00567, section 7). `weights`: float32 [K], those of the classes, if any; the loss
    is then the mean over images of their weighted losses, whatever the weights in the batch.
    """

    def __init__(
        self,
        network: ResNet,
        spec: InputSpec,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(spec)
        self.network = network
        self.smoothing = smoothing
        self.weights = nn.Buffer(weights, persistent=False) if weights is not None else None

    def forward(self, images: Tensor, targets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(self.normalise(images))
        with torch.autocast(images.device.type, enabled=False):
            logits = self.network.head(features.float())
            loss = self._loss(logits, targets)
            # Counted here, where it is compiled with the rest.
            right = (logits.detach().argmax(1) == labels).float().mean()
            return loss, torch.stack([loss.detach(), right])

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        return F.cross_entropy(logits, weighted_targets(targets, self.weights, self.smoothing))
