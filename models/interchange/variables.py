"""The environment variables of downloads: proxies, certificates, and those of the Hugging Face hub,
with the meaning that `huggingface_hub` gives them."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

HUB = "https://huggingface.co"
TRUE = {"1", "ON", "YES", "TRUE"}
# Authorities beside those of the system and of SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL reads.
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def proxy_for(url: str) -> str | None:
    """The proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY for `url`, unless NO_PROXY or being this
    host exempts it."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    host = parts.hostname or ""
    local = host in ("localhost", "::1") or (host.startswith("127.") and host[-1].isdigit())
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or local or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def certificates() -> list[str]:
    """Files or folders of further certificate authorities."""
    return [os.environ[name] for name in CERTIFICATES if os.environ.get(name)]


def endpoint() -> str:
    """HF_ENDPOINT: the hub, or a mirror of it."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def offline() -> str:
    """The variable that forbids to ask the hub; "" if none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in TRUE), "")


def token() -> str:
    """HF_TOKEN, or what `hf auth login` wrote; "" if there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if found := "".join(os.environ.get(name, "").split()):
            return found
    named = os.environ.get("HF_TOKEN_PATH")
    try:
        return "".join((Path(named) if named else _home() / "token").read_text("utf-8").split())
    except (OSError, ValueError, RuntimeError):
        return ""


def library_cache() -> Path:
    """Where `huggingface_hub` keeps its downloads.

    Raises:
        RuntimeError: the user has no home.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if found := os.environ.get(name):
            return Path(found).expanduser()
    return _home() / "hub"


def cache_dir() -> Path:
    """Where this project keeps its downloads.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet-serve"


def _home() -> Path:
    if found := os.environ.get("HF_HOME"):
        return Path(found).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
