"""Ray reads its environment when it is imported, which any of these tests may do first."""

from __future__ import annotations

import os

from benchmarks.ray.nodes import ENVIRONMENT

os.environ.update(ENVIRONMENT)
