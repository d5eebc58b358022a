"""`resnet-serve health`. It runs every few seconds in a container, so it imports little."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
from typing import Any

import click

from service.cli.options import OneLine
from service.errors import ConfigError

# All in all less than what the image's HEALTHCHECK allows.
PATIENCE_SECONDS = 4.0


@click.command()
@click.option("--config", metavar="FILE", type=click.Path(), help="YAML file of settings.")
@click.option("--host", help="Address of the service.  [default: the one in the settings]")
@click.option("--port", type=int, help="Port of the service.  [default: the one in the settings]")
@click.option("--live", is_flag=True, help="Ask whether it is alive, not whether it is ready.")
@click.option("--json", "as_json", is_flag=True, help="Print the response.")
def health(config: str | None, live: bool, as_json: bool, **flags: Any) -> None:
    """Asks the service of these settings on this host whether it is ready.

    Reads the same settings as `serve`. The exit status is 0 if all models are ready, else 1 with
    the reason on stderr. A certificate is not verified, as it is for the name that clients use.
    """
    from service.config import loading

    try:
        settings = loading.load(flags, config=config)
        address = _address(settings.host, settings.port)
    except ConfigError as error:
        raise Unhealthy(str(error)) from None
    path = "/health/live" if live else "/health/ready"
    status, text = _get(address, path, encrypted=settings.tls_certificate is not None)
    healthy = status == http.HTTPStatus.OK
    try:
        told = json.loads(text)
        summary = _summary(told["status"], told["reasons"])
    except (ValueError, LookupError, TypeError, AttributeError):
        shown = _shown(address)
        raise Unhealthy(f"{shown} is not this service: {path} returned {status}") from None
    if as_json:
        click.echo(json.dumps(told))
    elif healthy:
        click.echo(summary)
    if not healthy:
        raise Unhealthy(summary)


class Unhealthy(OneLine):
    exit_code = 1  # Docker reserves 2.


def _address(host: str, port: int) -> tuple[str, int]:
    """Where a service that listens on `host` and `port` can be reached on this host.

    Raises:
        ConfigError: nobody can know that.
    """
    if port == 0:
        raise ConfigError("port: 0 means any free port; give --port, the log of the service has it")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"host: {host}: {error.strerror}") from None
    ip = str(found[0][4][0])
    address = ipaddress.ip_address(ip)
    if address.is_unspecified:
        ip = "127.0.0.1" if address.version == 4 else "::1"
    return ip, port


def _get(address: tuple[str, int], path: str, *, encrypted: bool) -> tuple[int, bytes]:
    """The status and body of a response; never asks a proxy."""
    connection: http.client.HTTPConnection
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            *address, timeout=PATIENCE_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE_SECONDS)
    shown = _shown(address)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionRefusedError:
        raise Unhealthy(f"nothing listens on {shown}") from None
    except TimeoutError:
        raise Unhealthy(f"{shown} did not respond within {PATIENCE_SECONDS:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        scheme = "https" if encrypted else "http"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unhealthy(f"{shown} does not respond to {scheme}: {reason}") from None
    finally:
        connection.close()


def _summary(status: str, reasons: dict[str, str]) -> str:
    """As in "not ready: resnet50: loading"."""
    why = "; ".join(f"{model}: {reason}" for model, reason in reasons.items())
    return f"{status}: {why}" if why else status


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
