from __future__ import annotations

import pytest

from service.config.choices import MOST_DEVICES, most_devices
from service.config.settings import ModelSettings


@pytest.mark.parametrize(
    ("wanted", "most"),
    [
        (["auto"], 1),
        (["auto", "cuda", "cuda:0", ["cuda:0", "auto"]], 1),
        (["cpu", "cpu"], 1),
        (["auto", "cpu"], 2),  # without a GPU only one, which nobody knows yet
        ([["cuda:0", "cuda:1"]], 2),
        (["cuda:1", "cpu", "cuda:2"], 3),
        (["cpu", ["cuda:all"]], MOST_DEVICES),
    ],
)
def test_how_many_devices_models_may_need(wanted: list[str | list[str]], most: int) -> None:
    for device in wanted:
        assert ModelSettings(spec="x", device=device).device == device
    assert most_devices(wanted) == most
