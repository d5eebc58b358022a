"""The weights that training starts from, for other classes and other channels of images."""

from __future__ import annotations

import torch
from torch import Tensor

from models import bundle
from models.bundle import Bundle
from models.preprocess import Channels
from models.resnet import ResNet

STEM = "stem.conv.weight"


def load_start(
    network: ResNet, start: Bundle, classes: tuple[str, ...], channels: Channels
) -> None:
    """Loads the weights of `start` into `network`, whose head keeps its own if the classes differ.

    Raises:
        ValueError: the weights do not fit the network, or not other channels; the message names
            what differs.
    """
    tensors, own = dict(start.tensors), network.state_dict()
    if start.labels != classes:
        tensors = {name: tensor for name, tensor in tensors.items() if not _of_head(name)}
        tensors |= {name: tensor for name, tensor in own.items() if _of_head(name)}
    if start.input.channels != channels:
        if start.architecture.input_norm:
            raise ValueError(
                f"{start.name} normalises {start.input.channels} images by its own weights, so it "
                f"cannot be trained on {channels} ones; leave out --channels"
            )
        tensors[STEM] = for_channels(tensors[STEM], start.input.channels, channels)
    bundle.check_fit(network, tensors, "the network to train")
    network.load_state_dict(tensors)


def for_channels(weight: Tensor, before: Channels, after: Channels) -> Tensor:
    """A stem's filters [O, C, k, k] for images of other channels.

    They answer to a grey image, as a colour image or in one channel, as they did before: filters
    of colours are summed, and one of grey is shared out. Transparency gets filters of zeros.
    """
    colours = weight[:, :3]
    if before == "grey":
        colours = weight.expand(-1, 3, -1, -1) / 3
    elif before == "bgr":
        colours = weight.flip(1)
    if after == "grey":
        return colours.sum(1, keepdim=True)
    if after == "bgr":
        return colours.flip(1)
    if after == "rgba":
        return torch.cat([colours, torch.zeros_like(colours[:, :1])], 1)
    return colours.contiguous()


def _of_head(name: str) -> bool:
    return name.startswith("head.")
