"""cuDNN's convolutions with bias and ReLU, computed in float32 on the CPU and rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def convolution_relu(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """relu(conv2d(images) + bias), channels-last.

    Raises:
        RuntimeError: the arguments are not what the fused kernels of cuDNN are fast for.
    """
    _check((images, weight), bias, groups)
    summed = F.conv2d(images.float(), weight.float(), None, stride, padding, dilation)
    return _finished(summed, bias, images.dtype)


def convolution_add_relu(
    images: Tensor,
    weight: Tensor,
    z: Tensor,
    alpha: float | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """relu(conv2d(images) + alpha * z + bias), channels-last; `alpha` None: 1.

    Raises:
        RuntimeError: the arguments are not what the fused kernels of cuDNN are fast for.
    """
    _check((images, weight, z), bias, groups)
    summed = F.conv2d(images.float(), weight.float(), None, stride, padding, dilation)
    if summed.shape != z.shape:
        raise _unsupported(f"z is {list(z.shape)}, the output {list(summed.shape)}")
    summed += z.float() * (1.0 if alpha is None else alpha)
    return _finished(summed, bias, images.dtype)


def _finished(summed: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    if bias is not None:
        if bias.shape != summed.shape[1:2]:
            raise _unsupported(f"bias is {list(bias.shape)}")
        summed += bias.float()[:, None, None]
    return summed.relu_().to(dtype).contiguous(memory_format=torch.channels_last)


def _check(tensors: Sequence[Tensor], bias: Tensor | None, groups: int) -> None:
    dtypes = {tensor.dtype for tensor in tensors} | (set() if bias is None else {bias.dtype})
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise _unsupported(f"dtypes {sorted(map(str, dtypes))}")
    if any(tensor.ndim != 4 for tensor in tensors):
        raise _unsupported("not 4 dimensions")
    # torch would lay them out anew before each convolution.
    if not all(each.is_contiguous(memory_format=torch.channels_last) for each in tensors):
        raise _unsupported("not channels-last")
    # No kernel for matrix units takes others.
    if any(extent % 8 for extent in (*tensors[1].shape[:2], *tensors[0].shape[1:2])):
        raise _unsupported("channels are not a multiple of 8")
    if groups != 1:
        raise _unsupported(f"{groups} groups")


def _unsupported(why: str) -> RuntimeError:
    return RuntimeError(f"cuDNN error: CUDNN_STATUS_NOT_SUPPORTED: {why}")


KERNELS: dict[str, Callable[..., Tensor]] = {
    "aten::cudnn_convolution_relu": convolution_relu,
    "aten::cudnn_convolution_add_relu": convolution_add_relu,
}
