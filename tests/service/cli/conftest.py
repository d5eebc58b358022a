from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import encoded


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for label in ("cat", "dog"):
        (folder / label).mkdir()
        for index, kind in enumerate(("PNG", "JPEG", "WEBP")):
            (folder / label / f"{index}.{kind.lower()}").write_bytes(encoded(kind))
    return folder
