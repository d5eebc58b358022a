"""Random crops and flips of whole batches, on the device the images are on."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each image padded with black, cropped at random to its size and mirrored half the time.

    Takes and gives uint8 [N, H, W, 3] (He 2015, section 4.2: `padding` is 4 pixels).
    """
    count, height, width, channels = images.shape
    padded = images.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = images

    def draw(limit: int) -> Tensor:
        shape = (count, 1)
        return torch.randint(limit, shape, generator=generator, device=images.device)

    device = images.device
    rows = torch.arange(height, device=device) + draw(2 * padding + 1)
    columns = torch.arange(width, device=device)
    columns = torch.where(draw(2) == 1, columns.flip(0), columns) + draw(2 * padding + 1)
    batch = torch.arange(count, device=device)
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
