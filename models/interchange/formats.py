"""Names of the formats that can be read and written, without torch."""

from __future__ import annotations

import re

READ = ("cifar", "flax", "huggingface", "keras", "onnx", "timm", "torch_resnet", "torchvision")
WRITTEN = ("onnx", "timm", "torchvision")
# What SPECs begin with that are no paths; those that are downloaded.
DOWNLOADED = ("torchvision:", "onnx-zoo:", "hf:")
SPEC_KINDS = ("builtin:", "random:", *DOWNLOADED)
# The weights in a folder of the Hugging Face hub, the preferred ones first.
IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
# Names the files of large models; in its map, each tensor has one.
INDEX = ".index.json"
# A repository on the Hugging Face hub: OWNER/NAME or OWNER/NAME@REVISION. They name folders of the
# cache, so none may lead upwards.
REPOSITORY = re.compile(r"(?!.*\.\.)\w[\w.-]*/\w[\w.-]*(?:@\w[\w./-]*)?", re.ASCII)
