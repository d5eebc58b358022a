"""What `create_app` refuses; each becomes the one line that a failed start prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service.config.settings import ModelSettings, Settings
from service.errors import ConfigError
from service.http.app import create_app

RANDOM = "random:resnet20"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelSettings(spec=RANDOM, device="cuda:77"), ["device: cuda:77", "cpu"]),
        (ModelSettings(spec=RANDOM, device="cpu", precision="fp16"), ["precision: fp16", "CUDA"]),
        (
            ModelSettings(spec="builtin:nope"),
            ["builtin:nope", "resnet10-cifar10, resnet20-cifar10"],
        ),
        (ModelSettings(spec="/nowhere.safetensors"), ["/nowhere.safetensors", "no such file"]),
        (ModelSettings(spec=RANDOM), ["name: 'resnet20' is already in use"]),
    ],
)
def test_a_model_that_cannot_be_served_is_named(model: ModelSettings, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        create_app(Settings(models=[ModelSettings(spec=RANDOM), model]))
    assert "\n" not in str(caught.value)
    for word in ["models[1]", *words]:
        assert word in str(caught.value)


def test_nothing_is_imported_that_a_start_does_not_need() -> None:
    """Of torch's compiler alone it is a second; of traces, where none are sent, the SDK."""
    code = f"""if True:
        import sys
        import service.workers.front_end
        from service.http.app import create_app
        from service.config.settings import ModelSettings, Settings

        create_app(Settings(models=[ModelSettings(spec={RANDOM!r})]))
        unneeded = {{"torch._dynamo", "sympy", "service.http.tracing", "opentelemetry.sdk"}}
        assert not unneeded & {{*sys.modules}}, unneeded & {{*sys.modules}}
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
