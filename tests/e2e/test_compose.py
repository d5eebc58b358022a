"""A service with the variables of docker-compose.yml and the files of its guide."""

from __future__ import annotations

import re
import shutil
import signal
from importlib import resources
from pathlib import Path
from typing import Any

from service.config.variables import PREFIX
from tests.conftest import CACHE, client, started
from tests.deploy import compose
from tests.guides.blocks import blocks
from tests.support.waiting import until

GUIDE = (compose.ROOT / "docs/guides/compose.md").read_text("utf-8")
KEYS = ("0123456789abcdef", "fedcba9876543210")


def test_a_service_with_the_guides_files_serves_them_and_takes_new_keys(tmp_path: Path) -> None:
    def here(text: str) -> str:
        """With this test's folders instead of the container's."""
        return re.sub(r"/(bundles|config|cache)\b", rf"{tmp_path}/\1", text)

    for folder in ("bundles", "config", "cache"):
        (tmp_path / folder).mkdir()
    with resources.as_file(resources.files("models.builtin")) as builtin:
        shutil.copy(
            builtin / "resnet20-cifar10.safetensors", tmp_path / "bundles/resnet20.safetensors"
        )
    (settings,) = (block.text for block in blocks(GUIDE) if block.language == "yaml")
    (tmp_path / "config/serve.yaml").write_text(here(settings))
    keys = tmp_path / "config/api-keys"
    keys.write_text(KEYS[0])
    keys.chmod(0o600)
    own = re.findall(r"^echo (\S+=\S+) >>? config/service\.env$", GUIDE, re.MULTILINE)
    told = compose.environment(compose.content()["services"]["service-cpu"], "\n".join(own))
    variables: dict[str, Any] = {name: here(value) for name, value in told.items()}
    # The image's, and what makes a start quick.
    variables |= {
        f"{PREFIX}HOST": "0.0.0.0",
        f"{PREFIX}CACHE_DIR": CACHE,
        f"{PREFIX}ENGINE": "eager",
    }
    with started(**variables) as service:
        model = f"{service.url}/v1/models/pictures"

        def statuses() -> list[int]:
            return [client.get(model, headers={"X-API-Key": key}).status_code for key in KEYS]

        assert statuses() == [200, 401]
        keys.write_text(KEYS[1])
        service.process.send_signal(signal.SIGHUP)
        until(lambda: statuses() == [401, 200])
