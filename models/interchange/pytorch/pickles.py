"""Checkpoints of `torch.save`, read as data: nothing in them is executed."""

from __future__ import annotations

import contextlib
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

SAVE = 'torch.save(model.state_dict(), "weights.pth")'
GLOBAL = re.compile(r"GLOBAL (\S+)")
MODULES = "torch.nn.modules."


class Refused(ValueError):
    """A file is no checkpoint of plain tensors; the message says what it is and what to do."""


class Inert:
    """Stands for an object beside the weights: takes any arguments and state, and does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class PlainDict:
    """Makes a plain dictionary of any subclass of one."""

    def __new__(cls, *_: Any) -> Any:
        return {}


class PlainList:
    """Makes a plain list of any sequence that is pickled like one."""

    def __new__(cls, *_: Any) -> Any:
        return []


def _in(module: str, *names: str) -> list[str]:
    return [f"{module}.{name}" for name in names]


NUMBERS = [f"{kind}{bits}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)]
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
# What training scripts save beside weights, and what stands for it: the objects themselves are
# never made.
STAND_INS: dict[str, type] = {
    **dict.fromkeys(
        (
            *_in("argparse", "Namespace"),
            *_in("types", "SimpleNamespace"),
            *_in("typing", "Any"),
            *_in("builtins", "bool", "dict", "float", "int", "list", "set", "frozenset", "str"),
            *_in("builtins", "tuple", "type"),
            *_in("datetime", "date", "datetime", "time", "timedelta", "timezone"),
            *_in("decimal", "Decimal"),
            *_in("uuid", "UUID"),
            *_in("pathlib", *PATHS),
            *_in("pathlib._local", *PATHS),
            *_in("numpy", "dtype", "ndarray"),
            *_in("numpy.dtypes", *(f"{name}DType" for name in ("Bool", "Str", "Object", "Bytes"))),
            *_in("numpy.dtypes", *(f"{name}DType" for name in NUMBERS)),
            *_in("numpy.dtypes", *(f"Float{bits}DType" for bits in (16, 32, 64))),
            *_in("numpy.core.multiarray", "scalar", "_reconstruct"),
            *_in("numpy._core.multiarray", "scalar", "_reconstruct"),
            *_in("numpy.core.numeric", "_frombuffer"),
            *_in("numpy._core.numeric", "_frombuffer"),
            *_in("omegaconf.base", "ContainerMetadata", "Metadata"),
            *_in("omegaconf.dictconfig", "DictConfig"),
            *_in("omegaconf.listconfig", "ListConfig"),
            *_in("omegaconf.nodes", "AnyNode", "StringNode", "IntegerNode", "FloatNode"),
            *_in("omegaconf.nodes", "BooleanNode"),
        ),
        Inert,
    ),
    **dict.fromkeys(
        (
            *_in("collections", "defaultdict"),
            *_in("lightning.fabric.utilities.data", "AttributeDict"),
            *_in("lightning_fabric.utilities.data", "AttributeDict"),
            *_in("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ),
        PlainDict,
    ),
    "collections.deque": PlainList,
}
ALLOWED: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]


def read(path: Path) -> Any:
    """What a file of `torch.save`, of either format, holds, on the CPU.

    Raises:
        Refused: it asks for anything else than tensors and plain values.
        Exception: any, where the file is damaged.
    """
    with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Of a path, torch would take the suffix for the format.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        # Which type it is depends on the form of the file.
        except Exception as error:  # noqa: BLE001
            raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> Exception:
    found = _globals(path)
    if zipfile.is_zipfile(path):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unsafe.sort(key=found.index)
    else:
        unsafe = GLOBAL.findall(str(error))[:1]
    if not unsafe:
        return error
    if any(name.startswith(MODULES) for name in found):
        own = [name for name in unsafe if not name.startswith(("torch.", "_", "builtins."))]
        return Refused(
            f"a whole network ({(own or unsafe)[0]}), not its weights, and nothing in a file is "
            f"executed; where the network is at hand, run {SAVE}"
        )
    return Refused(
        f"its pickle asks for {_listed(unsafe)}, and nothing in a file is executed; save the "
        f"weights alone: {SAVE}"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _globals(path: Path) -> list[str]:
    """The names that a checkpoint's pickles ask for, in order, as far as they can be read."""
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ValueError))
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            content = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            file = stack.enter_context(archive.open(content))
        for _ in range(4):  # torch.save's older format: what it is, its version, sizes, content.
            found += [
                str(argument).replace(" ", ".")
                for opcode, argument, _at in pickletools.genops(file)
                if opcode.name == "GLOBAL"
            ]
    return found
