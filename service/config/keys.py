"""Keys that callers send, as settings hold them: never shown, long enough to be no guess."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_core import PydanticCustomError

from service.errors import ConfigError

# What can be sent in a header as it is, and written in a list with commas.
FORM = re.compile(r"[!-+\--~]{16,}")
RULE = "should be at least 16 printable ASCII characters, without spaces and commas"
# What nobody may do with a file of keys but its owner; its group may read it.
TOO_OPEN = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def checked(key: SecretStr) -> SecretStr:
    if not FORM.fullmatch(key.get_secret_value()):
        raise PydanticCustomError("key", RULE)
    return key


Key = Annotated[SecretStr, AfterValidator(checked)]


def read(path: Path) -> list[SecretStr]:
    """The keys of a file, one a line; lines that begin with # are comments.

    Raises:
        ConfigError: it cannot be read, others can read it, or it has no key; no message has one.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text") from None
    if mode & TOO_OPEN:
        raise ConfigError(f"others can read or change {path}; `chmod 600` keeps them out")
    keys = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            if not FORM.fullmatch(text):
                raise ConfigError(f"line {number} of {path}: a key {RULE}")
            keys.append(SecretStr(text))
    if not keys:
        raise ConfigError(f"{path} has no key; write one a line")
    return keys
