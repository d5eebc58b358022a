"""What the names of devices mean, where torch sees two CUDA devices or none."""

from __future__ import annotations

import pytest
import torch

from service.config.settings import ModelSettings
from service.engines import cards
from service.engines.devices import devices_of
from service.errors import ConfigError


def resolved(device: str | list[str]) -> list[str]:
    return devices_of(ModelSettings(spec="x", device=device, precision="fp32"))


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "available", lambda: 2)
    monkeypatch.setattr(cards, "check", lambda device: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture
def none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "available", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", ["cuda:0"]),
        ("cpu", ["cpu"]),
        ("cuda", ["cuda:0"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:01", ["cuda:1"]),
        ("cuda:all", ["cuda:0", "cuda:1"]),
        (["cpu", "cuda:1", "cpu"], ["cpu", "cuda:1"]),
        (["cuda", "auto", "cuda:0"], ["cuda:0"]),
        (["cuda:1", "cuda:all", "cpu"], ["cuda:1", "cuda:0", "cpu"]),
    ],
)
def test_each_name_is_resolved_and_each_device_is_there_once(
    device: str | list[str], expected: list[str]
) -> None:
    assert resolved(device) == expected


@pytest.mark.usefixtures("none")
def test_without_a_gpu_only_auto_becomes_the_cpu() -> None:
    assert resolved("auto") == resolved(["auto", "cpu"]) == ["cpu"]
    for named, shown in (("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:all", "cuda:all")):
        with pytest.raises(ConfigError) as caught:
            resolved(["cpu", named])
        assert str(caught.value) == (
            f"device: {shown} is not available, torch sees 0 CUDA devices; use auto or cpu"
        )


@pytest.mark.usefixtures("pair")
def test_a_gpu_beyond_the_last_one_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cuda:2 is not available, torch sees 2 CUDA devices"):
        resolved(["cuda:1", "cuda:2"])


@pytest.mark.usefixtures("pair")
def test_each_device_must_be_able_to_compute_it() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        devices_of(ModelSettings(spec="x", device=["cuda:0", "cpu"], precision="fp16"))
    with pytest.raises(ConfigError, match="openvino runs on the CPU, not on cuda:1"):
        devices_of(ModelSettings(spec="x", device=["cpu", "cuda:1"], engine="openvino"))
