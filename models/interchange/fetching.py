"""The files of a SPEC that is downloaded, in the cache; without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from models import files
from models.interchange import download, hub_repository, onnx_zoo, torchvision_weights
from models.interchange.connection import DownloadError, Unreachable

T = TypeVar("T")
KINDS = ("hf", "onnx-zoo", "torchvision")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file in the cache: `size` in bytes; `already`: whether it was there before."""

    path: Path
    size: int
    sha256: str
    already: bool


@dataclass(frozen=True, slots=True)
class Published:
    """One file of known content; `checksum` is the beginning of its SHA-256."""

    url: str
    checksum: str

    def fetch(self, folder: Path) -> Path:
        return download.fetch(self.url, folder, self.checksum)


def published(kind: str, name: str) -> Published:
    """The file of `torchvision:NAME` or `onnx-zoo:NAME`.

    Raises:
        ValueError: there is no such model.
    """
    if kind == "torchvision":
        variant, _, weights = name.partition(":")
        row = torchvision_weights.find(variant, weights)
        return Published(f"{torchvision_weights.URL}/{row.file}", row.sha256)
    model = onnx_zoo.find(name)
    return Published(f"{onnx_zoo.URL}/{model.file}", model.sha256)


def fetch(spec: str, cache_dir: Path) -> list[Fetched]:
    """Downloads what `spec` names to `cache_dir`, where `serve` looks for it; empty if it names
    nothing that is downloaded.

    Raises:
        ValueError: there is no such model, or it cannot be downloaded.
        OSError: `cache_dir` cannot be written.
    """
    kind, colon, name = spec.partition(":")
    if not colon or kind not in KINDS:
        return []
    folder = cache_dir / kind
    if kind == "hf":
        snapshot = hub_repository.snapshot(name, folder, renew=True)
        return [
            _described(snapshot.folder / file, already=file not in snapshot.downloaded)
            for file in snapshot.names
        ]
    file = published(kind, name)
    path = folder / file.url.rpartition("/")[2]
    already = download.matches(path, file.checksum)
    return [_described(file.fetch(folder), already=already)]


def _described(path: Path, *, already: bool) -> Fetched:
    return Fetched(path, path.stat().st_size, files.sha256(path), already)


def explained(spec: str, folder: Path, work: Callable[[], T]) -> T:
    """What `work` returns; if the network is missing, the error says how to do without.

    Raises:
        DownloadError: as `work`.
    """
    advice = f"on a host with network, run `resnet-serve fetch {spec}`, and copy that folder here"
    try:
        return work()
    except Unreachable as error:
        why = f"{error.host} cannot be reached ({error.why})"
        raise DownloadError(f"is not in the cache {folder}, and {why}; {advice}") from None
    except DownloadError as error:
        if str(error).startswith("is not in the cache"):
            raise DownloadError(f"{error}; {advice}") from None
        raise
