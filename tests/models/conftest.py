"""Files that several tests read, and how they compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models import bundle
from tests.support import tiny


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread, and on a busy machine much faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    """A file with a whole tiny bundle."""
    file = tmp_path / "tiny.safetensors"
    bundle.write(tiny.made_bundle(), file)
    return file
