"""Keys and certificates change while the service answers: docs/guides/keys-and-certificates.md."""

from __future__ import annotations

import shutil
import signal
import ssl
import threading
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, client, encoded, started
from tests.service.http.test_tls import self_signed
from tests.support.waiting import until

OLD, NEW = "the-old-key-of-a-client", "the-new-key-of-a-client"


def key_file(path: Path, *keys: str) -> Path:
    path.touch(0o600)
    path.write_text("".join(f"{key}\n" for key in keys))
    return path


def pair(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    return self_signed(folder)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_keys_and_certificates_rotate_without_a_lost_request(tmp_path: Path, workers: str) -> None:
    keys, (certificate, key) = key_file(tmp_path / "keys", OLD), pair(tmp_path / "tls")
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"api_keys_file: {keys}\ntls_certificate: {certificate}\ntls_key: {key}\n"
        "models: [{spec: random:resnet20, engine: eager}]\n"
    )
    image, sent, ended = encoded("PNG"), [OLD], threading.Event()
    statuses: list[int] = []

    with started("--config", str(config), RESNET_SERVE_WORKERS=workers) as running:

        def ask(with_key: str) -> int:
            headers = {"X-API-Key": with_key}
            return client.post(
                f"{running.url}/v1/classify", content=image, headers=headers
            ).status_code

        def call() -> None:
            while not ended.is_set():
                statuses.append(ask(sent[0]))

        def presented() -> str:
            return ssl.get_server_certificate(("127.0.0.1", running.port))

        def hang_up(words: str) -> None:
            seen = len(running.log)
            running.process.send_signal(signal.SIGHUP)
            until(lambda: any(words in line for line in running.log[seen:]))

        caller = threading.Thread(target=call)
        caller.start()
        try:
            key_file(keys, OLD, NEW)
            hang_up("reloaded the configuration")
            until(lambda: all(ask(NEW) == 200 for _ in range(4)))
            sent[0] = NEW
            before = presented()
            self_signed(tmp_path / "tls")
            key_file(keys, NEW)
            hang_up("reloaded the configuration")
            until(lambda: all(ask(OLD) == 401 for _ in range(4)))
            until(lambda: all(presented() != before for _ in range(4)))
            after, answered = presented(), len(statuses)
            # A pair that does not fit changes nothing, not even the keys.
            key.write_bytes(pair(tmp_path / "other")[1].read_bytes())
            key_file(keys, OLD)
            hang_up(f"SIGHUP changed nothing: {config}:3: tls_key: ")
            assert (ask(NEW), ask(OLD), presented()) == (200, 401, after)
            until(lambda: len(statuses) > answered)
        finally:
            ended.set()
            caller.join(PATIENCE)
    assert set(statuses) == {200}
