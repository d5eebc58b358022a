"""The TLS context: loading and reloading the certificate."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from models import files
from service.config.settings import Settings
from service.errors import ConfigError
from service.http.certificate import validity


def create_context(settings: Settings) -> ssl.SSLContext | None:
    """A context from `tls_certificate` and `tls_key`, for TLS 1.2 and later; None: plain HTTP.

    Raises:
        ConfigError: one line that names the setting and the fault in its file.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if problems := unreadable(settings):
        raise ConfigError(problems[0])
    assert certificate is not None
    assert key is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(_why(error, certificate, key)) from None
    except ValueError:
        raise ConfigError(f"tls_key: {key} needs a password; give a key without one") from None
    return context


def reload(live: ssl.SSLContext, settings: Settings) -> None:
    """Reloads the files into a context in use; new connections get the new certificate.

    Raises:
        ConfigError: as for `create_context`; then `live` is unchanged.
    """
    if create_context(settings) is None:
        raise ConfigError("tls_certificate: cannot be removed while the service runs")
    assert settings.tls_certificate is not None
    live.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_password)


def _no_password() -> str:
    raise ValueError  # Without this function OpenSSL would prompt on the terminal.


def unreadable(settings: Settings) -> list[str]:
    """What is wrong with the files of TLS before their content matters, one line each."""
    named = {"tls_certificate": settings.tls_certificate, "tls_key": settings.tls_key}
    given = {setting: path for setting, path in named.items() if path is not None}
    problems = []
    for setting in named:
        if setting not in given:
            problems += [f"{setting}: is missing; {other} needs it" for other in given]
            continue
        try:
            files.check_regular(given[setting])  # It is read again, by OpenSSL and at a reload.
            given[setting].read_bytes()
        except OSError as error:
            why = f"{setting}: {given[setting]}: {error.strerror}"
            problems.append(f"{why}; give a PEM file that the service may read")
    return problems


def outdated(settings: Settings, now: datetime | None = None) -> str | None:
    """Why clients refuse the certificate at this time, if they do. It is served all the same: some
    clients do not look.

    `now`: with a timezone; by default the clock's.
    """
    if settings.tls_certificate is None:
        return None
    now = now or datetime.now(UTC)
    path = settings.tls_certificate
    try:
        begin, end = validity(path)
    except (OSError, ValueError):  # OpenSSL reads more forms, and says what it cannot read.
        return None
    if now < begin:
        return f"tls_certificate: {path} is valid from {begin:%Y-%m-%d %H:%M} UTC; check the clock"
    if now > end:
        return (
            f"tls_certificate: {path} expired on {end:%Y-%m-%d %H:%M} UTC, and clients refuse it; "
            "renew it"
        )
    return None


def _why(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of {certificate}; give a pair"
    if "-----BEGIN CERTIFICATE-----" not in certificate.read_text("latin-1"):
        return f"tls_certificate: {certificate} contains no PEM certificate; give one and its chain"
    if "PRIVATE KEY-----" not in key.read_text("latin-1"):
        return f"tls_key: {key} contains no PEM private key; give one without a password"
    return f"tls_key: {certificate} and {key} cannot be used; one of them is damaged"
