"""The TLS context: loading and reloading the certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from service.config.settings import Settings
from service.errors import ConfigError


def create_context(settings: Settings) -> ssl.SSLContext | None:
    """A context from `tls_certificate` and `tls_key`, for TLS 1.2 and later; None: plain HTTP.

    Raises:
        ConfigError: one line that names the setting and the fault in its file.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing, present = "tls_certificate", "tls_key"
        if key is None:
            missing, present = present, missing
        raise ConfigError(f"{missing}: is missing; {present} needs it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _readable("tls_certificate", certificate)
    _readable("tls_key", key)
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


def _readable(setting: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}") from None


def _why(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of {certificate}"
    if "-----BEGIN CERTIFICATE-----" not in certificate.read_text("latin-1"):
        return f"tls_certificate: {certificate} contains no PEM certificate"
    if "PRIVATE KEY-----" not in key.read_text("latin-1"):
        return f"tls_key: {key} contains no PEM private key"
    return f"tls_key: {certificate} and {key} cannot be used: {error.reason or 'unreadable'}"
