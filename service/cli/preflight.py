"""What would stop `serve`, each problem in the words that `serve` uses.

`serve` looks at `before_start`, and meets the others as it starts; `config check` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from models.interchange import specs
from service.config.addresses import resolve, unix_path
from service.config.loading import of_model
from service.config.sources import SECRETS, Place, place_of
from service.config.specs import check_calibration
from service.errors import ConfigError
from service.http import tls
from service.http.listener import check_address, listen
from service.http.reserved_port import reserve

if TYPE_CHECKING:
    from service.config.loading import Reading
    from service.config.settings import ModelSettings, Settings

# Where there is one of these, a GPU may be at hand that cannot be used: of NVIDIA's and AMD's
# drivers.
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
KEY_SETTINGS = {(f"{name}{end}",) for name in SECRETS for end in ("", "_file")}
Check = Callable[["Settings"], Iterator[object]]


def before_start(reading: Reading) -> list[str]:
    """What is wrong with the settings and the files that they name, one line each with its place;
    needs no torch."""
    return _problems(reading, (_tls, _models, _cache))


def on_this_host(reading: Reading) -> list[str]:
    """The same, and what this host lacks: addresses, ports, devices, extras."""
    checks = (_tls, _certificate, _exposure, _models, _cache, _address, _grpc, _devices)
    return _problems(reading, checks)


def _problems(reading: Reading, checks: tuple[Check, ...]) -> list[str]:
    problems = list(reading.problems)
    if reading.sound is not None:
        for check in checks:
            for problem in check(reading.sound):
                place = place_of(str(problem))
                # A wrong value has its line, and what follows from its default is not one.
                if not _is_wrong(place, reading):
                    problems.append(reading.merged.explained(problem))
    return list(dict.fromkeys(problems))


def _is_wrong(place: Place, reading: Reading) -> bool:
    wrong = reading.wrong
    if place in wrong or (place[:1] == ("models",) and wrong & {("models",), place[:2]}):
        return True
    if place[2:] in (("spec",), ("name",)):  # A model's spec may be a stand-in.
        return (*place[:2], "spec") in wrong
    if place[:1] == ("host",):
        return bool(wrong & KEY_SETTINGS) or ("port",) in wrong
    return place == ("grpc_port",) and bool(wrong & {("host",), ("port",)})


def _tls(settings: Settings) -> Iterator[object]:
    problems = tls.unreadable(settings)
    yield from problems
    if not problems:
        try:
            tls.create_context(settings)
        except ConfigError as error:
            yield error


def _certificate(settings: Settings) -> Iterator[object]:
    if problem := tls.outdated(settings):
        yield problem


def _exposure(settings: Settings) -> Iterator[object]:
    # The start says so if the name does not resolve.
    with suppress(OSError):
        found = [] if unix_path(settings.host) else resolve(settings.host, settings.port)
        try:
            for address in found:
                check_address(settings, address.ip)
        except ConfigError as error:
            yield error


def _models(settings: Settings) -> Iterator[object]:
    names: list[str] = []
    for index, model in enumerate(settings.models):
        try:
            named = specs.check(model.spec, settings.allow_code, model.architecture)
        except ValueError as error:
            yield of_model(index, error)
            continue
        name = model.name or named.name
        if name and name in names:
            yield f"models[{index}].name: {name!r} is already in use; choose another"
        names += [name] if name else []
        try:
            # What is downloaded or converted never is.
            check_calibration(model.precision, calibrated=named.calibrated)
        except ConfigError as error:
            yield of_model(index, error)


def _cache(settings: Settings) -> Iterator[object]:
    folder = settings.cache_dir
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:  # Such as a name that is too long.
        yield f"cache_dir: {folder}: {error.strerror}; name another folder"
        return
    if is_file:
        yield f"cache_dir: {folder} is not a folder; name another, or remove the file"


def _address(settings: Settings) -> Iterator[object]:
    from service.cli.health import is_served

    try:
        listen(settings.host, settings.port, settings.socket_mode).close()
    except ConfigError as error:
        # Settings are also checked while the service runs, before it rereads them.
        encrypted = settings.tls_certificate is not None
        if not is_served(settings.host, settings.port, encrypted=encrypted):
            yield error


def _grpc(settings: Settings) -> Iterator[object]:
    if settings.grpc_port is None:
        return
    try:
        for each in reserve(settings, settings.host, settings.grpc_port).sockets:
            each.close()
    except ConfigError as error:
        yield error


def _devices(settings: Settings) -> Iterator[object]:
    if not any(map(_needs_torch, settings.models)):
        return
    # Seconds to import.
    from service.engines.devices import devices_of

    for index, model in enumerate(settings.models):
        try:
            devices_of(model)
        except ConfigError as error:
            yield of_model(index, error)


def _needs_torch(model: ModelSettings) -> bool:
    """Whether it depends on this host's devices if a model can be served."""
    usual = (model.precision, model.engine, model.decode) == ("auto", "auto", "host")
    if usual and model.device == "auto":
        return any(driver.exists() for driver in DRIVERS)
    return not (usual and model.device == "cpu")
