"""Data sets whose images are in tables, as Hugging Face's hub and `save_to_disk` store them.

The format is that of the library `datasets`: a column of structs with the encoded image in
`bytes`, and the names of the classes in the metadata `huggingface` of the schema.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import files
from models.data import label_list, tables
from models.data.label_list import FILES, LABELS, PARTS, normal, text
from models.data.members import damage

ROWS = 64  # In memory at a time.
METADATA = b"huggingface"
STATE = "state.json"
# Unpacked images, which the processes of a training and their workers read at random; removed when
# the last of them ends.
_unpacked_files = ExitStack()
atexit.register(_unpacked_files.close)


class Shard(NamedTuple):
    """A file of a set, its name in it, and the part of the set that its name or folder says, or
    ""."""

    file: Path
    name: str
    part: str


class Unpacked(NamedTuple):
    """The images of a shard in `file`: `places` int64 [N, 2] as offset and length, the labels of
    each, and the names of all classes in their order, or () if the shard does not say."""

    file: Path
    places: NDArray[np.int64]
    labels: list[tuple[str, ...]]
    classes: tuple[str, ...]


def has_images(path: Path) -> bool:
    """Whether a parquet file has images in it, not only their names.

    Raises:
        ValueError: it cannot be read.
    """
    arrow = tables.pyarrow(path)
    try:
        return bool(_image_columns(arrow.parquet.read_schema(path)))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a whole parquet file ({damage(error)})") from None


def shards(path: Path, names: Sequence[str]) -> list[Shard]:
    """The shards of the set at `path` among the tables there, which are named relative to it.

    Parquet files are called after their part, or are in a folder that is; Arrow files are what
    `save_to_disk` writes, in the order in which it names them.

    Raises:
        ValueError: there are several sets, or one that is no whole set; the message names them.
    """
    parquet = [name for name in names if name.lower().endswith(tables.PARQUET)]
    if parquet:
        found = [(name, _part(name)) for name in parquet]
        above = {_set(name) for name, _ in found}
    else:
        folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(".arrow")})
        found = [
            (f"{folder}/{file}".lstrip("/"), _part(f"{folder}/"))
            for folder in folders
            for file in _saved(path / folder)
        ]
        above = {_set(name) for name, _ in found}
    if len(above) > 1:
        listed = ", ".join(sorted(each or "." for each in above)[:5])
        raise ValueError(f"{path}: holds {len(above)} data sets: {listed}; name one of them")
    return [Shard(path / name, name, part) for name, part in found]


def _part(name: str) -> str:
    *folders, file = name.split("/")
    words = re.split(r"[^a-z]+", file.lower())
    for word in (words[0], *(folder.lower() for folder in reversed(folders))):
        if word in PARTS:
            return PARTS[word]
    return ""


def _set(name: str) -> str:
    """The folders above a shard, without those of parts."""
    return "/".join(folder for folder in name.split("/")[:-1] if folder.lower() not in PARTS)


def _saved(folder: Path) -> list[str]:
    """The files of a set that `save_to_disk` has written to a folder."""
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        chosen = state.get("_indices_files") or state.get("_indices_data_files")
    except FileNotFoundError:
        raise ValueError(f"{folder}: has Arrow files but no {STATE} of save_to_disk") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / STATE}: not what save_to_disk writes ({error})") from None
    if chosen:
        raise ValueError(f"{folder}: a file of indices chooses its rows; save it again")
    return names


def unpacked(file: Path) -> Unpacked:
    """The images and labels of a shard. The images are copied to a temporary file, which is as
    large as they are together. Processes that read the same shard at the same time share it.

    Raises:
        ValueError: the shard is damaged, or has no images or no labels; the message names it.
    """
    try:
        status = file.stat()
    except OSError:
        raise ValueError(f"{file}: no such file or folder") from None
    return _unpack(file, status.st_mtime_ns, status.st_size)


@cache
def _folder() -> Path:
    return _unpacked_files.enter_context(files.shared("images"))


@cache
def _unpack(file: Path, changed: int, size: int) -> Unpacked:
    arrow = tables.pyarrow(file)
    key = f"{os.fsencode(file.resolve())!r} {changed} {size}".encode()
    target = _folder() / hashlib.sha256(key).hexdigest()
    labels: list[tuple[str, ...]] = []
    try:
        schema = _schema(file, arrow)
        image, label = _columns(file, schema)
        with files.alone(target.with_suffix(".lock")):
            if not target.exists():
                _copy(_column(file, arrow, image), target)
        names = _names(_features(schema).get(label))
        for values in _column(file, arrow, label):
            labels += _labelled(values, names, file, len(labels))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a whole data file ({damage(error)})") from None
    if not names and all(_is_number(each) for row in labels for each in row):
        numbers = {int(each) for row in labels for each in row}
        names = tuple(map(str, sorted(numbers)))
    return Unpacked(target, np.load(_places(target)), labels, names)


def _copy(images: Iterator[list[Any]], target: Path) -> None:
    """Writes images one after another, and where each is."""
    lengths: list[int] = []
    with files.atomic(target) as part:
        with part.open("wb") as out:
            for value in chain.from_iterable(images):
                content = value.get("bytes") if isinstance(value, dict) else value
                lengths.append(out.write(content or b""))
        ends = np.cumsum(lengths, dtype=np.int64)
        places = np.stack([ends - lengths, np.array(lengths, np.int64)], axis=1)
        np.save(_places(target), places)


def _places(target: Path) -> Path:
    return target.with_suffix(".npy")


def _schema(file: Path, arrow: Any) -> Any:
    if file.suffix.lower() == tables.PARQUET:
        return arrow.parquet.read_schema(file)
    return _stream(file, arrow).schema


def _column(file: Path, arrow: Any, name: str) -> Iterator[list[Any]]:
    """The values of a column, of one record batch after another."""
    if file.suffix.lower() == tables.PARQUET:
        batches = arrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS, columns=[name])
    else:
        batches = _stream(file, arrow)
    return (batch.column(name).to_pylist() for batch in batches)


def _stream(file: Path, arrow: Any) -> Any:
    return arrow.ipc.open_stream(arrow.memory_map(str(file)))


def _image_columns(schema: Any) -> list[str]:
    """The columns of encoded images: bytes, or structs that have some."""
    kinds = {field.name: field.type for field in schema}
    return [name for name, kind in kinds.items() if _is_bytes(kind) or _has_bytes(kind)]


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _has_bytes(kind: Any) -> bool:
    if not str(kind).startswith("struct<"):
        return False
    return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    """The columns of the image and of its label.

    Raises:
        ValueError: there is none, or several may be meant.
    """
    images = _image_columns(schema)
    image = images[0] if len(images) == 1 else label_list.column(images, FILES)
    if image is None:
        listed = ", ".join(schema.names[:12])
        raise ValueError(f"{file}: no column of encoded images; its columns: {listed}")
    named = [name for name, feature in _features(schema).items() if _names(feature)]
    label = label_list.column(schema.names, LABELS)
    if label is None and len(named) == 1:
        label = named[0]
    if label is None:
        listed = ", ".join(schema.names[:12])
        raise ValueError(
            f"{file}: no column is the label; its columns: {listed}; understood are label, class, "
            "category, target, ..., or labels with lists"
        )
    return image, label


def _features(schema: Any) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[METADATA])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a sequence of it."""
    if isinstance(feature, list):
        return _names(feature[0]) if feature else ()
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") == "ClassLabel":
        return tuple(normal(str(name)) for name in feature.get("names") or ())
    return _names(feature.get("feature"))


def _labelled(
    values: Sequence[Any], names: tuple[str, ...], file: Path, before: int
) -> Iterator[tuple[str, ...]]:
    """The labels of rows, by the names of the classes if there are any."""
    by_number = {str(number): name for number, name in enumerate(names)}
    by_name = {name: name for name in names}
    for row, value in enumerate(values, before + 1):
        given = [one for one in (value if isinstance(value, list) else [value]) if text(one)]
        if not isinstance(value, list) and (not given or value == -1):
            raise ValueError(f"{file}: row {row} has no label; test sets may lack them")
        each = [normal(text(one)) for one in given]
        known = by_name if any(isinstance(one, str) for one in given) else by_number
        if names and not all(one in known for one in each):
            raise ValueError(f"{file}: row {row} has the label {value}, of {len(names)}")
        yield tuple(dict.fromkeys(known.get(one, one) for one in each))


def _is_number(text: str) -> bool:
    return text.isdecimal() and str(int(text)) == text
