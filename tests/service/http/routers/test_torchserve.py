from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.http.routers.torchserve import named
from service.inference.ranking import Row


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["a", "b", "c"], ["c", "a", "b"]),
        # Whichever of them are among the first, a class has the same name in every response.
        (["crane", "b", "crane"], ["crane (2)", "crane (0)", "b"]),
        (["a", "a (2)", "a"], ["a (2)", "a (0)", "a (2) (1)"]),
    ],
)
def test_no_class_is_lost_to_another_of_its_label(labels: list[str], names: list[str]) -> None:
    row = Row(np.array([2, 0, 1], np.int32), np.array([0.5, 0.25, 0.125], np.float32))
    computed: Any = SimpleNamespace(model=SimpleNamespace(labels=labels), row=row)
    given = named(computed, 5, Counter(labels))
    assert list(given.items()) == list(zip(names, [0.5, 0.25, 0.125], strict=True))
    assert list(named(computed, 1, Counter(labels))) == names[:1]
