from __future__ import annotations

import pytest

from service.errors import ConfigError
from service.repository import catalog


def test_what_is_wrong_with_a_spec_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"\Atorchvison:resnet18: no such file[^\n]*\Z"):
        catalog.load("torchvison:resnet18")


def test_only_downloads_and_own_code_need_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RESNET_SERVE_PORT", "x")
    with pytest.raises(ConfigError, match="RESNET_SERVE_PORT"):
        catalog.load("hf:nobody/nothing")
    assert catalog.load("random:resnet20").bundle.name == "resnet20"
