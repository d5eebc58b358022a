"""The fenced blocks of a Markdown document."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^(?:<!-- needs: (?P<needs>\w+) -->\n)?```(?P<language>\w*)\n", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """`needs` says what the block cannot run without, `line` where it begins."""

    language: str
    text: str
    needs: str | None
    line: int


@dataclass(frozen=True)
class Command:
    """One line of a shell, and what it shows; "" where the document does not say."""

    line: str
    shown: str = ""

    @property
    def words(self) -> list[str]:
        """As a shell would split it, without the variables set before the program."""
        return [word for word in self._split() if word not in self.assignments]

    @property
    def assignments(self) -> list[str]:
        """The variables that are set before the program, as NAME=value."""
        words = self._split()
        count = next(
            (i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words)
        )
        return words[:count]

    @property
    def environment(self) -> dict[str, str]:
        return dict(each.partition("=")[::2] for each in self.assignments)

    @property
    def is_plain(self) -> bool:
        """Whether it is a program and its arguments, nothing that only a shell understands."""
        return not re.search(r"[|<>&;$`]", re.sub(r"\s#.*", "", self.line))

    def _split(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def blocks(document: str) -> Iterator[Block]:
    """Every fenced block of `document`, in order.

    Raises:
        ValueError: a fence is not closed, or has no language.
    """
    at = 0
    while match := FENCE.search(document, at):
        line = document.count("\n", 0, match.end())
        end = document.find("\n```", match.end() - 1)
        if end < 0:
            raise ValueError(f"line {line}: the block has no end")
        if not match["language"]:
            raise ValueError(f"line {line}: the block has no language")
        text = document[match.end() : end + 1]
        yield Block(match["language"], text, match["needs"], line)
        at = end + len("\n```\n") - 1


def commands(block: Block) -> list[Command]:
    """The commands of a block in `sh`, or in `console` with what each shows."""
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        return [Command(line) for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]
    found = re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    return [Command(line, shown) for line, shown in found]


def pattern(shown: str) -> re.Pattern[str]:
    """Matches output like `shown`: any number for a number, anything for `...`, any white space
    for white space."""
    parts = []
    for part in re.split(r"(\.\.\.|\s+)", shown.strip()):
        if part == "...":
            parts.append(r".*?")
        elif part.isspace():
            parts.append(r"\s+")
        else:
            literal = [re.escape(piece) for piece in re.split(r"\d[\d,.]*", part)]
            parts.append(r"\d[\d,.]*".join(literal))
    return re.compile(r"\s*" + "".join(parts) + r"\s*", re.DOTALL)
