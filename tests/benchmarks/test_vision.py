"""torchvision beside a torch that its library fits, and beside one that it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from PIL import Image
from benchmarks.common.vision import DECLARED, import_torchvision

if "for another torch" in sys.argv:
    def refuse(path):
        raise OSError(f"{path}: undefined symbol")
    torch.ops.load_library = refuse
vision = import_torchvision()
assert vision.extension._has_ops() == (not DECLARED), DECLARED
assert DECLARED or "for another torch" not in sys.argv
assert vision.models.resnet18(num_classes=3).fc.out_features == 3
assert vision.transforms.Resize(8)(Image.new("RGB", (16, 16))).size == (8, 8)
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["as it is", "for another torch"])
def test_it_is_imported_whether_or_not_its_library_loads(library: str) -> None:
    """In a process of its own, which a second declaration of an operator would abort."""
    program = [sys.executable, "-c", PROGRAM, library]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
