"""Two examples for each command's help, and where `serve` finds what has no flag."""

from __future__ import annotations

import click

EXAMPLES: dict[str, tuple[str, str]] = {
    "serve": (
        "resnet-serve serve --model torchvision:resnet50 --port 8080",
        "resnet-serve serve --config serve.yaml",
    ),
    "health": ("resnet-serve health", "resnet-serve health --port 8080 --live"),
    "fetch": (
        "resnet-serve fetch torchvision:resnet50 hf:microsoft/resnet-50",
        "resnet-serve fetch --config serve.yaml",
    ),
    "config check": (
        "resnet-serve config check --config serve.yaml",
        "resnet-serve config check --model builtin:resnet10-cifar10 --device cpu",
    ),
    "config show": (
        "resnet-serve config show --config serve.yaml",
        "resnet-serve config show --json",
    ),
    "config schema": (
        "resnet-serve config schema",
        "resnet-serve config schema > serve.schema.json",
    ),
    "classify": (
        "resnet-serve classify --model torchvision:resnet50 photo.jpg",
        "resnet-serve classify --output labels.csv photos/",
    ),
    "models": ("resnet-serve models 'wide*'", "resnet-serve models builtin:resnet10-cifar10"),
    "convert": (
        "resnet-serve convert --from timm --labels names.txt model.pth my.safetensors",
        "resnet-serve convert torchvision:resnet50 resnet50.safetensors",
    ),
    "check": (
        "resnet-serve check mine.safetensors reference.npz",
        "resnet-serve check onnx-zoo:resnet50-v1-12",
    ),
    "train": (
        "resnet-serve train --variant resnet20 --data cifar10/ resnet20.safetensors",
        "resnet-serve train --weights torchvision:resnet18 --data pets my.safetensors",
    ),
    "evaluate": (
        "resnet-serve evaluate --model mine.safetensors photos/",
        "resnet-serve evaluate --model mine.safetensors --json photos.zip",
    ),
    "results": (
        "resnet-serve results resnet20.safetensors",
        "resnet-serve results --json runs/",
    ),
    "calibrate": (
        "resnet-serve calibrate --model torchvision:resnet50 photos/ int8.safetensors",
        "resnet-serve calibrate --images 256 photos.zip int8.safetensors",
    ),
    "bench": (
        "resnet-serve bench --connections 8 photo.jpg",
        "resnet-serve bench --url http://localhost:8080 --rate 100 --json photos/",
    ),
    "completion": (
        "resnet-serve completion bash",
        "resnet-serve completion fish > ~/.config/fish/completions/resnet-serve.fish",
    ),
}
# By what a reader looks for; all of these are settings.
WITHOUT_FLAGS = {
    "who may use it": "api_keys, api_keys_file, admin_keys, admin_keys_file",
    "HTTPS": "tls_certificate, tls_key",
    "load": "max_batch, max_queue, request_timeout_ms, max_body_bytes",
    "browsers": "cors_origins",
    "logs": "log_level, log_format",
}
SERVE = "\n\n".join(
    (
        "\b\nSettings without a flag, such as:\n"
        + "\n".join(f"  {what + ':':<16}{names}" for what, names in WITHOUT_FLAGS.items()),
        "Each setting is a line of the file, or a variable RESNET_SERVE_ and its name in capitals, "
        "such as RESNET_SERVE_API_KEYS_FILE; RESNET_SERVE_CONFIG names the file. docs/settings.md "
        "and `resnet-serve config schema` describe all of them, `resnet-serve config show` prints "
        "those in force.",
    )
)


def add(command: click.Command, path: str = "") -> None:
    """Ends the help of a command, and of those below it, with its examples."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            add(child, f"{path} {name}".strip())
        return
    lines = "\n".join(f"  {line}" for line in EXAMPLES[path])
    before = f"{SERVE}\n\n" if path == "serve" else ""
    command.epilog = f"{before}\b\nExamples:\n{lines}"


class Commands(click.Group):
    """A group whose help has the first sentence of each command, however long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
