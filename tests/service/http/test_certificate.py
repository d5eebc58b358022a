"""The time at which a certificate expires is OpenSSL's."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from service.http import certificate
from tests.service.http.test_tls import self_signed


def said_by_openssl(path: Path) -> float:
    command: list[str | Path] = ["openssl", "x509", "-noout", "-enddate", "-in", path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter="))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
# From 2050 on, the year has four digits.
@pytest.mark.parametrize("days", ["1", "90", "20000"])
def test_it_is_the_end_of_the_first_certificates_validity(tmp_path: Path, days: str) -> None:
    for name, validity in (("first", days), ("issuer", "30")):
        (tmp_path / name).mkdir()
        self_signed(tmp_path / name, "-nodes", "-days", validity)
    first, issuer = (tmp_path / name / "certificate.pem" for name in ("first", "issuer"))
    chain = tmp_path / "chain.pem"
    chain.write_text(f"Subject: CN = größe\n{first.read_text()}\n{issuer.read_text()}")
    assert certificate.expiry(first) == said_by_openssl(first)
    assert certificate.expiry(chain) == said_by_openssl(first)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing of use",
        ssl.PEM_HEADER,
        f"{ssl.PEM_HEADER}\n{ssl.PEM_FOOTER}\n",
        f"{ssl.PEM_HEADER}\n!\n{ssl.PEM_FOOTER}\n",
        ssl.DER_cert_to_PEM_cert(b"\x30\x03\x30\x01\x02"),
        ssl.DER_cert_to_PEM_cert(b"\x30\x88\xff"),
        ssl.DER_cert_to_PEM_cert(bytes(1000)),
    ],
)
def test_what_is_no_certificate_has_no_end(tmp_path: Path, text: str) -> None:
    path = tmp_path / "certificate.pem"
    path.write_text(text)
    with pytest.raises(ValueError, match="contains no readable certificate"):
        certificate.expiry(path)
