"""Weights to download: torchvision's, the ONNX model zoo's, and repositories on the Hugging Face
hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from models import files
from models.bundle import Bundle, BundleError
from models.interchange import onnx_zoo, reference, torchvision_weights
from models.interchange.convert import convert
from models.interchange.download import fetch
from models.interchange.extras import INSTALL
from models.interchange.formats import REPOSITORY
from models.interchange.imported import Said
from models.interchange.pytorch.checkpoint import IN_FOLDERS, read_json

T = TypeVar("T")


def from_torchvision(spec: str, cache: Path) -> Bundle:
    """The bundle of `VARIANT` or `VARIANT:WEIGHTS`, from a file cached in `cache`.

    If `cache` cannot be written, the file is downloaded to a temporary folder.

    Raises:
        ValueError: there are no such weights, or the download failed.
    """
    variant, _, weights = spec.partition(":")
    row = torchvision_weights.find(variant, weights)
    said = Said(name=row.variant, variant=row.variant)
    url = f"{torchvision_weights.URL}/{row.file}"
    return _fetched(url, cache, row.sha256, lambda path: convert("torchvision", path, said))


def from_onnx_zoo(name: str, cache: Path) -> Bundle:
    """The bundle of the ONNX model zoo's `NAME.onnx`, from a file cached in `cache`.

    Raises:
        ValueError: there is no such model, it is not served, or the download failed.
    """
    row = onnx_zoo.find(name)
    said = Said(name=row.name, variant=row.variant)
    url = f"{onnx_zoo.URL}/{row.file}"
    return _fetched(url, cache, row.sha256, lambda path: convert("onnx", path, said))


def zoo_test_data(name: str, cache: Path) -> list[reference.Pair]:
    """The inputs and outputs that the ONNX model zoo's `NAME.tar.gz` holds, cached in `cache`.

    Raises:
        ValueError: see `from_onnx_zoo`.
    """
    row = onnx_zoo.find(name)
    url = f"{onnx_zoo.URL}/{row.archive}"
    return _fetched(url, cache, row.archive_sha256, lambda path: reference.read([path]))


def _fetched(url: str, cache: Path, sha256: str, use: Callable[[Path], T]) -> T:
    """What `use` makes of a download in `cache`, or in a temporary folder if that fails."""
    try:
        return use(fetch(url, cache, sha256))
    except OSError as error:
        unwritable = f"{cache}: {error.strerror or error}"
    try:
        with files.scratch("download") as folder:
            return use(fetch(url, folder, sha256))
    except OSError as error:
        raise BundleError(f"{unwritable}; the temporary folder failed too: {error}") from None


def from_huggingface(spec: str) -> Bundle:
    """The bundle of a repository `OWNER/NAME`, or `OWNER/NAME@REVISION`, on the Hugging Face hub.

    `huggingface_hub` caches it and connects, as its environment variables say. Supports the
    ResNets of timm and transformers.

    Raises:
        BundleError: there is no such repository, no network, or it is another kind of model.
    """
    if not REPOSITORY.fullmatch(spec):
        raise BundleError("name a repository as OWNER/NAME or OWNER/NAME@REVISION")
    name, _, revision = spec.partition("@")
    config = read_json(_downloaded(name, "config.json", revision))
    assert config is not None
    if "architecture" in config or "pretrained_cfg" in config:
        kind = "timm"
    elif config.get("model_type") == "resnet":
        kind = "huggingface"
        _optional(name, "preprocessor_config.json", revision)
    else:
        found = config.get("model_type") or "a model of an unknown kind"
        raise BundleError(f"holds {found}, not a ResNet of timm or transformers")
    weights = None
    for file in IN_FOLDERS:
        weights = weights or _optional(name, file, revision)
    if weights is None:
        raise BundleError(f"has neither {' nor '.join(IN_FOLDERS)}")
    called = re.sub(r"[^A-Za-z0-9._-]", "-", name.rpartition("/")[2]).lstrip("._-")
    made = convert(kind, weights, Said(name=called))
    made.provenance["source"] = f"hf:{spec}"
    return made


def _downloaded(repository: str, file: str, revision: str) -> Path:
    """A file of a repository, downloaded unless it is cached."""
    path = _optional(repository, file, revision)
    if path is None:
        raise BundleError(f"has no {file}")
    return path


def _optional(repository: str, file: str, revision: str) -> Path | None:
    """A file of a repository, or None where the repository has no such file."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise BundleError(f"needs huggingface_hub: {INSTALL}") from None
    wanted: dict[str, Any] = {"repo_id": repository, "filename": file, "revision": revision or None}
    try:
        if _reachable(huggingface_hub.hf_hub_url(**wanted)):
            return Path(huggingface_hub.hf_hub_download(**wanted))
    except errors.GatedRepoError:
        raise BundleError("requires its licence to be accepted; log in to the hub") from None
    except errors.RepositoryNotFoundError:
        raise BundleError("the hub has no such public repository") from None
    except errors.RevisionNotFoundError:
        raise BundleError(f"the repository has no revision {revision}") from None
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{file} cannot be downloaded ({reason})") from None
    kept = huggingface_hub.try_to_load_from_cache(**wanted)
    if kept is None:
        raise BundleError(f"{file} is not cached, and the hub cannot be reached")
    return Path(kept) if isinstance(kept, str) else None


def _reachable(url: str) -> bool:
    """Whether the hub answers at all; a download would retry for a long time."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.get_hf_file_metadata(url)
    except (
        errors.EntryNotFoundError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
    ):
        return True
    # Any error of the underlying HTTP client.
    except Exception:  # noqa: BLE001
        return False
    return True
