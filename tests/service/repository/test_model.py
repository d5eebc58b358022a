from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from models import bundling, labels
from models.classifier import Outputs
from models.evaluation.confusion import MOST_CLASSES, summary
from models.interchange.opening import Loaded
from models.preprocess import InputSpec
from models.resnet import ResNet
from models.summary import count_macs
from service.config.settings import ModelSettings, Settings
from service.engines.buckets import Buckets
from service.engines.device_share import DeviceShares
from service.engines.engine import Warm
from service.engines.parity import Parity
from service.http.schemas import ModelCard
from service.inference.decoding import Decoder
from service.metrics import GpuUse, Metrics
from service.repository import model
from service.repository.model import LocalModel, Shared, facts_of
from service.repository.model_info import ModelInfo
from tests.support import tiny
from tests.support.own_blocks import Cosine, Plain


@dataclass
class Engine:
    device: str
    name = "fused"
    precision = "bf16"
    in_flight = 2
    tuning = None
    graphs = 18

    def prepare(self, size: int) -> None:
        raise NotImplementedError

    def launch(self, *arguments: Any) -> Any:
        raise NotImplementedError


@dataclass
class Meter:
    device: str

    def read(self) -> GpuUse:
        return GpuUse(temperature=50.0 + int(self.device[-1]))


def test_an_engine_that_becomes_ready_on_a_gpu_shows_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "meter_of", Meter)
    metrics = Metrics()
    info = ModelInfo(metrics, "a", "resnet50", "", began=0.0)
    info.show()
    for device in ("cpu", "cuda:1"):
        warm = Warm(Engine(device), Buckets({1: 0.1}), Parity(0, 1.0, 0.0), probe=lambda: None)
        model._announce(info, metrics, warm)
    text = metrics.render().decode()
    shown = [line for line in text.splitlines() if line.startswith("resnet_serve_gpu_")]
    assert shown == [
        'resnet_serve_gpu_graphs{device="cuda:1",model="a"} 18.0',
        'resnet_serve_gpu_temperature_celsius{device="cuda:1"} 51.0',
    ]


@pytest.fixture
def shared() -> Iterator[Shared]:
    settings = Settings()
    decoder = Decoder(1, 10**6)
    yield Shared(settings, Metrics(), 0.0, decoder, DeviceShares())
    decoder.close()


def local(shared: Shared, outputs: Outputs = "exclusive", **changes: Any) -> LocalModel:
    """A model of 24x40 grey pixels, not started."""
    spec = InputSpec(size=(24, 40), resize=(30, 50), mean=(0.5,), std=(0.2,), channels="grey")
    network = tiny.network(in_channels=1, **changes)
    made = bundling.from_network(
        network,
        name="grey",
        input=spec,
        labels=labels.default(network.architecture.num_classes),
        outputs=outputs,
    )
    return LocalModel(ModelSettings(spec="x", device="cpu"), Loaded(made, "x", None), shared)


def test_a_model_tells_its_input_and_outputs(shared: Shared) -> None:
    served = local(shared, "independent")
    card = served.describe()
    assert (card["outputs"], card["explain"], served.map_sides) == ("independent", True, (12, 20))
    assert card["input"] == {
        "size": (24, 40),
        "resize": (30, 50),
        "crop": "center",
        "interpolation": "bilinear",
        "mean": (0.5,),
        "std": (0.2,),
        "channels": "grey",
    }
    # 9 weights of one input channel, at each pixel: a stem of three would be counted higher.
    stem = 24 * 40 * 4 * 9
    rgb = count_macs(tiny.network(), (24, 40), 3)
    assert card["macs"] == rgb - 2 * stem


def test_a_model_tells_its_views_and_storage_where_they_are_not_the_usual(shared: Shared) -> None:
    def told(**changes: Any) -> tuple[Any, Any]:
        card = LocalModel(
            ModelSettings(spec="x", device="cpu"),
            Loaded(tiny.made_bundle(**changes), "x", None),
            shared,
        ).describe()
        shown = ModelCard.model_validate(card).model_dump(mode="json")
        return shown.get("views"), shown["weights"].get("storage")

    assert told() == (None, None)
    assert told(views="mirrored", storage="fp16") == ("mirrored", "fp16")


def test_a_model_tells_the_code_of_its_own_and_has_no_map_of_a_head_of_its_own(
    shared: Shared,
) -> None:
    network = ResNet(tiny.ARCHITECTURE, block=Plain)
    network.set_head(Cosine(network.out_channels, 10))
    made = bundling.from_network(network, **tiny.described())
    settings = ModelSettings(spec="x", device="cpu")
    card = LocalModel(settings, Loaded(made, "x", None), shared).describe()
    shown = ModelCard.model_validate(card).model_dump(mode="json")
    module = Plain.__module__
    assert (shown["block"], shown["head"]) == (f"{module}:Plain", f"{module}:Cosine")
    assert not shown["explain"]
    usual = ModelCard.model_validate(local(shared).describe()).model_dump(mode="json")
    assert not {"block", "head"} & usual.keys()


def test_metrics_of_tables_and_lists_are_told_whole(shared: Shared) -> None:
    confusion = np.arange(MOST_CLASSES**2).reshape(MOST_CLASSES, MOST_CLASSES)
    metrics = {"test": {"top1": 0.5, **summary(confusion, [f"é {n}" for n in range(MOST_CLASSES)])}}
    made = tiny.made_bundle(metrics=metrics)
    model = LocalModel(ModelSettings(spec="x", device="cpu"), Loaded(made, "x", None), shared)
    text = ModelCard.model_validate(model.describe()).model_dump_json()
    assert json.loads(text)["metrics"] == metrics
    assert len(text) < 25_000


@pytest.mark.parametrize(
    ("changes", "explains"),
    [
        ({}, True),
        ({"head": (16,)}, False),
        ({"num_classes": 0}, False),
        ({"blocks": (1,) * 6, "planes": (4,) * 6}, True),
        # Its last maps have one position.
        ({"blocks": (1,) * 7, "planes": (4,) * 7, "shortcut": "A"}, False),
    ],
)
def test_a_head_of_one_layer_behind_maps_explains(
    shared: Shared, changes: dict[str, Any], explains: bool
) -> None:
    served = local(shared, **changes)
    assert served.explains == served.describe()["explain"] == explains


@pytest.mark.parametrize("changes", [{}, {"head": (16,)}, {"num_classes": 0}])
def test_other_processes_know_the_same_of_a_model(shared: Shared, changes: dict[str, Any]) -> None:
    served = local(shared, **changes)
    facts = json.loads(json.dumps(facts_of(served)))
    assert InputSpec(**facts["input"]) == served.input
    assert tuple(facts["labels"]) == served.labels
    assert tuple(facts["map_sides"]) == served.map_sides
    for name in ("outputs", "channels", "explains"):
        assert facts[name] == getattr(served, name), name
