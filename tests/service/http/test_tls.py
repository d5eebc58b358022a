"""Certificates: what is wrong with one is said at the start; a new one is taken later."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from service.config.settings import Settings
from service.errors import ConfigError
from service.http import tls
from service.http.certificate import validity

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


def self_signed(folder: Path, *more: str) -> tuple[Path, Path]:
    """A certificate for this host and its key, which `more` may encrypt."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 "
        "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [*command.split(), *(more or ["-nodes"]), "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return certificate, key


def settings(certificate: Path | None, key: Path | None) -> Settings:
    return Settings(tls_certificate=certificate, tls_key=key)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("other"))


def presented(server: ssl.SSLContext) -> bytes:
    """The certificate that who connects now is shown."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = ends[0].getpeercert(binary_form=True)
    assert found is not None
    return found


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def test_without_files_there_is_no_tls() -> None:
    assert tls.create_context(Settings()) is None


def test_a_certificate_is_shown_over_tls_1_2_and_later(pair: tuple[Path, Path]) -> None:
    made = tls.create_context(settings(*pair))
    assert made is not None
    assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    assert presented(made) == der(pair[0])


def test_what_cannot_be_used_is_one_line(
    pair: tuple[Path, Path], other: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = pair
    missing, nonsense = tmp_path / "missing.pem", tmp_path / "nonsense.pem"
    nonsense.write_text("nothing of use\n")
    encrypted = self_signed(tmp_path, "-passout", "pass:a-password")[1]
    for given, words in (
        ((certificate, None), ["tls_key: is missing"]),
        ((None, key), ["tls_certificate: is missing"]),
        ((missing, key), ["tls_certificate: ", "missing.pem", "No such file"]),
        ((certificate, missing), ["tls_key: ", "missing.pem", "No such file"]),
        ((certificate, tmp_path), ["tls_key: ", "Is a directory"]),
        ((nonsense, key), ["tls_certificate: ", "nonsense.pem", "no PEM certificate"]),
        ((certificate, nonsense), ["tls_key: ", "nonsense.pem", "no PEM private key"]),
        ((key, certificate), ["tls_certificate: ", "no PEM certificate"]),
        ((certificate, other[1]), ["tls_key: ", "is not the key of"]),
        ((certificate, encrypted), ["tls_key: ", "needs a password"]),
    ):
        with pytest.raises(ConfigError) as caught:
            tls.create_context(settings(*given))
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message


def test_a_new_certificate_is_shown_to_who_connects_next(
    pair: tuple[Path, Path], other: tuple[Path, Path]
) -> None:
    live = tls.create_context(settings(*pair))
    assert live is not None
    for bad in ((other[0], pair[1]), (other[0], None), (None, None)):
        with pytest.raises(ConfigError):
            tls.reload(live, settings(*bad))
        assert presented(live) == der(pair[0])
    tls.reload(live, settings(*other))
    assert presented(live) == der(other[0])


def test_the_time_in_which_clients_accept_it_is_told(pair: tuple[Path, Path]) -> None:
    begin, end = validity(pair[0])
    assert (end - begin).days == 2
    given = settings(*pair)
    assert tls.outdated(given, begin + timedelta(days=1)) is None
    late = tls.outdated(given, end + timedelta(seconds=1))
    assert late == (
        f"tls_certificate: {pair[0]} expired on {end:%Y-%m-%d %H:%M} UTC, and clients "
        "refuse it; renew it"
    )
    early = tls.outdated(given, begin - timedelta(seconds=1))
    assert early is not None
    assert "is valid from" in early
    assert tls.outdated(Settings()) is None


def test_a_form_of_certificate_that_only_openssl_reads_is_served(pair: tuple[Path, Path]) -> None:
    for name in ("TRUSTED CERTIFICATE", "X509 CERTIFICATE"):
        other = pair[0].with_name("other.pem")
        other.write_text(pair[0].read_text().replace("CERTIFICATE", name))
        assert tls.create_context(settings(other, pair[1])) is not None
        assert tls.outdated(settings(other, pair[1])) is None


def test_years_of_two_and_of_four_digits_are_read(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path, "-nodes", "-days", "20000")
    begin, end = validity(certificate)
    assert (end - begin).days == 20000
    assert end.year > 2050
