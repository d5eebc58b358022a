"""`resnet-serve health`. It runs every few seconds in a container, so it imports little."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from service.cli.connecting import connect
from service.cli.options import OneLine
from service.errors import ConfigError

if TYPE_CHECKING:
    from service.config.addresses import TcpAddress

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
        places = _places(settings.host, settings.port)
    except ConfigError as error:
        raise Unhealthy(str(error)) from None
    path = "/health/live" if live else "/health/ready"
    encrypted = settings.tls_certificate is not None
    shown, status, text = _get(places, path, encrypted=encrypted)
    healthy = status == http.HTTPStatus.OK
    try:
        told = json.loads(text)
        summary = _summary(told["status"], told["reasons"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Unhealthy(f"{shown} is not this service: {path} returned {status}") from None
    if as_json:
        click.echo(json.dumps(told))
    elif healthy:
        click.echo(summary)
    if not healthy:
        raise Unhealthy(summary)


class Unhealthy(OneLine):
    exit_code = 1  # Docker reserves 2.


def _places(host: str, port: int) -> list[TcpAddress | str]:
    """Where a service that listens on `host` and `port` can be reached on this host: addresses, or
    the path of a unix socket.

    Raises:
        ConfigError: nobody can know that.
    """
    from service.config.addresses import resolve, unix_path

    if (path := unix_path(host)) is not None:
        return [path]
    if port == 0:
        raise ConfigError("port: 0 means any free port; give --port, the log of the service has it")
    try:
        return [address.reachable() for address in resolve(host, port)]
    except OSError as error:
        raise ConfigError(f"host: {host}: {error.strerror}") from None


def is_served(host: str, port: int, *, encrypted: bool) -> bool:
    """Whether such a service answers there."""
    try:
        _, _, text = _get(_places(host, port), "/health/live", encrypted=encrypted)
        told = json.loads(text)
        return bool(_summary(told["status"], told["reasons"]))
    except (click.ClickException, ValueError, LookupError, TypeError, AttributeError):
        return False


def _get(
    places: Sequence[TcpAddress | str], path: str, *, encrypted: bool
) -> tuple[str, int, bytes]:
    """The place where something listens, and the status and body of its response; never asks a
    proxy."""
    connected = _connected(places)
    shown = " or ".join(map(_shown, places))
    if connected is None:
        raise Unhealthy(f"nothing listens on {shown}")
    stream, place = connected
    shown = _shown(place)
    try:
        if encrypted:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = stream
        connection.request("GET", path)
        response = connection.getresponse()
        return shown, response.status, response.read()
    except TimeoutError:
        raise Unhealthy(f"{shown} did not respond within {PATIENCE_SECONDS:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unhealthy(_silent(shown, "https" if encrypted else "http", error)) from None
    finally:
        stream.close()


def _connected(places: Sequence[TcpAddress | str]) -> tuple[socket.socket, TcpAddress | str] | None:
    """A connection to the first place where something listens, if there is one."""
    failed = ""
    for place in places:
        try:
            if isinstance(place, str):
                return connect(socket.AF_UNIX, place, PATIENCE_SECONDS), place
            return connect(place.family, place.address, PATIENCE_SECONDS), place
        except (ConnectionRefusedError, FileNotFoundError):
            continue
        except TimeoutError:
            shown = _shown(place)
            raise Unhealthy(f"{shown} did not respond within {PATIENCE_SECONDS:g} s") from None
        except OSError as error:  # Such as: this host has no addresses of this family.
            failed = failed or _silent(_shown(place), "connections", error)
    if failed and len(places) == 1:
        raise Unhealthy(failed)
    return None


def _silent(shown: str, to: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or "it closed the connection"
    return f"{shown} does not respond to {to}: {reason}"


def _summary(status: str, reasons: dict[str, str]) -> str:
    """As in "not ready: resnet50: loading"."""
    why = "; ".join(f"{model}: {reason}" for model, reason in reasons.items())
    return f"{status}: {why}" if why else status


def _shown(place: TcpAddress | str) -> str:
    return f"unix:{place}" if isinstance(place, str) else str(place)
