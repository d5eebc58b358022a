"""The service on a real cluster of three Ray nodes: the same answers, through whatever happens."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.ray.nodes import PATIENCE_SECONDS, Nodes, nodes, until
from tests.conftest import Service, client, encoded, started

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.timeout(2 * PATIENCE_SECONDS),
    # Those of Ray: on import, and of files and sockets that it leaves open.
    pytest.mark.filterwarnings("ignore"),
]

IMAGE = encoded()
KEY, ADMIN = "a-key-of-many-letters", "an-admin-key-of-many-letters"
KEYS = {"Authorization": f"Bearer {KEY}"}
FORM = [("image", ("a.png", IMAGE)), ("image", ("b.png", b"no image"))]
ROW = {
    "name": "cifar",
    "spec": "builtin:resnet20-cifar10",
    "engine": "eager",
    "max_batch": 1,
    "max_queue": 3,
}
ROOMY = ROW | {"max_queue": 100}
SETTINGS: dict[str, Any] = {
    "models": [ROW],
    "api_keys": [KEY],
    "admin_keys": [ADMIN],
    "max_body_bytes": 100_000,
    "vertex_predict_route": "/vertex",
}
INSTANCES = {"instances": [{"b64": base64.b64encode(IMAGE).decode()}]}
ONE = {"num_replicas": 1}
# What differs between two processes that do the same.
VARYING = {"timing_ms", "batch_size", "batch_ms", "parity"}

REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classify": ("POST", "/v1/classify?top_k=3", {"content": IMAGE}),
    "by name": ("POST", "/v1/classify?model=cifar", {"content": IMAGE}),
    "form": ("POST", "/v1/classify", {"files": FORM[:1]}),
    "batch": ("POST", "/v1/classify/batch", {"files": FORM}),
    "embed": ("POST", "/v1/embed", {"content": IMAGE}),
    "explain": ("POST", "/v1/explain?class_id=4", {"content": IMAGE}),
    "models": ("GET", "/v1/models", {}),
    "model": ("GET", "/v1/models/cifar", {}),
    "tensors": ("GET", "/v2/models/cifar", {}),
    "ready": ("GET", "/health/ready", {}),
    "live": ("GET", "/health/live", {}),
    "page": ("GET", "/", {}),
    "no image": ("POST", "/v1/classify", {"content": b"no image"}),
    "truncated": ("POST", "/v1/classify", {"content": IMAGE[:-20]}),
    "unknown model": ("POST", "/v1/classify?model=other", {"content": IMAGE}),
    "too large": ("POST", "/v1/classify", {"content": bytes(200_000)}),
    "no type of image": (
        "POST", "/v1/classify", {"content": IMAGE, "headers": {"Content-Type": "text/html"}},
    ),
    "top_k": ("POST", "/v1/classify?top_k=99", {"content": IMAGE}),
    "class_id": ("POST", "/v1/explain?class_id=10", {"content": IMAGE}),
    "deadline": (
        "POST", "/v1/classify", {"content": IMAGE, "headers": {"X-Request-Timeout-Ms": "soon"}},
    ),
    "nowhere": ("GET", "/v1/nowhere", {}),
    "kserve": ("POST", "/v1/models/cifar:predict", {"json": INSTANCES}),
    "tensorflow": ("GET", "/v1/models/cifar/metadata", {}),
    "kserve, no image": ("POST", "/v1/models/cifar:predict", {"json": {"instances": ["AAAA"]}}),
    "torchserve": ("PUT", "/predictions/cifar", {"content": IMAGE}),
    "torchserve, no model": ("PUT", "/predictions/other", {"content": IMAGE}),
    "sagemaker": ("POST", "/invocations", {"content": IMAGE}),
    "vertex": ("POST", "/vertex", {"json": INSTANCES}),
    "ping": ("GET", "/ping", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(3, 4, tmp_path_factory.mktemp("nodes")) as running:
        yield running


@pytest.fixture(scope="module")
def deployed(cluster: Nodes) -> Nodes:
    cluster.deploy(SETTINGS, cifar=ONE)
    return cluster


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same configuration in one process."""
    config = tmp_path_factory.mktemp("alone") / "resnet-serve.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    with started("--config", str(config)) as running:
        yield running


def ask(url: str, method: str, path: str, **more: Any) -> httpx.Response:
    headers = KEYS | more.pop("headers", {})
    return client.request(method, url + path, headers=headers, **more)


def classify(url: str, **headers: str) -> httpx.Response:
    return ask(url, "POST", "/v1/classify", content=IMAGE, headers=headers)


def same(found: Any, expected: Any) -> None:
    """But for what differs between processes, and for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - VARYING:
            same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_one_process(deployed: Nodes, alone: Service, name: str) -> None:
    method, path, more = REQUESTS[name]
    found, expected = (ask(each, method, path, **dict(more)) for each in (deployed.url, alone.url))
    assert found.status_code == expected.status_code, found.text
    assert found.headers["content-type"] == expected.headers["content-type"]
    assert found.headers["x-content-type-options"] == "nosniff"
    if "json" in found.headers["content-type"]:
        same(found.json(), expected.json())
    else:
        assert found.content == expected.content


def test_pictures_have_the_pixels_that_the_replica_decoded(deployed: Nodes, alone: Service) -> None:
    found, expected = (
        ask(each, "POST", "/v1/explain?format=png", content=IMAGE).content
        for each in (deployed.url, alone.url)
    )
    assert found == expected


def test_keys_and_request_ids(deployed: Nodes) -> None:
    refused = client.post(f"{deployed.url}/v1/classify", content=IMAGE)
    assert refused.status_code == 401
    answer = classify(deployed.url, **{"X-Request-ID": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_models_change_with_the_deployment_only(deployed: Nodes, method: str) -> None:
    more: dict[str, Any] = {"json": {"spec": "random:resnet20"}} if method == "PUT" else {}
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = client.request(method, f"{deployed.url}/v1/models/cifar", headers=headers, **more)
    assert answer.status_code == 409
    assert "serve deploy" in answer.json()["detail"]


def exported() -> dict[str, float]:
    """Ray's metrics on all nodes, by name and the value of their tags that are ours."""
    import ray

    found: dict[str, float] = defaultdict(float)
    for node in ray.nodes():
        if node["Alive"]:
            text = client.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics").text
            for line in text.splitlines():
                if line.startswith("ray_resnet_serve"):
                    series, _, value = line.rpartition(" ")
                    name, _, tags = series.partition("{")
                    ours = [tag for tag in tags[:-1].split(",") if tag.startswith(OURS)]
                    found[name + "".join(sorted(ours))] += float(value)
    return found


OURS = ("deployment=", "le=", "model=", "phase=", "reason=", "status=")


def test_our_metrics_are_rays_too(deployed: Nodes) -> None:
    for _ in range(3):
        assert classify(deployed.url).status_code == 200
    assert ask(deployed.url, "POST", "/v1/classify", content=b"x").status_code == 400
    ours = client.get(f"{deployed.url}/metrics").text
    assert 'resnet_serve_phase_seconds_bucket{le="0.00025",model="cifar",phase="total"}' in ours
    total = 'ray_resnet_serve_phase_seconds_countdeployment="cifar"model="cifar"phase="total"'
    until(lambda: exported().get(total, 0) >= 3, exported)
    found = exported()
    for name in ("phase_seconds_bucket", "batch_size_bucket"):
        assert limits(name, found) == limits(name, ours.splitlines())
    refusals = 'ray_resnet_serve_refusals_totaldeployment="ingress"model="cifar"'
    until(lambda: exported().get(refusals + 'reason="undecodable_image"', 0) >= 1, exported)
    assert found['ray_resnet_serve_model_readydeployment="cifar"model="cifar"'] == 1


def limits(name: str, series: Iterable[str]) -> set[float]:
    """The upper ends of a histogram's buckets."""
    pattern = re.compile(rf'\w*resnet_serve_{name}.*le="([^"]+)"')
    return {float(found[1]) for found in map(pattern.match, series) if found}


def test_full_queues_late_answers_and_callers_who_left(deployed: Nodes) -> None:
    try:
        deployed.command("slow 1")
        started_at = time.monotonic()
        late = classify(deployed.url, **{"X-Request-Timeout-Ms": "400"})
        assert late.status_code == 504, late.text
        assert time.monotonic() - started_at < 20
        with many(deployed.url, 12) as answers:
            until(lambda: answers.count(429) > 0)
        refused = next(each for each in answers.all if each.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/problem+json"
        answers.only(200, 429)
        assert answers.count(200) > 0
        # One computes, the others wait, and all leave: nothing else is computed for them.
        before = deployed.forwards
        deployed.command("slow 5")
        for _ in range(4):
            leave(deployed.url)
        deployed.command("")
        assert classify(deployed.url, **{"X-Request-Timeout-Ms": "30000"}).status_code == 200
        assert deployed.forwards - before <= 2
    finally:
        deployed.command("")


def leave(url: str) -> None:
    """Asks, and goes once the request has arrived."""
    address, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((address, int(port))) as stream:
        head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        stream.sendall(f"{head}content-length: {len(IMAGE)}\r\n\r\n".encode() + IMAGE)
        time.sleep(0.5)


class Answers:
    """What many callers were answered, `all` of it; `broken` where a connection gave none."""

    def __init__(self) -> None:
        self.all: list[httpx.Response] = []
        self.broken: list[httpx.TransportError] = []
        self.seconds: list[float] = []
        self.retried = 0

    @property
    def statuses(self) -> Counter[int]:
        return Counter(each.status_code for each in self.all)

    def count(self, status: int) -> int:
        return self.statuses[status]

    def only(self, *statuses: int) -> None:
        """Every request was answered, with one of these; else says what came instead."""
        others = [(each.status_code, each.text) for each in self.all]
        assert not self.broken, self.broken
        assert self.all
        assert not [each for each in others if each[0] not in statuses], Counter(others)


@contextmanager
def many(url: str, callers: int, retry: bool = False) -> Iterator[Answers]:
    """Callers who ask one after another until the context ends; on 503 once more, if `retry`."""
    answers, over = Answers(), threading.Event()

    def ask_once(mine: httpx.Client) -> None:
        began = time.monotonic()
        answer = mine.post(f"{url}/v1/classify", content=IMAGE)
        if retry and answer.status_code == 503:
            answers.retried += 1
            time.sleep(int(answer.headers["retry-after"]))
            answer = mine.post(f"{url}/v1/classify", content=IMAGE)
        answers.seconds.append(time.monotonic() - began)
        answers.all.append(answer)

    def call() -> None:
        with httpx.Client(timeout=60, headers=KEYS | {"X-Request-Timeout-Ms": "30000"}) as mine:
            while not over.is_set():
                try:
                    ask_once(mine)
                except httpx.TransportError as error:
                    answers.broken.append(error)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def likeliest(answer: httpx.Response) -> tuple[str, float]:
    assert answer.status_code == 200, (answer.status_code, dict(answer.headers), answer.text)
    first = answer.json()["predictions"][0]
    return first["label"], round(first["probability"], 3)


def test_a_new_model_takes_over_without_a_failed_request(deployed: Nodes) -> None:
    """With other weights, other labels and more of them.

    No more than three ask at once: that many places the queue of one replica has, and a fourth may
    find it full.
    """
    old = likeliest(classify(deployed.url))
    row = ROW | {"spec": "random:resnet18", "architecture": {"num_classes": 12}}
    with many(deployed.url, 3) as answers:
        until(lambda: len(answers.all) > 0)
        deployed.deploy(SETTINGS | {"models": [row]}, cifar=ONE)
        until(lambda: likeliest(answers.all[-1]) != old)
    answers.only(200)
    assert len(set(map(likeliest, answers.all)) - {old}) == 1
    until(
        lambda: ask(deployed.url, "GET", "/v1/models/cifar").json()["num_classes"] == 12,
        deployed.told,
    )


@pytest.mark.slow
def test_a_replica_that_is_down_takes_no_requests_from_the_others(cluster: Nodes) -> None:
    """It refuses at once and so has the least to do, until Ray has started another.

    The requests that it had fail, and are asked once more.
    """
    callers = 6
    two = {"num_replicas": 2, "health_check_period_s": 1}
    cluster.deploy(SETTINGS | {"models": [ROOMY]}, cifar=two)
    try:
        with many(cluster.url, callers, retry=True) as answers:
            until(lambda: len(answers.all) > 30)
            cluster.command("cuda")
            until(lambda: answers.retried > 0)
            lost_at = len(answers.all)
            until(lambda: len(answers.all) > lost_at + 300)
            until(lambda: cluster.replicas("cifar") < 2, cluster.told)
            until(lambda: cluster.replicas("cifar") == 2, cluster.told)
    finally:
        cluster.command("")
    answers.only(200)
    assert answers.retried <= callers


@pytest.mark.slow
def test_a_model_that_does_not_load_changes_nothing(cluster: Nodes) -> None:
    cluster.deploy(SETTINGS, cifar=ONE)
    row = ROW | {"spec": "builtin:nothing"}
    cluster.deploy(SETTINGS | {"models": [row]}, wait=False, cifar=ONE)
    until(lambda: "builtin:nothing" in str(cluster.told()), cluster.told)
    assert classify(cluster.url).status_code == 200


@pytest.mark.slow
def test_replicas_come_with_load_and_go_with_it(cluster: Nodes) -> None:
    scaling = {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 3,
        "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 3,
    }  # fmt: skip
    cluster.deploy(SETTINGS | {"models": [ROOMY]}, cifar={"autoscaling_config": scaling})
    assert cluster.replicas("cifar") == 1
    try:
        cluster.command("slow 0.2")
        with many(cluster.url, 12) as answers:
            until(lambda: cluster.replicas("cifar") == 3, cluster.told)
        until(lambda: cluster.replicas("cifar") == 1, cluster.told)
    finally:
        cluster.command("")
    answers.only(200)


@pytest.mark.slow
def test_a_node_that_is_lost_fails_nobody_for_long(cluster: Nodes) -> None:
    """Last: it ends a node. Each has a replica, and two of them an ingress."""
    spread = {"num_replicas": 3, "max_replicas_per_node": 1}
    cluster.deploy(
        SETTINGS | {"models": [ROOMY]},
        ingress={"num_replicas": 3, "max_replicas_per_node": 1},
        cifar=spread,
    )
    expected = likeliest(classify(cluster.url))
    try:
        cluster.command("slow 0.1")
        with many(cluster.url, 9, retry=True) as answers:
            until(lambda: len(answers.all) > 30)
            cluster.cluster.remove_node(next(iter(cluster.cluster.worker_nodes)))
            lost_at = len(answers.all)
            until(lambda: len(answers.all) > lost_at + 150)
    finally:
        cluster.command("")
    answers.only(200)
    assert set(map(likeliest, answers.all)) == {expected}
    assert max(answers.seconds) < 40, max(answers.seconds)
    print(f"{len(answers.all)} answers, {answers.retried} after a retry")
    cluster.add()
    until(lambda: cluster.replicas("cifar") == 3, cluster.told)
