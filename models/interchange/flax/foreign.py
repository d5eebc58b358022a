"""Names the files beside msgpack and Orbax that people have of Flax's weights, and says what to
do instead."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from models.bundle import BundleError
from models.interchange.signatures import COMPRESSED, HDF5, LFS, ZIP

SAVE = (
    'there, write `open("weights.msgpack", "wb").write(flax.serialization.to_bytes(variables))` '
    "with variables = {'params': ..., 'batch_stats': ...}"
)
MAGIC = {
    **{magic: f"compressed by {kind}: unpack it first" for magic, kind in COMPRESSED.items()},
    HDF5: "an HDF5 file: Keras writes these; use --from keras",
    LFS: "a Git LFS pointer, not the file itself: run git lfs pull",
    b"\x93NUMPY": f"one array of NumPy: {SAVE}",
}
PICKLE = f"a pickle, which is code, and nothing in a file is executed: {SAVE}"
TEXT = re.compile(rb"\s*(?:<!doctype|<html|<\?xml|[{\[])", re.IGNORECASE)
# What `torch.save` puts into its archives.
TORCH = re.compile(r"(.*/)?data\.pkl")


def refuse_foreign(path: Path) -> None:
    """Raises BundleError for a file that is known to hold no tree of arrays."""
    with path.open("rb") as file:
        start = file.read(64)
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            raise BundleError(what)
    # The first byte of a msgpack map is 0x80 if it is empty.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise BundleError(PICKLE)
    if TEXT.match(start) and start[8:9] != b"{":
        raise BundleError("text, not weights: name the file or the folder that holds the arrays")
    if start.startswith(ZIP):
        if not zipfile.is_zipfile(path):
            raise BundleError("a zip file, cut off: download or save it again")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(map(TORCH.fullmatch, names)):
            raise BundleError(
                "a PyTorch checkpoint: use --from torchvision, timm, cifar or torch_resnet"
            )
        if not all(name.endswith(".npy") for name in names):
            raise BundleError("a zip file: unpack it first")
