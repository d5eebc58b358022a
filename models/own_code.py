"""Blocks and heads of one's own in bundles: named by where Python imports them, never contained.

A bundle is data. One whose network has a block or a head that this package does not know says so as
`package.module:Class`, and reading it imports that only if the reader allows that class, or all of
its module, by name: importing a module runs it.

A block is what `models.blocks.BlockFactory` describes, a head `models.resnet.HeadFactory`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.blocks import BlockFactory
    from models.resnet import HeadFactory

DOTTED = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
PATH = re.compile(f"{DOTTED}:{DOTTED}")
# What may be allowed: also a module.
ALLOWED = re.compile(f"{DOTTED}(?::{DOTTED})?")
LONGEST = 200


@dataclass(frozen=True, slots=True)
class OwnCode:
    """The imported `block` and `head` of a network; None: the built-in one."""

    block: BlockFactory | None = None
    head: HeadFactory | None = None


BUILT_IN = OwnCode()


def path_of(made: object, what: str) -> str:
    """The import path of a class or function, such as `package.module:Class`; "" of None.

    Raises:
        ValueError: Python cannot import it by name; the message says what to do.
    """
    if made is None:
        return ""
    module, name = (getattr(made, part, "") for part in ("__module__", "__qualname__"))
    path = f"{module}:{name or type(made).__name__ + '()'}"
    if module == "__main__" or not PATH.fullmatch(path):
        raise ValueError(
            f"a bundle names a {what} of your own by where Python imports it, and {path} cannot be "
            f"imported: define the {what} as a class at the top level of a module, not of a script"
        )
    if _imported(path, what) is not made:
        raise ValueError(f"{path} is not the {what} of this network; rename one of the two")
    return path


def check_path(path: object, what: str) -> None:
    """Raises ValueError unless `path` is empty or as `path_of` gives it."""
    if path == "" or (
        isinstance(path, str) and len(path) <= LONGEST and PATH.fullmatch(path) is not None
    ):
        return
    raise ValueError(f"{what} must be an import path such as package.module:Class, not {path!r}")


def check_allowed(path: str, what: str, allow: Collection[str]) -> None:
    """Raises ValueError unless `allow` has `path` or its module; the message says what to do."""
    # Of a text, any part would be in it.
    allowed = (allow,) if isinstance(allow, str) else allow
    if path not in allowed and path.partition(":")[0] not in allowed:
        raise ValueError(
            f"its {what} is code, {path}, which is only imported if you allow it: by "
            f"--allow-code {path}, the setting allow_code, or in Python allow=[{path!r}]"
        )


def imported(path: str, what: str, allow: Collection[str]) -> Any:
    """What `path` names, if `allow` has it or its module.

    Raises:
        ValueError: it is not allowed, or cannot be imported; the message says what to do.
    """
    check_allowed(path, what, allow)
    return _imported(path, what)


def _imported(path: str, what: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 - whatever a module of the user's raises
        reason = f"{type(error).__name__}: {error}"
        missing = isinstance(error, ModuleNotFoundError)
        remedy = "; PYTHONPATH must name the folder that has it" if missing else ""
        raise ValueError(f"its {what} {path} cannot be imported ({reason}){remedy}") from None
    if getattr(found, "__module__", None) != module:  # such as what the module itself imports
        raise ValueError(f"its {what} {path} is not defined in {module}; name the module that does")
    return found
