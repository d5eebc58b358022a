"""Names of the formats that can be read and written, without torch."""

from __future__ import annotations

import re

READ = ("cifar", "flax", "huggingface", "keras", "onnx", "timm", "torch_resnet", "torchvision")
WRITTEN = ("onnx", "timm", "torchvision")
# A repository on the Hugging Face hub: OWNER/NAME or OWNER/NAME@REVISION.
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?", re.ASCII)
