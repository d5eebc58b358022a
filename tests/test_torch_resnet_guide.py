"""The guide for those who come from torch-resnet is true of both packages, line by line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import models.training.recipes
from models import Architecture, bundle
from models.architecture import Stem
from models.resnet import on_meta
from service.cli.train import DEFAULT_RECIPE
from tests.guides.checks import check_flags
from tests.support.commands import run
from tests.support.tiny import randomised

torch_resnet = pytest.importorskip("torch_resnet")
utils = pytest.importorskip("torch_resnet.utils")
DOCS = Path(__file__).parents[1] / "docs"
GUIDE = (DOCS / "torch-resnet.md").read_text("utf-8")
EXAMPLE = (DOCS / "guides" / "torch-resnet-example.md").read_text("utf-8")
# Of example/example.py; `--override-optim-hp` changes how it resumes.
FLAGS = (
    *("--model", "--shortcut", "--data", "--ep", "--lr", "--bs", "--wd", "--nesterov"),
    *("--wide-scheduler", "--no-amp", "--best", "--seed", "--ckpt"),
)
CLASSES = re.findall(r"^\| `(\w+)\((.*)\)` \| `(\w+)` \|$", GUIDE, re.MULTILINE)
# Layers take seconds to build.
THOUSAND = [pytest.mark.slow]
FAMILIES = ["", "PreAct"]


def rows(title: str) -> list[tuple[str, str]]:
    """The rows of the tables in a section, as code of both packages."""
    section = GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert section
    found = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", section, re.MULTILINE)
    return [row for row in found if row != ("torch_resnet.ResNet", "models.Architecture")]


ARGUMENTS, DIMENSIONS = (
    [row for row in rows("Arguments") if row[0].startswith("dimensions") == wanted]
    for wanted in (False, True)
)


def keywords(code: str) -> dict[str, Any]:
    names = {**vars(torch_resnet), "Bottleneck": torch_resnet.resnet.Bottleneck}
    return dict(eval(f"dict({code})", names))


def copied(theirs: nn.Module, ours: models.ResNet) -> None:
    """Gives `ours` the weights of `theirs`, which come in the same order."""
    state = theirs.state_dict()
    names = list(ours.state_dict())
    assert len(names) == len(state)
    ours.load_state_dict(dict(zip(names, state.values(), strict=True)))


def both_answer(theirs: nn.Module, ours: models.ResNet, size: int, channels: int = 3) -> None:
    """Fails unless both compute the same of the same weights."""
    randomised(theirs).eval()
    copied(theirs, ours.eval())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, size, size, generator=generator)
    with torch.no_grad():
        expected: Tensor = theirs(images)
        scale = float(expected.abs().max())
        torch.testing.assert_close(ours(images) / scale, expected / scale, rtol=0, atol=1e-5)


def test_every_class_is_in_the_table() -> None:
    named = [name for name in dir(torch_resnet) if re.search(r"ResNet\d", name)]
    assert {name for name, _, _ in CLASSES} == set(named)
    assert len(named) == 34


def test_every_shortcut_argument_and_function_is_in_a_table() -> None:
    named = {name for name in dir(torch_resnet) if name.endswith("Shortcut")}
    assert named == {code.partition("=")[2] for code, _ in ARGUMENTS if "Shortcut" in code}
    accepted = {"dimensions", "block", "shortcut", "width", "drop_rate", "small_images"}
    accepted |= {"in_planes", "zero_init_residual"}
    constructor = torch_resnet.ResNet.__init__.__annotations__.keys() | (
        torch_resnet.ResNet.__init__.__kwdefaults__.keys()
    )
    assert constructor - {"return"} == accepted
    told = {name for code, _ in rows("Arguments") for name in re.findall(r"(\w+)=", code)}
    assert told == accepted


@pytest.mark.parametrize(
    ("theirs", "given", "ours"),
    [
        pytest.param(*row, id="-".join(row), marks=THOUSAND if re.search(r"\d{4}", row[0]) else [])
        for row in CLASSES
    ],
)
def test_a_row_of_the_classes_holds(theirs: str, given: str, ours: str) -> None:
    with torch.device("meta"):
        network = getattr(torch_resnet, theirs)(**keywords(given))
    architecture = models.variant(ours).architecture
    headless = on_meta(models.variants.override(architecture, num_classes=0))
    shapes = [tuple(value.shape) for value in network.state_dict().values()]
    assert [tuple(value.shape) for value in headless.state_dict().values()] == shapes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "name", ["ResNet18", "ResNet18(small_images=True)", "ResNet50", "WideResNet16(width=3)"]
)
def test_classes_of_each_kind_give_equal_logits(family: str, name: str) -> None:
    theirs = eval(f"{family}{name}" if "(" in name else f"{family}{name}()", vars(torch_resnet))
    ours = re.sub(r"\(width=(\d)\)", r"_\1", name).replace("(small_images=True)", "_small")
    spelled = {"": "", "PreAct": "preact_"}[family] + ours.lower().replace("wide", "wide_")
    both_answer(theirs, models.build(spelled, num_classes=0), 32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("theirs", "ours"), ARGUMENTS)
def test_a_row_of_the_arguments_holds(family: str, theirs: str, ours: str) -> None:
    # Its images are small unless the row says otherwise.
    name = "ResNet18" if "small_images" in theirs else "ResNet20"
    network = getattr(torch_resnet, f"{family}{name}")(**keywords(theirs))
    prefix = "preact_" if family else ""
    built = models.build(f"{prefix}{name.lower()}", num_classes=0, **keywords(ours))
    zero = [int((value == 0).all()) for value in network.parameters()]
    assert [int((value == 0).all()) for value in built.parameters()] == zero
    dropped = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in built.modules() if isinstance(module, nn.Dropout)] == dropped
    both_answer(network, built, 32, channels=1 if "in_planes" in theirs else 3)


def test_all_arguments_but_the_last_are_fields_of_the_architecture() -> None:
    *fields, last = [name for _, ours in ARGUMENTS for name in keywords(ours)]
    architecture = models.variant("resnet20").architecture
    assert all(hasattr(architecture, name) for name in fields)
    assert not hasattr(architecture, last)
    assert architecture.shortcut == "B"


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize(("theirs", "ours"), DIMENSIONS)
def test_a_row_of_the_dimensions_holds(theirs: str, ours: str, width: int, preact: bool) -> None:
    given, family = keywords(theirs), torch_resnet.ResNet
    if preact:
        family, basic, bottleneck = (
            torch_resnet.PreActResNet,
            torch_resnet.preact_resnet.PreActBlock,
            torch_resnet.preact_resnet.PreActBottleneck,
        )
        given["block"] = bottleneck if "block" in given else basic
    stems: tuple[Stem, ...] = ("imagenet", "small")
    for stem in stems:
        network = family(**given, width=width, small_images=stem == "small")
        architecture = Architecture(
            **keywords(ours), width=width, preact=preact, stem=stem, num_classes=0
        )
        both_answer(network, models.ResNet(architecture), 32)


@pytest.mark.parametrize(("theirs", "ours"), rows("Functions"))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_the_functions_holds(theirs: str, ours: str, family: str) -> None:
    model = getattr(torch_resnet, f"{family}ResNet20")()
    network = models.build(f"{'preact_' if family else ''}resnet20", num_classes=0)
    both_answer(model, network, 32)
    head = nn.Linear(64, 3)
    shared = {"images": torch.rand(2, 3, 32, 32), "head": head}
    with torch.no_grad():
        found = eval(ours, {"models": models, "network": network, **shared})
        expected = eval(theirs, {"utils": utils, "model": model, **shared})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if "set_head" in theirs:
        assert model.head is network.head is head


def test_the_defaults_of_dropout_are_as_the_guide_says() -> None:
    for family in FAMILIES:
        wide = getattr(torch_resnet, f"{family}WideResNet16")(width=2)
        rates = {module.p for module in wide.modules() if isinstance(module, nn.Dropout)}
        assert rates == {0.3}
    assert models.variant("wide_resnet16_2").architecture.dropout == 0
    assert models.training.recipes.RECIPES["torch_resnet_wide"].dropout == 0.3
    assert models.variant("wrn_28_10").name == "preact_wide_resnet28_10"


def test_both_begin_with_the_same_distribution() -> None:
    theirs, ours = torch_resnet.ResNet18(), models.build("resnet18", num_classes=0)
    weights = [[value.detach() for value in each.parameters()] for each in (theirs, ours)]
    for one, other in zip(*weights, strict=True):
        if one.ndim == 4 and one.numel() > 30_000:
            assert other.std().item() == pytest.approx(one.std().item(), rel=0.03)
        elif one.ndim == 1:
            assert torch.equal(one, other)


def examples() -> dict[str, Any]:
    """What the guide's programs leave behind, from top to bottom."""
    scope: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, scope)
    return scope


def test_its_examples_run() -> None:
    scope = examples()
    network = scope["network"]
    assert isinstance(network, models.ResNet)
    assert models.count_parameters(network) == 23_520_842
    assert models.count_layers(network) == 54
    assert scope["logits"].shape == (2, 10)
    for name, layers in (("plain", 1 + 9 + 2 + 1), ("pooled", 1 + 18 + 2 + 1)):
        assert models.count_layers(scope[name]) == layers
        loss = scope[name](torch.rand(4, 3, 32, 32)).square().mean()
        loss.backward()
        assert all(value.grad is not None for value in scope[name].parameters())


def test_its_own_shortcut_computes_what_one_of_torch_resnet_does() -> None:
    class Pooled(nn.Module):
        def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
            super().__init__()
            self.requires_activation = stride > 1 or in_planes != out_planes
            if self.requires_activation:
                self.pool = nn.AvgPool2d(stride)
                self.conv = nn.Conv2d(in_planes, out_planes, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.pool(x)) if self.requires_activation else x

    theirs = torch_resnet.ResNet20(shortcut=Pooled)
    ours = models.build("resnet20", block=examples()["PooledBlock"], num_classes=0)
    both_answer(theirs, ours, 32)


def test_its_checkpoints_are_converted_by_the_command(tmp_path: Path) -> None:
    theirs = torch_resnet.PreActResNet20()
    theirs.set_head(nn.Linear(theirs.out_planes, 10))
    randomised(theirs).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    (command,) = re.findall(r"`resnet-serve\s+(convert [^`]+)`", GUIDE)
    words = [tmp_path / word if "." in word else word for word in command.split()]
    run(*words)
    network = bundle.read(tmp_path / "model.safetensors").network().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(images), rtol=1e-4, atol=1e-4)


def flags() -> list[tuple[str, str]]:
    return re.findall(r"^\| `(--.+?)` \| `(--.+?)`.* \|$", EXAMPLE, re.MULTILINE)


def test_every_flag_of_the_example_has_one_here() -> None:
    told = {word for theirs, _ in flags() for word in theirs.split() if word.startswith("--")}
    assert told | {"--best"} == set(FLAGS)
    assert "\n`--best` evaluates" in EXAMPLE


@pytest.mark.parametrize(("theirs", "ours"), flags())
def test_a_flag_of_the_example_has_its_value_here(
    theirs: str, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz"):
        (tmp_path / name).touch()
    words = ["resnet-serve", "train", "--data", "cifar-10-python.tar.gz", *ours.split(), "x"]
    params = check_flags(words)
    recipe = models.training.recipes.by_name(params["recipe_name"] or DEFAULT_RECIPE)
    if theirs.startswith("--model"):
        _, _, spec = theirs.partition(" ")
        name, *numbers = spec.split("-")
        given: dict[str, Any] = dict(zip(("width", "drop_rate"), map(float, numbers), strict=False))
        given |= {"width": int(given["width"])} if numbers else {}
        with torch.device("meta"):
            network = getattr(torch_resnet, name)(small_images=True, **given)
        architecture = models.variants.override(
            models.variant(params["variant"]).architecture, num_classes=0
        )
        shapes = [value.shape for value in network.state_dict().values()]
        assert [value.shape for value in on_meta(architecture).state_dict().values()] == shapes
        dropped = {module.p for module in network.modules() if isinstance(module, nn.Dropout)}
        assert dropped <= {params["dropout"] or 0.0}
    elif theirs.startswith("--shortcut"):
        expected = dict(ARGUMENTS)[theirs.removeprefix("--").replace(" ", "=")]
        assert keywords(expected) == {"shortcut": params["shortcut"], **dict(params["overrides"])}
    elif theirs.startswith("--data"):
        classes = theirs.removeprefix("--data CIFAR")
        assert params["data"].name == f"cifar-{classes}-python.tar.gz"
        assert recipe.paper.endswith("CIFAR100") == (classes == "100")
    elif theirs.startswith("--wide-scheduler"):
        assert recipe.paper.endswith(theirs)
