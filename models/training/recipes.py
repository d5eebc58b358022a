"""Training recipes as data, as in the papers."""

from __future__ import annotations

from dataclasses import replace

from models.suggestions import hint
from models.training.recipe import Phase, Recipe


def _one_cycle(epochs: float, warm_up: float) -> tuple[Phase, ...]:
    return (Phase(warm_up * epochs, 1.0, "linear"), Phase(epochs, 0.0, "cosine"))


_HE = (Phase(400, 0.1), Phase(32_000, 1), Phase(48_000, 0.1), Phase(64_000, 0.01))
_WIDE = Recipe(
    paper="Zagoruyko 2016, section 3",
    published="Zagoruyko 2016, table 5",
    unit="epochs",
    phases=(Phase(60, 1), Phase(120, 0.2), Phase(160, 0.04), Phase(200, 0.008)),
    batch_size=128,
    learning_rate=0.1,
    nesterov=True,
    weight_decay=5e-4,
    decays="all",
    padding_mode="reflect",
)
# One cycle (Smith and Topin, arXiv:1708.07120), for a small network in minutes on a CPU.
_QUICK = Recipe(
    paper="Smith and Topin 2017, one cycle",
    unit="epochs",
    phases=_one_cycle(15, warm_up=0.2),
    batch_size=128,
    learning_rate=0.2,
    nesterov=True,
    weight_decay=5e-4,
)

# 401 steps of warm-up and 391 steps an epoch, as the example counts. The numbers by which it
# normalises are not quite CIFAR-10's standard deviations.
_TORCH_RESNET = Recipe(
    paper="torch-resnet, example",
    published="torch-resnet's README: last epoch",
    unit="iterations",
    phases=(Phase(401, 0.1), Phase(32_001, 1), Phase(48_001, 0.1), Phase(62_560, 0.01)),
    batch_size=128,
    learning_rate=0.1,
    weight_decay=1e-4,
    last_batch="keep",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
_IMAGENET = Recipe(
    paper="torchvision, weights IMAGENET1K_V1",
    published="torchvision's weights IMAGENET1K_V1",
    unit="epochs",
    phases=(Phase(30, 1), Phase(60, 0.1), Phase(90, 0.01)),
    batch_size=256,
    learning_rate=0.1,
    weight_decay=1e-4,
    decays="all",
    crops="resized",
    last_batch="keep",
)

# docs/recipes.md compares each with its source.
RECIPES = {
    # 160 epochs of 50,000 images. The paper warms up only ResNet-110, but this does not harm the
    # others. It subtracts the mean image, this recipe the mean colour.
    "he2015": Recipe(
        paper="He 2015, section 4.2",
        published="He 2015, table 6",
        unit="iterations",
        phases=_HE,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=1e-4,
        decays="all",
        shortcut="A",
    ),
    # Bottlenecks stride as in the authors' code, KaimingHe/resnet-1k-layers.
    "he2016": Recipe(
        paper="He 2016, appendix",
        published="He 2016, tables",
        unit="iterations",
        phases=_HE,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=1e-4,
        decays="all",
        stride_at="1x1",
    ),
    "torch_resnet": _TORCH_RESNET,
    "torch_resnet_cifar100": replace(
        _TORCH_RESNET,
        paper="torch-resnet, example with --data CIFAR100",
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
    # torch-resnet's schedule and dropout for wide networks, in 200 epochs as in their paper.
    "torch_resnet_wide": replace(
        _TORCH_RESNET,
        paper="torch-resnet, example with --wide-scheduler --ep 200",
        published="",
        phases=(
            Phase(401, 0.1),
            Phase(23_001, 1),
            Phase(46_001, 0.2),
            Phase(62_001, 0.04),
            Phase(78_200, 0.008),
        ),
        dropout=0.3,
    ),
    "wide": _WIDE,
    "wide_dropout": replace(
        _WIDE,
        paper="Zagoruyko 2016, section 3.3",
        published="Zagoruyko 2016, table 6",
        dropout=0.3,
    ),
    # The paper lowers the rate when the error plateaus: in practice every 30 epochs. It subtracts
    # the mean; dividing by the standard deviation besides only scales the images.
    "imagenet": replace(
        _IMAGENET,
        paper="He 2015, section 3.4, in 90 epochs",
        published="He 2015's authors' published weights",
        crops="scaled",
        lighting=0.1,
        last_batch="drop",
        stride_at="1x1",
    ),
    "fb_resnet_torch": replace(
        _IMAGENET,
        paper="fb.resnet.torch",
        published="fb.resnet.torch's published weights",
        nesterov=True,
        jitter=0.4,
        lighting=0.1,
    ),
    "torchvision": _IMAGENET,
    # torchvision averages every 32 steps with a decay of 1 - 2e-5 * (32 * 1024 / 600); this is its
    # 32nd root.
    "torchvision_v2": replace(
        _IMAGENET,
        paper="torchvision, weights IMAGENET1K_V2",
        published="torchvision's weights IMAGENET1K_V2",
        phases=(Phase(5, 1.0, "linear"), Phase(600, 0.0, "cosine")),
        batch_size=1024,
        learning_rate=0.5,
        weight_decay=2e-5,
        decays="weights",
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        auto_augment="trivial",
        erasing=0.1,
        ema=0.999966,
        train_size=176,
    ),
    # The ONNX model zoo's ResNets: onnx/models, resnet/train_resnet.ipynb, with GluonCV. 64 images
    # on each of 8 GPUs (32 for depth 152). MXNet decays all parameters.
    "gluon": replace(
        _IMAGENET,
        paper="the ONNX model zoo's training notebook, with GluonCV",
        published="",
        phases=(Phase(30, 1), Phase(60, 0.1), Phase(90, 0.01), Phase(150, 0.001)),
        batch_size=512,
        learning_rate=0.01,
        nesterov=True,
        weight_decay=2e-4,
        jitter=0.4,
        lighting=0.1,
        last_batch="drop",
    ),
    "quick": _QUICK,
    # For one's own images, from weights: features that are good already change slowly. Normalised
    # by each batch, as frozen statistics bear no rate at which the body learns.
    "finetune": Recipe(
        paper="Howard and Ruder 2018, section 3.1, a lower rate below the head; one cycle",
        unit="epochs",
        phases=_one_cycle(10, warm_up=0.1),
        batch_size=64,
        learning_rate=0.05,
        nesterov=True,
        weight_decay=5e-4,
        label_smoothing=0.1,
        crop_padding=2,
        scale=(0.35, 1.0),
        last_batch="keep",
        body_rate=0.2,
        keep="best",
        patience=8,
    ),
    # For the network that ships with the service.
    "embedded": Recipe(
        paper="Jordan 2024, arXiv:2404.00498: its optimisation and augmentation, for a ResNet",
        unit="epochs",
        phases=(Phase(8, 1.0, "linear"), Phase(40, 0.0, "linear")),
        batch_size=512,
        learning_rate=0.6,
        momentum=0.85,
        nesterov=True,
        weight_decay=1e-3,
        label_smoothing=0.1,
        crop_padding=2,
        padding_mode="reflect",
        alternate_flip=True,
        cutout=12,
        bias_rate=64.0,
        lookahead=5,
        stem_init="whitened",
    ),
}


def by_name(name: str) -> Recipe:
    """The recipe called `name`.

    Raises:
        ValueError: there is no such recipe; the message suggests the nearest.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; {hint(name, RECIPES)}")
    return RECIPES[name]
