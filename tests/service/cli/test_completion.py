"""Completion, driven as a shell drives it: by bash itself, and by the protocol of the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import builtin, variants
from models.interchange import convert, formats
from models.training.recipes import RECIPES
from tests.conftest import COMMAND
from tests.support.commands import run

# What readline does with what is typed, without a terminal: words as bash itself takes them apart.
DRIVER = """
source {script}
COMP_LINE={line}
COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ echo "compopt $1 $2"; }}
_resnet_serve_completion {command} "" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "resnet-serve.bash"
    path.write_text(run("completion", "bash").stdout)
    return path


def in_bash(script: Path, *words: str, line: str | None = None) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in words)
    text = DRIVER.format(
        script=script,
        line=f"'{' '.join(words) if line is None else line}'",
        words=quoted,
        command=COMMAND,
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", text], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split("\n")[:-1]


NAME = "resnet-serve"


@pytest.mark.parametrize(
    ("words", "line", "expected"),
    [
        (["cl"], f"{NAME} cl", ["classify"]),
        (["serve", "--prec"], f"{NAME} serve --prec", ["--precision"]),
        (["models", "preact_wide_resnet28_"], None, ["preact_wide_resnet28_1", "..."]),
        (["serve", "--model", "bui"], None, ["builtin:", "compopt -o nospace"]),
        # bash replaces only what stands after the colon.
        (
            ["serve", "--model", "builtin", ":", "resnet2"],
            f"{NAME} serve --model builtin:resnet2",
            ["resnet20-cifar10"],
        ),
        (
            ["serve", "--model", "builtin", ":"],
            f"{NAME} serve --model builtin:",
            builtin.names(),
        ),
        (
            ["serve", "--model", "=", "random", ":", "wide_resnet50"],
            f"{NAME} serve --model=random:wide_resnet50",
            ["wide_resnet50_2"],
        ),
        (
            ["serve", "--model", "torchvision", ":", "resnet50", ":", "IM"],
            f"{NAME} serve --model torchvision:resnet50:IM",
            ["IMAGENET1K_V1", "IMAGENET1K_V2"],
        ),
        (
            ["check", "onnx-zoo", ":", "resnet18"],
            f"{NAME} check onnx-zoo:resnet18",
            ["resnet18-v1-7", "resnet18-v2-7"],
        ),
        (["convert", "--crop", "s"], None, ["squash"]),
        (["convert", "--channels", "g"], None, ["grey"]),
        (["serve", "--engine", "o"], None, ["openvino"]),
        (["serve", "--device", "cuda", ":"], f"{NAME} serve --device cuda:", ["0", "all"]),
        (["train", "--device", "cuda", ":"], f"{NAME} train --device cuda:", ["0"]),
        (["serve", "--model", "./weights/"], None, ["compopt -o default", ""]),
        (["convert", "--from", "tor"], None, ["torch_resnet", "torchvision"]),
        (["train", "--recipe", ""], f"{NAME} train --recipe ", list(RECIPES)),
    ],
)
def test_bash_completes(
    script: Path, words: list[str], line: str | None, expected: list[str]
) -> None:
    found = in_bash(script, NAME, *words, line=line)
    if expected[-1] == "...":
        assert found[: len(expected) - 1] == expected[:-1]
        assert found == [name for name in variants.names() if name.startswith(words[-1])]
    else:
        assert sorted(found) == sorted(expected)


@pytest.mark.skipif(shutil.which("script") is None, reason="needs a terminal of its own")
def test_a_person_at_bash_completes(script: Path, tmp_path: Path) -> None:
    """In an interactive bash on a terminal, with the keys that a person presses."""
    folder = Path(COMMAND).parent
    (tmp_path / "rc").write_text(
        f"PATH={folder}:$PATH\nPS1='> '\nbind 'set enable-bracketed-paste off'\nsource {script}\n"
    )
    # "echo" in front would complete files: the line is completed, taken to its start, and echoed.
    keys = "resnet-serve serve --model builtin:resnet2\t\x01echo done \r"
    found = tmp_path / "typescript"
    typed = subprocess.Popen(
        ["script", "-qec", f"bash --rcfile {tmp_path / 'rc'} -i", str(found)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "dumb"},
    )
    said, _ = typed.communicate(f"{keys}exit\r", timeout=60)
    assert "done resnet-serve serve --model builtin:resnet20-cifar10\n" in said.replace("\r", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered_in_clicks_protocol(shell: str, tmp_path: Path) -> None:
    text = run("completion", shell).stdout
    assert f"_RESNET_SERVE_COMPLETE={shell}_complete" in text
    environment = os.environ | {
        "_RESNET_SERVE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "resnet-serve serve --model builtin:resnet2",
        "COMP_CWORD": "builtin:resnet2" if shell == "fish" else "3",
    }
    said = subprocess.check_output([COMMAND], env=environment, text=True)
    assert "builtin:resnet20-cifar10" in said
    if found := shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(text)
        subprocess.run([found, "-n", path], check=True)


def test_completing_imports_nothing_heavy() -> None:
    probe = """
import sys
from service.cli.main import main
from click.shell_completion import BashComplete
complete = BashComplete(main, {}, "resnet-serve", "_RESNET_SERVE_COMPLETE")
for arguments, word in (
    (["serve", "--model"], "builtin:"),
    (["serve", "--model"], "random:"),
    (["models"], "wide"),
    (["convert", "--from"], ""),
    (["train", "--recipe"], ""),
):
    assert complete.get_completions(arguments, word), arguments
print([name for name in ("torch", "numpy", "pydantic", "fastapi") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"


def test_what_is_offered_is_what_there_is() -> None:
    assert tuple(convert.FORMATS) == formats.READ
    assert tuple(convert.EXPORTERS) == formats.WRITTEN
    for name in variants.names():
        assert variants.variant(name).name == name
