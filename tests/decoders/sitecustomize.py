"""A decoder that gives PIL's pixels stands for a CUDA device's, in every process that finds this
file on its PYTHONPATH.

Python imports it before anything else. `decode: device` is then allowed on the CPU; the product
knows nothing of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.import_hook import change_on_import

MODULES = ("service.engines.devices", "service.engines.jpeg_check")


def replace(module: ModuleType) -> None:
    from tests.support import device_decoder

    device_decoder.replace_in(module)


change_on_import(MODULES, replace)
