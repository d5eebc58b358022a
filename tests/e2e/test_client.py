"""The client and the real service."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncClient,
    Busy,
    Client,
    DeadlinePassed,
    ImageRefused,
    KeyRefused,
    RequestRefused,
    TimedOut,
    UnknownModel,
)
from service.client.images import ImageLike
from tests.conftest import Service, encoded, started
from tests.e2e.test_endpoints import samples
from tests.support.commands import run

IMAGE = encoded()
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


def test_every_form_of_an_image_has_the_same_answer(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGE)
    picture = Image.open(io.BytesIO(IMAGE))
    with path.open("rb") as file:
        images: list[ImageLike] = [IMAGE, path, str(path), file, picture, np.asarray(picture)]
        found = [client.classify(image, top_k=3) for image in images]
    assert {answer.model for answer in found} == {"resnet20-cifar10"}
    assert len({answer.predictions for answer in found}) == 1
    best, *rest = found[0].predictions
    assert found[0].best == best
    assert len(rest) == 2
    assert best.probability > rest[0].probability > rest[1].probability
    assert found[0].timing_ms.total > 0
    assert found[0].batch_size >= 1


def test_a_model_is_chosen_for_a_client_or_for_a_call(service: Service, client: Client) -> None:
    assert client.classify(IMAGE, model="resnet20").model == "resnet20"
    with Client(service.url, model="resnet20") as other:
        assert other.classify(IMAGE).model == "resnet20"
        assert other.classify(IMAGE, model="resnet20-cifar10").model == "resnet20-cifar10"


def test_what_is_served_is_told(client: Client) -> None:
    first, second = client.models()
    assert (first.name, second.name) == ("resnet20-cifar10", "resnet20")
    assert first.parameters > 200_000
    assert first.input.size == 32
    assert len(first.input.mean) == 3
    assert first.weights.source == "builtin:resnet20-cifar10"
    assert first.ready
    assert first.card is None
    one = client.model("resnet20-cifar10")
    assert one.card is not None
    assert len(one.weights.sha256 or "") == 64
    assert client.ready()
    assert client.live().status == "live"


def test_refusals_are_exceptions_with_what_to_do(service: Service, client: Client) -> None:
    with pytest.raises(ImageRefused, match="send a whole") as broken:
        client.classify(IMAGE[:100])
    assert (broken.value.status, broken.value.reason) == (400, "undecodable_image")
    assert broken.value.request_id
    with pytest.raises(UnknownModel, match="did you mean resnet20"):
        client.classify(IMAGE, model="resnt20")
    with pytest.raises(UnknownModel):
        client.model("b?c#d%")
    with pytest.raises(RequestRefused, match="top_k must be from 1 to 10, not 11"):
        client.classify(IMAGE, top_k=11)
    with Client(service.url + "/nowhere") as lost, pytest.raises(RequestRefused) as found:
        lost.classify(IMAGE)
    assert found.value.status == 404


def test_a_folder_is_classified_in_order_and_a_broken_image_fails_alone(
    client: Client, tmp_path: Path
) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_bytes(IMAGE)
    (tmp_path / "05.png").write_bytes(b"none")
    (tmp_path / "notes.txt").write_text("no image by its name")
    items = list(client.classify_folder(tmp_path, top_k=1, concurrency=5))
    assert [item.source.name for item in items] == [f"{number:02}.png" for number in range(12)]
    (failed,) = [item for item in items if item.error]
    assert failed.source.name == "05.png"
    assert isinstance(failed.error, ImageRefused)
    labels = {item.classification.best.label for item in items if item.classification}
    assert len(labels) == 1


def test_asyncio_has_the_same(service: Service) -> None:
    async def ask() -> None:
        async with AsyncClient(service.url) as client:
            one, models, ready = await asyncio.gather(
                client.classify(IMAGE), client.models(), client.ready()
            )
            assert one.model == models[0].name
            assert ready
            many = [item async for item in client.classify_many([IMAGE, b"none", IMAGE])]
            assert [item.error is None for item in many] == [True, False, True]

    asyncio.run(ask())


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    """It asks for a key, and of twelve images at once takes four, which it keeps for a while."""
    with started(
        *("--model", "random:resnet20"),
        RESNET_SERVE_API_KEYS=KEY,
        RESNET_SERVE_MAX_QUEUE="4",
        RESNET_SERVE_MAX_DELAY_MS="300",
    ) as running:
        yield running


def test_a_full_queue_is_waited_out(small: Service) -> None:
    with Client(small.url, key=KEY, timeout=60, retries=50) as client:
        items = list(client.classify_many([IMAGE] * 12, concurrency=12))
    assert all(item.classification for item in items)
    refused = 'resnet_serve_refusals_total{model="resnet20",reason="queue_full"}'
    assert samples(small)[refused] >= 1


def test_without_retries_a_full_queue_is_an_error_of_its_item(small: Service) -> None:
    with Client(small.url, key=KEY, retries=0) as client:
        items = list(client.classify_many([IMAGE] * 12, concurrency=12))
    errors = [item.error for item in items if item.error]
    assert errors
    for error in errors:
        assert isinstance(error, Busy)
        assert error.retry_after
        assert error.retry_after >= 1


def test_the_service_is_told_how_long_the_caller_waits(small: Service) -> None:
    with Client(small.url, key=KEY, timeout=0.1) as client:
        (item,) = client.classify_many([IMAGE])
    # It gives up first, or is given up.
    assert isinstance(item.error, DeadlinePassed | TimedOut)


def test_a_key_opens_the_service_and_is_nowhere_shown(small: Service) -> None:
    with Client(small.url) as client, pytest.raises(KeyRefused, match="a key is required"):
        client.classify(IMAGE)
    wrong = KEY[::-1]
    with Client(small.url, key=wrong) as client, pytest.raises(KeyRefused) as caught:
        client.models()
    assert wrong not in f"{caught.value!r} {client!r} {vars(client)!r}"
    with Client(small.url, key=KEY) as client:
        assert client.models()[0].name == "resnet20"


def test_classify_takes_the_key_from_a_file_or_the_environment(
    small: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, file = tmp_path / "a.png", tmp_path / "key"
    image.write_bytes(IMAGE)
    file.touch(0o600)
    file.write_text(f"# ours\n{KEY}\n")
    arguments = ("classify", image, "--url", small.url)
    assert "a key is required; send one by --key-file" in run(*arguments, status=2).stderr
    assert "%" in run(*arguments, "--key-file", file).stdout
    monkeypatch.setenv("RESNET_SERVE_KEY", KEY)
    assert "%" in run(*arguments).stdout


def test_features_and_maps(client: Client) -> None:
    embedded = client.embed(IMAGE)
    assert len(embedded.embedding) == embedded.dimensions == 64
    assert not embedded.normalized
    unit = client.embed(IMAGE, normalize=True)
    assert unit.normalized
    assert np.linalg.norm(unit.embedding) == pytest.approx(1, abs=1e-3)
    best = client.classify(IMAGE).best
    explained = client.explain(IMAGE)
    assert (explained.class_id, explained.label) == (best.class_id, best.label)
    assert np.mean(explained.grid) + explained.bias == pytest.approx(explained.logit, abs=1e-2)
    assert explained.predictions[0].label == best.label
    assert 0 < explained.region.width <= 1
    assert client.explain(IMAGE, class_id=7, model="resnet20").class_id == 7
    picture = Image.open(io.BytesIO(client.explain_png(IMAGE)))
    assert picture.format == "PNG"
    with pytest.raises(RequestRefused, match="class_id") as refused:
        client.explain(IMAGE, class_id=10)
    assert refused.value.status == 422
    assert client.models()[0].embedding == 64
    assert client.models()[0].explain is True
