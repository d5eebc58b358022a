"""What a file is that is no checkpoint, recognised by its content."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from models.interchange.pytorch import old_tar
from models.interchange.pytorch.pickles import SAVE
from models.interchange.signatures import COMPRESSED, HDF5, LFS, ZIP

# Of torch.save's older format, at the beginning of its first pickle.
OLDER = bytes.fromhex("6cfc9c46f9206aa85019")
TEXTS = (
    (rb"\Z", "empty; download or save it again"),
    (LFS, "a Git LFS pointer, not the file itself; run git lfs pull"),
    (
        rb"\s*(?:<!doctype|<html|<\?xml|<head)",
        "a web page, not a checkpoint; the download failed or asked to log in: download it again",
    ),
    (rb"\s*[{\[]", "JSON, not a checkpoint; give the file that holds the weights"),
)
MAGIC = {
    **{
        magic: f"compressed ({kind}); unpack it first, and convert the checkpoint in it"
        for magic, kind in COMPRESSED.items()
    },
    HDF5: "an HDF5 file, not a PyTorch checkpoint; use --from keras",
}
SCRIPT = (
    "TorchScript, and nothing in a file is executed; save its weights: "
    'torch.save(torch.jit.load("{name}").state_dict(), "weights.pth")'
)
PROGRAM = (
    "a program of torch.export, not a state dict; save its weights: "
    'torch.save(dict(torch.export.load("{name}").state_dict), "weights.pth")'
)


def described(path: Path) -> str | None:
    """What the file is and what to do with it, or None if it may be a checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
    for pattern, what in TEXTS:
        if re.match(pattern, start, re.IGNORECASE):
            return what
    for magic, what in MAGIC.items():
        if start.startswith(magic):
            return what
    if start.startswith(ZIP):
        return _archive(path) if zipfile.is_zipfile(path) else "cut off; download or save it again"
    names = old_tar.members(path)
    if names and not set(names) >= old_tar.MEMBERS:
        return f"a tar archive ({_shown(names)}); unpack it first, and convert the checkpoint in it"
    if start.startswith(b"\x80") and OLDER not in start[:16]:
        return (
            "a pickle that torch.save did not write, and nothing in a file is executed; save the "
            f"weights: {SAVE}"
        )
    return None


def _archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

    def has(test: Callable[[str], bool]) -> bool:
        return any(map(test, names))

    if has(lambda name: name.endswith("/constants.pkl")):
        return SCRIPT.format(name=path.name)
    if has(lambda name: name.endswith(("archive_format", "exported_program.json"))):
        return PROGRAM.format(name=path.name)
    if has(lambda name: name.endswith("data.pkl")):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy arrays (.npz), not a PyTorch checkpoint; save the weights with {SAVE}"
    if "model.weights.h5" in names:
        return "a Keras model, not a PyTorch checkpoint; use --from keras"
    return f"a zip archive ({_shown(names)}); unpack it first, and convert the checkpoint in it"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
