"""Reading reference pairs: inputs of a network, and what it computed of them elsewhere."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle import BundleError
from models.files import check_regular
from models.interchange import unpacking
from models.interchange.extras import load
from models.interchange.imported import natural

Array = NDArray[Any]
# Of a file; an archive of NumPy arrays may expand to more than it holds.
MOST_BYTES = 1 << 30
INPUTS = ("input", "inputs", "x", "data")
OUTPUTS = ("output", "outputs", "y", "logits")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
IN_FOLDERS = re.compile(r"(input|output)s?(.*)", re.IGNORECASE)
GRAMMAR = (
    "a pair is a file with both (.npz, .pt, .safetensors), two files INPUT OUTPUT, or a folder or "
    "tar archive of input_0.pb and output_0.pb"
)


class PairError(BundleError):
    """A file is no reference pair, or is damaged; the message names it in one line."""


@dataclass(frozen=True, eq=False)
class Pair:
    """`input`: an image, or images [N, C, H, W] or [N, H, W, C]: uint8 pixels, or float32.
    `output`: float32 [N, K]: logits, probabilities, or the features of a network without a head.
    """

    name: str
    input: Image.Image | Array
    output: NDArray[np.float32]

    @property
    def images(self) -> int:
        return len(self.output)


def read(paths: Sequence[Path]) -> list[Pair]:
    """The pairs in files, folders and archives; two files in a row may be INPUT and OUTPUT.

    Nothing in them is executed.

    Raises:
        PairError: a file cannot be read, or is no part of a pair.
    """
    pairs: list[Pair] = []
    rest = list(paths)
    while rest:
        path = rest.pop(0)
        if unpacking.is_packed(path):
            with unpacking.unpacked(path) as folder:
                pairs += within(folder, shown=path)
            if not pairs:
                raise PairError(f"{path}: holds no test data; {GRAMMAR}")
            continue
        content = _content(path)
        both = _both(content)
        if both is None:
            if not rest:
                raise PairError(f"{path}: its output is missing; {GRAMMAR}")
            second = rest.pop(0)
            pairs.append(_pair(path.name, _one(path, content, INPUTS), _output(second)))
        else:
            pairs.append(_pair(path.name, *both))
    return pairs


def two(first: Path, second: Path) -> Pair:
    """The pair of an input's file and an output's; each may hold the other one too.

    Raises:
        PairError: see `read`.
    """
    for path in (first, second):
        if path.is_dir():
            raise PairError(f"{path}: a folder; `resnet-serve check MODEL {path}` reads it")
    return _pair(first.name, _one(first, _content(first), INPUTS), _output(second))


def within(folder: Path, shown: Path | None = None) -> list[Pair]:
    """The pairs in a folder and its folders: files `input_0.pb` and `output_0.pb`, of any format,
    and `.npz` with both. `shown`: what messages call the folder.

    Raises:
        PairError: see `read`.
    """
    pairs: list[Pair] = []
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    try:
        for each in sorted(folders, key=lambda path: natural(str(path))):
            pairs += _directly(each, each.relative_to(folder).as_posix())
    except PairError as error:
        raise PairError(str(error).replace(str(folder), str(shown or folder))) from None
    return pairs


def _directly(folder: Path, name: str) -> list[Pair]:
    found: dict[str, dict[str, Path]] = {}
    pairs = []
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if not path.is_file() or path.suffix.lower() not in (*READERS, *IMAGES):
            continue
        if match := IN_FOLDERS.fullmatch(path.name):
            found.setdefault(match[2].lower().split(".")[0], {})[match[1].lower()] = path
        elif path.suffix == ".npz" and (both := _both(_content(path))):
            pairs.append(_pair(path.name, *both))
    for files in found.values():
        if files.keys() != {"input", "output"}:
            lacks = "an output" if "input" in files else "an input"
            raise PairError(f"{next(iter(files.values()))}: lacks {lacks} beside it")
        images = _one(files["input"], _content(files["input"]), INPUTS)
        shown = files["input"].name if name == "." else name
        pairs.append(_pair(shown, images, _output(files["output"])))
    return pairs


def _pair(name: str, images: Image.Image | Array, output: Array) -> Pair:
    if isinstance(images, Image.Image):
        return Pair(name, images, _rows(name, output, 1))
    batch = _images(name, images)
    return Pair(name, batch, _rows(name, output, len(batch)))


def _images(name: str, array: Array) -> Array:
    if array.ndim == 5 and len(array) == 1:
        array = array[0]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or not array.size:
        swapped = "; INPUT comes before OUTPUT" if array.ndim < 3 else ""
        raise PairError(
            f"{name}: its input has the shape {list(array.shape)}, not [N, C, H, W] or "
            f"[N, H, W, C]{swapped}"
        )
    _check_numbers(name, "input", array)
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array.astype(np.float32)


def _rows(name: str, array: Array, count: int) -> NDArray[np.float32]:
    """Float32 [N, K] from [N, K], [K] for one image, or [N, K, 1, 1]."""
    _check_numbers(name, "output", array)
    while array.ndim > 2 and len(array) == 1 and (count > 1 or array.shape[1] == count):
        array = array[0]
    spread = array.ndim > 2 and max(array.shape[2:]) > 1
    length = len(array) if array.ndim > 1 else count
    if length != count or not array.size or array.size % count or spread:
        images = f"{count} image{'s' * (count > 1)}"
        raise PairError(
            f"{name}: its output has the shape {list(array.shape)}, not [N, K] for {images}"
        )
    rows: NDArray[np.float32] = array.reshape(count, -1).astype(np.float32)
    return rows


def _check_numbers(name: str, part: str, array: Array) -> None:
    if array.dtype.kind not in "fiu":
        raise PairError(f"{name}: its {part} has the type {array.dtype}, not numbers")
    if not np.isfinite(array).all():
        raise PairError(f"{name}: its {part} has values that are not finite (NaN or infinity)")


def _both(content: Image.Image | Mapping[str, Array]) -> tuple[Array, Array] | None:
    """Input and output of a file that has both: by their names, or as the only two arrays."""
    if isinstance(content, Image.Image):
        return None
    named = [next((content[k] for k in keys if k in content), None) for keys in (INPUTS, OUTPUTS)]
    if named[0] is not None and named[1] is not None:
        return named[0], named[1]
    if len(content) != 2:
        return None
    first, second = content.values()
    return (second, first) if first.ndim < 3 <= second.ndim else (first, second)


def _one(path: Path, content: Image.Image | Mapping[str, Array], keys: Sequence[str]) -> Any:
    """The one array in a file, or that of `keys`; or the image that it is."""
    if isinstance(content, Image.Image):
        return content
    for key in keys:
        if key in content:
            return content[key]
    if both := _both(content):
        return both[keys is OUTPUTS]
    if len(content) != 1:
        names = ", ".join(content) or "none"
        raise PairError(f"{path}: holds several arrays ({names}); call them input and output")
    return next(iter(content.values()))


def _output(path: Path) -> Array:
    content = _content(path)
    if isinstance(content, Image.Image):
        raise PairError(f"{path}: an image is no output; {GRAMMAR}")
    array: Array = _one(path, content, OUTPUTS)
    return array


def _content(path: Path) -> Image.Image | dict[str, Array]:
    """An image, or the arrays in a file by their names."""
    reader = READERS.get(path.suffix.lower(), _image)
    if path.is_dir():
        raise PairError(f"{path}: a folder where a file is expected; {GRAMMAR}")
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise PairError(f"{path}: larger than {MOST_BYTES >> 30} GiB")
    try:
        check_regular(path)
        content = reader(path)
    except OSError as error:
        raise PairError(f"{path}: {error.strerror or error}") from None
    except BundleError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise PairError(f"{prefix}{error}") from None
    # Damaged files raise any error.
    except Exception:  # noqa: BLE001
        kind = path.suffix.lower().removeprefix(".")
        raise PairError(f"{path}: not a whole {kind} file; save it again") from None
    if isinstance(content, dict) and not content:
        raise PairError(f"{path}: holds no arrays")
    return content


def _npy(path: Path) -> dict[str, Array]:
    return {"": np.load(path, allow_pickle=False)}


def _npz(path: Path) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
            raise PairError(f"{path}: expands to more than {MOST_BYTES >> 30} GiB")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _torch(path: Path) -> dict[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Its messages advise to load without `weights_only`.
    except Exception:  # noqa: BLE001
        raise PairError(
            f"{path}: holds more than tensors; save them with "
            "`torch.save({'input': x, 'output': y}, FILE)`"
        ) from None
    if isinstance(content, Tensor):
        content = {"": content}
    if isinstance(content, list | tuple):
        content = {str(number): each for number, each in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise PairError(f"{path}: holds no tensors by name")
    return {str(name): _numpy(tensor) for name, tensor in content.items()}


def _numpy(tensor: Tensor) -> Array:
    plain = tensor.detach()
    array: Array = (plain.float() if plain.is_floating_point() else plain).numpy()
    return array


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        arrays: dict[str, Array] = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise PairError(f"{path}: not a whole safetensors file ({error})") from None
    return arrays


def _onnx_tensor(path: Path) -> dict[str, Array]:
    onnx = load("onnx")
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise PairError(f"{path}: its data is in another file")
    return {tensor.name: onnx.numpy_helper.to_array(tensor)}


def _json(path: Path) -> dict[str, Array]:
    content = json.loads(path.read_text("utf-8"))
    values = content if isinstance(content, dict) else {"": content}
    return {str(name): np.array(value, dtype=np.float64) for name, value in values.items()}


def _csv(path: Path) -> dict[str, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # An empty file only warns.
        return {"": np.loadtxt(path, delimiter=",", ndmin=2)}


def _image(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise
    # Pillow's decoders raise any error on damaged files.
    except Exception:  # noqa: BLE001
        known = ", ".join(READERS)
        raise PairError(f"{path}: neither an image nor one of {known}") from None
    return image


READERS: dict[str, Callable[[Path], dict[str, Array]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".pb": _onnx_tensor,
    ".json": _json,
    ".csv": _csv,
}
