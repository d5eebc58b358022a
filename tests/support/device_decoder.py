"""A decoder that gives PIL's pixels stands for a device's, on the CPU."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def decode_files(files: list[Tensor]) -> list[Tensor]:
    """See `service.engines.jpeg.DecodeFiles`; a damaged file fails the whole batch."""
    return [_planes(Image.open(io.BytesIO(file.numpy().tobytes()))) for file in files]


def replace_in(module: ModuleType) -> None:
    """Lets the CPU, in `service.engines.devices`, decode by this, in `jpeg_check`."""
    if module.__name__ == "service.engines.devices":
        vars(module)["_check_decoder"] = lambda device: None
    else:
        vars(module)["of_torchvision"] = lambda device: decode_files


def repeating_colours(files: list[Tensor]) -> list[Tensor]:
    """Like nvJPEG, which repeats the colours of 4:2:0 where PIL interpolates them."""
    return [_repeated(file) for file in files]


def _planes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _repeated(file: Tensor) -> Tensor:
    image = Image.open(io.BytesIO(file.numpy().tobytes()))
    if image.mode == "L":
        return _planes(image)
    image.draft("YCbCr", image.size)
    y, *colours = image.split()
    size = -(-image.width // 2), -(-image.height // 2)
    repeated = [
        colour.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
        for colour in colours
    ]
    return _planes(Image.merge("YCbCr", [y, *repeated]))


class CudaDecoder:
    """Decodes as torchvision does on CUDA: into memory of the current stream, by a stream of its
    own, which waits for nothing before it writes; the current stream waits for it afterwards."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        decoded = decode_files(files)
        planes = [torch.empty_like(each, device=self._device) for each in decoded]
        with torch.cuda.stream(self._stream):
            for plane, each in zip(planes, decoded, strict=True):
                plane.copy_(each)
        self._stream.synchronize()
        torch.cuda.current_stream().wait_stream(self._stream)
        return planes
