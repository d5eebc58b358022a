"""Names the files beside Keras's own that people take for them, and says what to do instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from models.bundle import BundleError
from models.interchange.signatures import GZIP

SAVED_MODEL = (
    "a TensorFlow SavedModel, which holds code of TensorFlow: there, save it by "
    '`tf.keras.models.load_model("{0}").save("model.keras")`, or run '
    "`python -m tf2onnx.convert --saved-model {0} --output model.onnx` and convert that "
    "with --from onnx"
)
CHECKPOINT = (
    "a checkpoint of TensorFlow, which holds no network: load it into the model that it is of, "
    'with `model.load_weights("{0}")`, and save that by `model.save("model.keras")`'
)
LITE = "a TensorFlow Lite file: convert the Keras model that it was made from"
FROZEN = (
    "a frozen graph of TensorFlow: convert the Keras model that it was made from, or run "
    "`python -m tf2onnx.convert --graphdef {0} --output model.onnx`"
)
SHARD = re.compile(r"(.*)\.data-\d{5}-of-\d{5}")


def refuse_foreign(path: Path) -> None:
    """Raises BundleError for a folder, and for a file that is known not to be Keras's."""
    if path.is_dir():
        raise BundleError(_folder(path))
    shard = SHARD.fullmatch(path.name)
    if shard or path.name.endswith((".index", ".ckpt.meta")) or path.name == "checkpoint":
        stem = shard[1] if shard else path.name.removesuffix(".index").removesuffix(".meta")
        folder = path.parent
        if folder.name == "variables" and (folder.parent / "saved_model.pb").is_file():
            raise BundleError(f"a part of {SAVED_MODEL.format(folder.parent)}")
        raise BundleError(f"a part of {CHECKPOINT.format(path.with_name(stem))}")
    if path.name == "saved_model.pb":
        raise BundleError(f"a part of {SAVED_MODEL.format(path.parent)}")
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] == b"TFL3":
        raise BundleError(LITE)
    if path.suffix == ".pb":
        raise BundleError(FROZEN.format(path))
    if start.startswith(GZIP):
        raise BundleError(f"compressed by gzip: unpack it, as in `tar xf {path}`")
    if start.lstrip()[:1] == b"{":
        raise BundleError(
            'the description of a model, without its weights: `model.save("model.keras")` '
            "writes both"
        )


def _folder(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())
    if "saved_model.pb" in names:
        return SAVED_MODEL.format(path)
    if {"config.json", "model.weights.h5"} <= set(names):
        return f"an unpacked .keras file: pack it by `cd {path} && zip -0r ../model.keras .`"
    found = [name for name in names if name.endswith((".keras", ".h5", ".hdf5"))]
    if found:
        return f"a folder: name the file in it, {' or '.join(str(path / name) for name in found)}"
    if checkpoints := [name for name in names if name.endswith(".index")]:
        prefix = path / checkpoints[-1].removesuffix(".index")
        return f"a folder with {CHECKPOINT.format(prefix)}"
    models = [path / name for name in names if (path / name / "saved_model.pb").is_file()]
    if models:
        return f"a folder with {SAVED_MODEL.format(models[-1])}"
    return "a folder without Keras files: name a .keras or .h5 file"


def refuse_archive(names: Sequence[str]) -> None:
    """Raises BundleError for the content of a zip file that is no `.keras` file."""
    if "config.json" in names and "model.weights.h5" in names:
        return
    if any(name.endswith("saved_model.pb") for name in names):
        raise BundleError(f"a zip file of {SAVED_MODEL.format('its folder')}")
    inside = [name for name in names if name.endswith((".keras", ".h5", ".hdf5"))]
    if inside:
        raise BundleError(f"a zip file around {inside[0]}: unpack it, and convert that")
