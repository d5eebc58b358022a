"""Keys that clients send, as settings hold them: never shown, and too long to guess."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_core import PydanticCustomError

from models import files
from service.errors import ConfigError

# Characters that need no encoding in a header, nor quoting in a list with commas.
FORM = re.compile(r"[!-+\--~]{16,}")
RULE = "must be at least 16 printable ASCII characters, without spaces or commas"
# A file of keys must not grant these permissions; its group may read it.
TOO_OPEN = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def checked(key: SecretStr) -> SecretStr:
    if not FORM.fullmatch(key.get_secret_value()):
        raise PydanticCustomError("key", RULE)
    return key


Key = Annotated[SecretStr, AfterValidator(checked)]


def read(path: Path) -> list[SecretStr]:
    """The keys of a file, one per line; lines that begin with # are comments.

    Raises:
        ConfigError: it is unreadable, readable by others, or has no valid keys. The message never
            contains a key.
    """
    try:
        mode = path.stat().st_mode
        lines = files.read_text(path).splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    if mode & TOO_OPEN:
        raise ConfigError(
            f"{path} must be readable only by its owner and group; run `chmod 600 {path}`"
        )
    keys = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            if not FORM.fullmatch(text):
                raise ConfigError(f"line {number} of {path}: a key {RULE}")
            keys.append(SecretStr(text))
    if not keys:
        raise ConfigError(f"{path} contains no keys; write one per line")
    return keys
