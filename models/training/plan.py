"""What determines the weights of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast

import torch

from models import own_code, variants
from models.architecture import Architecture
from models.blocks import BlockFactory
from models.bundle import Bundle
from models.classifier import Classifier
from models.data.augment import Augmentation, grey
from models.data.datasets import Dataset
from models.data.seeds import mix
from models.data.source import Source
from models.evaluation import temperature
from models.own_code import OwnCode
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.storage import Storage
from models.training.recipe import Recipe
from models.training.start import load_start
from models.training.stem import whiten_stem
from models.views import Views


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the weights.

    `variant`, `overrides`: the network, and the fields of `Architecture` that differ from it.
    `block`: replaces the blocks of the variant; see `models.own_code`.
    `start`: initial weights, whose network and input replace those of the variant. If the data
        has other classes, the head starts at random.
    `recipe_name`: the name of the recipe that `recipe` is based on; `recipe` gets the mean and
        standard deviation of the start or of `prepared`, if it has its own.
    `prepared`: how images are prepared, if not as for the variant or the start. Other channels than
        the start's change its stem, see `models.training.start`.
    `tests`: the test sets of the result; the first also measures each epoch.
    `validation`: images that training does not see, which measure each epoch and decide what the
        recipe keeps.
    `held_out`: images that training does not see, to fit the temperature on, instead of the
        validation images.
    `views`, `storage`: those of the bundle; they do not change the training. What is measured is
        what the bundle answers: with its views, and in the end with its weights as rounded.

    Sets may lack some of the source's classes, and are aligned with these by name.
    """

    variant: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    block: BlockFactory | None = None
    start: Bundle | None = None
    source: Source
    recipe: Recipe
    recipe_name: str
    seed: int
    prepared: InputSpec | None = None
    tests: tuple[Dataset, ...] = ()
    validation: Dataset | None = None
    held_out: Dataset | None = None
    views: Views = "plain"
    storage: Storage = "fp32"

    def __post_init__(self) -> None:
        def aligned(other: Dataset) -> Dataset:
            classes = self.source.classes
            return other if other.classes == classes else other.relabelled(classes)

        object.__setattr__(self, "tests", tuple(map(aligned, self.tests)))
        if self.validation:
            object.__setattr__(self, "validation", aligned(self.validation))
        if self.start or self.prepared:  # Then these say how images are normalised.
            own = {n: getattr(self.input, n) for n in ("mean", "std") if getattr(self.recipe, n)}
            object.__setattr__(self, "recipe", replace(self.recipe, **own))

    def architecture(self) -> Architecture:
        """The network's architecture; `overrides` take precedence over the recipe.

        Raises:
            ValueError: the variant or an override is unknown or invalid, a test set has other
                classes or the name of another test set, too few images are held out, the recipe
                needs validation images and there are none, or the source does not augment its
                images as the recipe says.
        """
        for other in filter(None, (*self.tests, self.validation, self.held_out)):
            if other.classes != self.source.classes:
                raise ValueError(f"{other.source} has other classes than {self.source.source}")
            if other.targets.ndim != 1:
                raise ValueError(f"{other.source} has images with several labels or none")
        if self.held_out:
            temperature.check_count(len(self.held_out.images), ", or hold out none")
        self._check_source()
        if self.validation is None and (self.recipe.keep == "best" or self.recipe.patience):
            what = "keep best" if self.recipe.keep == "best" else "patience"
            raise ValueError(f"{what} needs validation images")
        sources = [test.source for test in filter(None, (*self.tests, self.validation))]
        if len(set(sources)) < len(sources):
            raise ValueError(f"two test sets are called {sources[0]}; rename one")
        base = self.start or variants.variant(self.variant)
        own: dict[str, Any] = {"dropout": self.recipe.dropout}
        if self.start is None:  # Weights keep the shortcuts and strides they were trained with.
            own["shortcut"] = self.recipe.shortcut
            if self.overrides.get("block", base.architecture.block) == "bottleneck":
                own["stride_at"] = self.recipe.stride_at
        changes = {name: value for name, value in own.items() if value is not None}
        return variants.override(
            base.architecture,
            **{
                "num_classes": len(self.source.classes),
                **({"in_channels": self.prepared.shape[2]} if self.prepared else {}),
                **changes,
                **self.overrides,
            },
        )

    def _check_source(self) -> None:
        for name, value in self.source.applied.items():
            if name == "balance" and (self.recipe.balance, value) == ("loss", "none"):
                continue  # Then the images are drawn as ever.
            if (wanted := getattr(self.recipe, name)) != value:
                raise ValueError(
                    f"{self.source.source}: the recipe's {name} is {wanted!r}, but its images get "
                    f"{value!r}; open it with augmentation=augmentation(recipe, spec)"
                )

    def record(self) -> dict[str, Any]:
        """What is done of the recipe, as JSON values: with the network's dropout, shortcut and
        stride, if the recipe has its own. Basic blocks have no choice where to stride."""
        architecture = self.architecture()
        own: dict[str, Any] = {
            name: getattr(architecture, name)
            for name in ("dropout", "shortcut", "stride_at")
            if getattr(self.recipe, name) is not None
        }
        if self.start is not None:  # Weights are not initialised.
            own |= {"stem_init": "he", "zero_init_residual": False}
        if architecture.block == "basic":
            own["stride_at"] = None
        return replace(self.recipe, **own).record()

    @property
    def input(self) -> InputSpec:
        """The network's input specification; without a start, normalised as the recipe says."""
        if self.prepared or self.start:
            return self.prepared or cast("Bundle", self.start).input
        spec, recipe = variants.variant(self.variant).input, self.recipe
        return replace(spec, mean=recipe.mean or spec.mean, std=recipe.std or spec.std)

    @property
    def continues(self) -> bool:
        """Whether the start answers with the classes of the data."""
        return self.start is not None and self.start.labels == self.source.classes

    def network(self) -> ResNet:
        """The network as training begins.

        Raises:
            ValueError: see `architecture`; or the initial weights do not fit the `overrides`.
        """
        torch.manual_seed(mix("initialise", self.seed))
        recipe = self.recipe
        code = self.start.code if self.start else OwnCode(block=self.block)
        network = ResNet(
            self.architecture(),
            block=code.block,
            head=code.head,
            zero_init_residual=recipe.zero_init_residual,
        )
        if self.start is None and recipe.stem_init == "whitened":
            whiten_stem(network, self.source, self.input, seed=self.seed)
        if self.start is not None:
            load_start(network, self.start, self.source.classes, self.input.channels)
        return network

    def classifier(self, network: ResNet, temperature: float = 1.0) -> Classifier:
        """The network as it is measured and served."""
        return Classifier(network, self.input, temperature, views=self.views)

    def identity(self) -> dict[str, Any]:
        """What a run and a saved state must share for the run to resume from it."""
        return {
            "network": asdict(self.architecture()),
            "data": f"{self.source.source}: {len(self.source)} images",
            "images of": dict(zip(self.source.classes, self.source.counts.tolist(), strict=True)),
            "classes": list(self.source.classes),  # Equal dicts may differ in order.
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            **({"block": own_code.path_of(self.block, "block")} if self.block else {}),
            **({"start": self.start.fingerprint()} if self.start else {}),
            **({"input": asdict(self.prepared)} if self.prepared else {}),
            **({"validation": _named(self.validation)} if self.validation else {}),
        }


def augmentation(recipe: Recipe, spec: InputSpec) -> Augmentation:
    """The augmentation of a recipe, for `models.data.source.open_source`."""
    names = {field.name for field in fields(Augmentation)} - {"fill"}
    return Augmentation(fill=grey(spec), **{name: getattr(recipe, name) for name in names})


def _named(data: Dataset) -> str:
    return f"{data.source}: {len(data.images)} images"
