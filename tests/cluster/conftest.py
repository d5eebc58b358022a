"""Ray reads its environment when it is imported, which any of these tests may be the first to do."""

from __future__ import annotations

import os

from benchmarks.nodes import ENVIRONMENT

os.environ.update(ENVIRONMENT)
