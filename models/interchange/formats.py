"""Whose weights can be read and written, by name; `models.interchange` does it."""

from __future__ import annotations

READ = ("cifar", "flax", "huggingface", "keras", "onnx", "timm", "torch_resnet", "torchvision")
WRITTEN = ("onnx", "timm", "torchvision")
