"""Repositories on the Hugging Face hub, without torch: which files a model needs, and keeping them.

A cache has a folder for each commit, OWNER/NAME/COMMIT, and for each revision that was asked for
the file OWNER/NAME/REVISION.json, which names its commit and files. It appears when they are whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from models import files
from models.interchange import connection, download, variables
from models.interchange.connection import DownloadError, StatusError, Unreachable
from models.interchange.formats import IN_FOLDERS, INDEX, REPOSITORY

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAIN = "main"
MOST_JSON = 64 * 2**20  # bytes of an index or a config
SHA256, SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one time: `names` in `folder`, of which `weights` is read.
    `commit` is "" if the server does not tell; `downloaded`: those that were not in the cache."""

    folder: Path
    names: tuple[str, ...]
    weights: str
    commit: str = ""
    downloaded: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def kind(self) -> str:
        """The format of the weights; see `models.interchange.formats.READ`."""
        return kind_of(_read_json(self.folder / CONFIG))


def kind_of(config: dict[str, Any]) -> str:
    """Which library a config.json is of.

    Raises:
        DownloadError: neither timm nor transformers, or no ResNet.
    """
    if "architecture" in config or "pretrained_cfg" in config:
        return "timm"
    if config.get("model_type") == "resnet":
        return "huggingface"
    found = config.get("model_type") or "a model of an unknown kind"
    raise DownloadError(f"holds {found}, not a ResNet of timm or transformers")


def snapshot(spec: str, cache: Path, *, renew: bool = False) -> Snapshot:
    """The files of `OWNER/NAME` or `OWNER/NAME@REVISION`, from `cache` or the hub.

    What `huggingface_hub` has downloaded is used too. `renew` asks the hub for a later commit, and
    downloads to `cache` what it lacks; if the hub cannot be reached, what is there is good.

    Raises:
        DownloadError: no such repository, or another kind of model, or it is neither cached nor can
            it be downloaded.
        OSError: `cache` cannot be written.
    """
    if not REPOSITORY.fullmatch(spec):
        raise DownloadError("name a repository as OWNER/NAME or OWNER/NAME@REVISION")
    name, _, revision = spec.partition("@")
    repository = Repository(name, revision or MAIN, cache)
    kept = repository.kept()
    if kept and not (renew and not variables.offline()):
        return kept
    if not renew and (kept := repository.of_library()):
        return kept
    if variable := variables.offline():
        raise DownloadError(f"is not in the cache {cache}, and {variable} is set")
    try:
        return repository.download()
    except Unreachable:
        if kept:
            return kept
        raise


@dataclass(frozen=True)
class Repository:
    name: str
    revision: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    @property
    def record(self) -> Path:
        return self.folder / f"{quote(self.revision, safe='')}.json"

    def kept(self) -> Snapshot | None:
        """What the cache has, if it is whole and undamaged."""
        try:
            content = _read_json(self.record)
            sums: dict[str, str] = content["sha256"]
            folder = self.folder / Path(content["folder"]).name
            whole = all(download.matches(folder / Path(n).name, s or "-") for n, s in sums.items())
            names = tuple(sums)
            kept = Snapshot(folder, names, content["weights"], content["commit"])
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return None
        return kept if whole and kept.weights in names else None

    def of_library(self) -> Snapshot | None:
        """What `huggingface_hub` has in its own cache."""
        try:
            library = variables.library_cache() / f"models--{self.name.replace('/', '--')}"
            reference = library / "refs" / self.revision
            commit = reference.read_text("utf-8").strip() if reference.is_file() else self.revision
            folder = library / "snapshots" / commit
            # The library keeps names of files that do not exist; whether one was never asked for
            # must not be taken for that.
            if kind_of(_read_json(folder / CONFIG)) == "huggingface":
                absent = library / ".no_exist" / commit / PREPROCESSOR
                if not (folder / PREPROCESSOR).is_file() and not absent.is_file():
                    return None
            for weights in CANDIDATES:
                if (folder / weights).is_file():
                    parts = _parts(folder / weights) if weights.endswith(INDEX) else []
                    if all((folder / part).is_file() for part in parts):
                        return Snapshot(folder, (CONFIG, weights, *parts), weights, commit)
        except (DownloadError, OSError, RuntimeError):
            pass
        return None

    def download(self) -> Snapshot:
        """What the hub has, in `cache`.

        Raises:
            DownloadError: see `snapshot`.
            OSError: see `snapshot`.
        """
        config = self._found(CONFIG)
        if config is None:
            raise DownloadError(f"has no {CONFIG}")
        # All files are of the commit that the first one tells.
        pinned = Pinned(self, config.commit)
        kind = kind_of(_read_json(pinned.get(config)))
        if kind == "huggingface":
            pinned.get_if_there(PREPROCESSOR)
        weights = next((name for name in CANDIDATES if pinned.get_if_there(name)), None)
        if weights is None:
            raise DownloadError(f"has neither {' nor '.join(IN_FOLDERS)}")
        if weights.endswith(INDEX):
            for part in _parts(pinned.folder / weights):
                if not pinned.get_if_there(part):
                    raise DownloadError(f"its {weights} names {part}, which it does not have")
        sums = {name: files.sha256(pinned.folder / name) for name in pinned.names}
        content = {"folder": pinned.folder.name, "commit": config.commit, "weights": weights}
        with files.atomic(self.record) as path:
            path.write_text(json.dumps(content | {"sha256": sums}, indent=1), "utf-8")
        names, downloaded = tuple(pinned.names), frozenset(pinned.downloaded)
        return Snapshot(pinned.folder, names, weights, config.commit, downloaded)

    def _found(self, file: str, commit: str = "") -> HubFile | None:
        """What the hub tells of a file; None if the repository has no such file."""
        revision = quote(commit or self.revision, safe="")
        url = f"{variables.endpoint()}/{self.name}/resolve/{revision}/{quote(file)}"
        token = variables.token()
        if not (token.isascii() and token.isprintable()):
            raise DownloadError("HF_TOKEN holds no token: a token is printable ASCII")
        try:
            headers = download.patiently(lambda: connection.head(url, token))
        except StatusError as error:
            if self._is_missing(error):
                return None
            raise
        etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/")
        return HubFile(
            file,
            url,
            _checksum(etag.strip('"')),
            commit or headers.get("X-Repo-Commit") or "",
            token,
        )

    def _is_missing(self, error: StatusError) -> bool:
        """Whether the repository lacks the file.

        Raises:
            DownloadError: the repository itself is missing, private or gated.
        """
        if error.code == "GatedRepo":
            raise DownloadError(
                f"is gated; accept its conditions at {variables.endpoint()}/{self.name}, and set "
                "HF_TOKEN to a token that may read it"
            ) from None
        if error.code == "RevisionNotFound":
            raise DownloadError(f"the repository has no revision {self.revision}") from None
        if error.code == "RepoNotFound" or error.status in (401, 403):
            advice = "set HF_TOKEN to a token that may read it"
            if variables.token():
                advice = "the token in HF_TOKEN may not read it"
            raise DownloadError(f"does not exist or is private; {advice}") from None
        return error.status == 404


@dataclass(frozen=True)
class HubFile:
    """`checksum`: see `download.fetch`; `commit`: "" if the server does not tell."""

    name: str
    url: str
    checksum: str
    commit: str
    token: str = field(repr=False)


@dataclass(frozen=True)
class Pinned:
    """The files of one commit, as they are downloaded."""

    repository: Repository
    commit: str
    names: list[str] = field(default_factory=list)
    downloaded: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        name = self.commit if SHA1.fullmatch(self.commit) else quote(self.repository.revision, "")
        return self.repository.folder / name

    def get(self, file: HubFile) -> Path:
        path = self.folder / file.name
        if not (file.checksum and download.matches(path, file.checksum)):
            self.downloaded.append(file.name)
        self.names.append(file.name)
        return download.fetch(
            file.url, self.folder, file.checksum, name=file.name, token=file.token
        )

    def get_if_there(self, name: str) -> Path | None:
        file = self.repository._found(name, self.commit)
        return self.get(file) if file else None


# In the order of preference.
CANDIDATES = (*IN_FOLDERS, *(f"{name}{INDEX}" for name in IN_FOLDERS))


def _checksum(etag: str) -> str:
    """Of large files the hub's tag is the SHA-256, of others the SHA-1 of the git blob."""
    if SHA256.fullmatch(etag):
        return etag
    return f"{download.GIT}{etag}" if SHA1.fullmatch(etag) else ""


def _parts(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        DownloadError: it is none, or a name leads elsewhere.
    """
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise DownloadError(f"{index.name}: an index without a weight_map")
    parts = sorted(set(map(str, named.values())))
    for part in parts:
        if Path(part).name != part or part.endswith(".json"):
            raise DownloadError(f"{index.name}: names {part!r}, which is no file beside it")
    return parts


def _read_json(path: Path) -> dict[str, Any]:
    """Raises DownloadError if it is no JSON object."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise DownloadError(f"{path.name}: more than {MOST_JSON} bytes")
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{path.name}: not JSON, or damaged") from None
    if not isinstance(content, dict):
        raise DownloadError(f"{path.name}: not a JSON object")
    return content
