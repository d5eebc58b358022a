"""What some settings allow. Needs no pydantic, so that shell completion can import it."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Engine = Literal["auto", "fused", "eager", "compile", "openvino"]
Decode = Literal["host", "device"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
ENGINES: tuple[str, ...] = get_args(Engine)
SPEC_KINDS = ("builtin:", "random:", "torchvision:", "hf:")
DEVICES = ("auto", "cpu", "cuda", "cuda:0")
