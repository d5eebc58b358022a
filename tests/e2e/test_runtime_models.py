"""Models come, go and are replaced while others serve, in one process and in several."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import bundle, bundling
from models.architecture import Architecture
from models.preprocess import CIFAR
from tests.conftest import Service, client, encoded, started
from tests.e2e.test_endpoints import samples
from tests.e2e.test_workers import children
from tests.support import kinds
from tests.support.waiting import until

TINY = Architecture(block="basic", blocks=(1, 1), planes=(4, 8), stem="small", num_classes=3)
# One process has less that could go wrong.
WORKERS = (pytest.param("1", marks=pytest.mark.slow), "2")
KEY = "an-admin-key-for-tests"
ADMIN = {"X-API-Key": KEY}
WITH_KEY: dict[str, Any] = {"RESNET_SERVE_ADMIN_KEYS": KEY}


HUGE = {"block": "basic", "blocks": [1], "planes": [4], "stem": "small", "num_classes": 3}


def write(path: Path, letter: str, classes: int, size: int = 32) -> str:
    """A bundle whose labels tell whose they are: a0, a1, a2 ..."""
    made = bundling.untrained(
        replace(TINY, num_classes=classes), path.stem, replace(CIFAR, size=size, resize=size)
    )
    labels = tuple(f"{letter}{index}" for index in range(classes))
    bundle.write(replace(made, labels=labels), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bundles")
    write(made / "a.safetensors", "a", 3)
    write(made / "b.safetensors", "b", 4, size=24)
    (made / "damaged.safetensors").write_bytes((made / "a.safetensors").read_bytes()[:-100])
    return made


def configured(folder: Path, *rows: str) -> Path:
    """The configuration file of a service; each model in few batch sizes, to be ready soon."""
    path = folder / "serve.yaml"
    shared = "engine: eager, max_batch: 2"
    path.write_text("models:\n" + "".join(f"  - {{{row}, {shared}}}\n" for row in rows))
    return path


def spec(folder: Path, stem: str) -> str:
    return str(folder / f"{stem}.safetensors")


@pytest.fixture(scope="module", params=WORKERS)
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[Service]:
    config = configured(folder, f"name: main, spec: {spec(folder, 'a')}")
    arguments = ("--config", str(config), "--workers", request.param)
    with started(*arguments, **WITH_KEY, RESNET_SERVE_MODEL_FOLDER=str(folder)) as running:
        yield running


def put(service: Service, name: str, spec: str, **more: Any) -> httpx.Response:
    body = {"spec": spec, "engine": "eager", "max_batch": 2} | more
    return client.put(f"{service.url}/v1/models/{name}", json=body, headers=ADMIN)


def delete(service: Service, name: str) -> httpx.Response:
    return client.delete(f"{service.url}/v1/models/{name}", headers=ADMIN)


def names(service: Service) -> list[str]:
    listed = client.get(f"{service.url}/v1/models").json()["models"]
    return [model["name"] for model in listed]


def everywhere(service: Service, wanted: list[str]) -> bool:
    """Whether every front end serves these; which one answers is chance."""
    return all(names(service) == wanted for _ in range(8))


def gauges(service: Service, model: str) -> list[str]:
    """The series that a model has only while it serves."""
    kinds = ("queue_depth", "queue_limit", "model_ready", "model_info")
    starts = tuple(f"resnet_serve_{kind}{{" for kind in kinds)
    return [name for name in samples(service) if name.startswith(starts) and f'"{model}"' in name]


def labels(service: Service, model: str = "main") -> set[str]:
    """What tells one model from another; all of the answer's are of one."""
    answer = client.post(f"{service.url}/v1/classify", params={"model": model}, content=encoded())
    assert answer.status_code == 200, answer.text
    return {prediction["label"] for prediction in answer.json()["predictions"]}


def more(answers: list[Any], count: int) -> bool:
    return len(answers) > count


A, B = {"a0", "a1", "a2"}, {"b0", "b1", "b2", "b3"}


@contextmanager
def load(service: Service, callers: int = 4) -> Iterator[list[tuple[int, frozenset[str]]]]:
    """Callers who ask without a pause; each answer's status, and the labels in it."""
    answers: list[tuple[int, frozenset[str]]] = []
    ended = threading.Event()
    body = encoded()
    images = [("image", ("x.png", body, "image/png"))] * 3

    def caller(number: int) -> None:
        with httpx.Client(timeout=30, base_url=service.url) as own:
            while not ended.is_set():
                if number:
                    answer = own.post("/v1/classify?model=main", content=body)
                    found = [answer.json()]
                else:
                    answer = own.post("/v1/classify/batch?model=main", files=images)
                    found = answer.json().get("results", [])
                seen = {each["label"] for one in found for each in one.get("predictions", [])}
                answers.append((answer.status_code, frozenset(seen)))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


def test_a_replacement_under_load_fails_no_request_and_mixes_no_answer(
    served: Service, folder: Path
) -> None:
    with load(served) as answers:
        for stem in ("b", "a", "b"):
            reached = len(answers)
            until(partial(more, answers, reached + 10))
            replaced = put(served, "main", spec(folder, stem))
            assert replaced.status_code == 200, replaced.text
            assert replaced.json()["name"] == "main"
            assert (replaced.json()["state"], replaced.json()["engine"]) == ("ready", "eager")
            # Whoever asks from now on finds the new one, at every front end.
            assert [labels(served) for _ in range(6)] == [B if stem == "b" else A] * 6
    assert set(answers) == {(200, frozenset(A)), (200, frozenset(B))}
    card = client.get(f"{served.url}/v1/models/main").json()
    assert (card["num_classes"], card["input"]["size"]) == (4, 24)
    assert put(served, "main", spec(folder, "a")).status_code == 200


def test_a_model_becomes_mirrored_while_it_serves(served: Service, folder: Path) -> None:
    plain, file = kinds.made("independent"), folder / "views.safetensors"
    image = encoded(size=(40, 32))
    for each in (plain, replace(plain, views="mirrored", storage="fp16")):
        bundle.write(each, file)
        assert put(served, "views", str(file), precision="fp32").status_code in (200, 201)
        seen = kinds.probabilities(each, kinds.pixels(image, each.input))
        query: dict[str, Any] = {"model": "views", "top_k": 7}
        answer = client.post(f"{served.url}/v1/classify", params=query, content=image).json()
        for row in answer["predictions"]:
            assert row["probability"] == pytest.approx(seen[row["class_id"]], abs=1e-5)
    assert delete(served, "views").status_code == 204


def test_a_model_is_added_last_and_deleted_again(served: Service, folder: Path) -> None:
    added = put(served, "other", spec(folder, "b"))
    assert (added.status_code, added.json()["name"]) == (201, "other")
    assert everywhere(served, ["main", "other"])
    assert (labels(served, "other"), labels(served)) == (B, A)
    until(lambda: len(gauges(served, "other")) == 4)
    assert delete(served, "other").status_code == 204
    assert everywhere(served, ["main"])
    gone = client.post(f"{served.url}/v1/classify?model=other", content=encoded())
    assert gone.status_code == 404
    until(lambda: not gauges(served, "other"))
    again = delete(served, "other")
    assert (again.status_code, "the models are main" in again.json()["detail"]) == (404, True)
    last = delete(served, "main")
    assert (last.status_code, "default model" in last.json()["detail"]) == (409, True)
    assert everywhere(served, ["main"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"spec": "{folder}/nowhere.safetensors"}, ["nowhere.safetensors", "no such file"]),
        ({"spec": "{folder}/damaged.safetensors"}, ["damaged.safetensors"]),
        ({"spec": "random:resnet51"}, ["resnet51", "nearest"]),
        ({"spec": "random:resnet20", "architecture": {"num_classes": -1}}, ["num_classes"]),
        # Refused before anything of their size is made.
        ({"spec": "random:wide_resnet16_999999"}, ["wide_resnet16_999999", "500,000,000 weights"]),
        ({"spec": "random:", "architecture": HUGE | {"blocks": [10**12]}}, ["blocks", "2,000"]),
        ({"spec": "random:", "architecture": HUGE | {"num_classes": 10**9}}, ["num_classes"]),
        ({"spec": "random:resnet20", "device": "cuda:77"}, ["cuda:77"]),
        (
            {"spec": "random:resnet20", "parity_tolerance": 0, "precision": "bf16"},
            ["parity_tolerance"],
        ),
    ],
)
def test_what_does_not_load_leaves_the_old_one(
    served: Service, folder: Path, body: dict[str, Any], words: list[str]
) -> None:
    spec = str(body["spec"]).replace("{folder}", str(folder))
    fields = {"engine": "eager", "max_batch": 1} | body | {"spec": spec}
    refused = client.put(f"{served.url}/v1/models/main", json=fields, headers=ADMIN)
    problem = refused.json()
    assert refused.status_code == 422, problem
    assert problem["type"].endswith(":load_failed")
    assert "\n" not in problem["detail"]
    for word in words:
        assert word in problem["detail"]
    assert labels(served) == A
    assert everywhere(served, ["main"])


def test_an_admin_key_tells_nothing_of_files_elsewhere(
    served: Service, folder: Path, tmp_path: Path
) -> None:
    """Whether a file is there, a folder, or not to be read: from outside all are the same."""
    write(tmp_path / "there.safetensors", "a", 3)
    (folder / "link.safetensors").symlink_to(tmp_path / "there.safetensors")
    (folder / "circle.safetensors").symlink_to(folder / "circle.safetensors")
    elsewhere = [
        spec(tmp_path, "there"),
        spec(tmp_path, "nowhere"),
        str(tmp_path),
        "/etc/shadow",
        f"{folder}/../{tmp_path.name}",
        spec(folder, "link"),
        "there.safetensors",
        "x\0y",
    ]
    details = set()
    for path in elsewhere:
        refused = put(served, "other", path)
        load = client.post(
            f"{served.url}/v2/repository/models/other/load",
            json={"parameters": {"spec": path}},
            headers=ADMIN,
        )
        assert (refused.status_code, load.status_code) == (422, 422)
        details |= {each.removeprefix(path) for each in (refused.json()["detail"],)}
        details |= {each.removeprefix(path) for each in (load.json()["error"],)}
    (detail,) = details
    assert "model_folder" in detail
    assert str(folder) not in detail
    assert put(served, "other", spec(folder, "circle")).status_code == 422
    assert everywhere(served, ["main"])
    # What the configuration or a served model names is known already.
    assert put(served, "main", spec(folder, "a")).status_code == 200


@pytest.mark.parametrize(
    ("name", "body", "kind", "status", "word"),
    [
        ("main", b'{"spec": "x", "max_bach": 1}', "application/json", 422, "max_batch?"),
        ("main", b'{"spec": "x", "max_batch": 0}', "application/json", 422, "max_batch"),
        ("main", b'{"engine": "eager"}', "application/json", 422, "spec"),
        ("main", b'{"spec": "x", "name": "y"}', "application/json", 422, "path"),
        ("main", b'{"spec": "x", "kind": 1}', "application/json", 422, "kind"),
        ("a b", b'{"spec": "x"}', "application/json", 422, "name"),
        ("main", b"[" * 60_000, "application/json", 422, "JSON"),
        ("main", b'{"spec": "\xff"}', "application/json", 422, "JSON"),
        ("main", b"[1]", "application/json", 422, "object"),
        ("main", b" " * 70_000, "application/json", 413, "65536"),
        ("main", b"spec: x", "text/yaml", 415, "application/json"),
    ],
)
def test_what_no_model_can_be_is_refused_in_one_line(
    served: Service, name: str, body: bytes, kind: str, status: int, word: str
) -> None:
    headers = ADMIN | {"content-type": kind}
    refused = client.put(f"{served.url}/v1/models/{name}", content=body, headers=headers)
    assert (refused.status_code, word in refused.json()["detail"]) == (status, True), refused.text
    assert "\n" not in refused.json()["detail"]


def test_changes_at_once_are_made_one_after_another(served: Service, folder: Path) -> None:
    outcomes: Counter[int] = Counter()

    def change(stem: str) -> None:
        outcomes[put(served, "twice", spec(folder, stem)).status_code] += 1

    threads = [threading.Thread(target=change, args=(stem,)) for stem in ("a", "b", "a")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outcomes == {201: 1, 200: 2}
    assert everywhere(served, ["main", "twice"])
    assert delete(served, "twice").status_code == 204


def test_a_killed_engine_process_comes_back_with_the_models_of_then(
    served: Service, folder: Path
) -> None:
    if not children(served, "engine_process"):
        pytest.skip("one process has no other")
    assert put(served, "main", spec(folder, "b")).status_code == 200
    assert put(served, "other", spec(folder, "a")).status_code == 201
    outcome: list[httpx.Response] = []
    slow = threading.Thread(
        target=lambda: outcome.append(put(served, "slow", "random:resnet1202", max_batch=1))
    )
    slow.start()
    until(lambda: any("slow: loading" in line for line in served.log))
    (engine,) = children(served, "engine_process")
    os.kill(engine, signal.SIGKILL)
    slow.join(60)
    assert outcome[0].status_code == 503
    assert outcome[0].headers["retry-after"] == "1"
    # Asked of an engine process that is only starting, and waits for it.
    assert put(served, "third", spec(folder, "b")).status_code == 201
    served.wait_until_ready()
    assert everywhere(served, ["main", "other", "third"])
    front_end = children(served, "front_end")[0]
    os.kill(front_end, signal.SIGKILL)
    until(lambda: len(set(children(served, "front_end")) - {front_end}) == 2)
    until(lambda: everywhere(served, ["main", "other", "third"]))
    assert [labels(served, name) for name in ("main", "other", "third")] == [B, A, B]


def test_sighup_makes_the_models_those_of_the_configuration(served: Service, folder: Path) -> None:
    a, b = spec(folder, "a"), spec(folder, "b")

    def hang_up(*words: str) -> None:
        """Waits for a line with these words."""
        seen = len(served.log)
        served.process.send_signal(signal.SIGHUP)
        until(lambda: any(all(w in line for w in words) for line in served.log[seen:]))

    configured(folder, f"name: main, spec: {a}", f"name: second, spec: {a}")
    hang_up("second added")
    assert put(served, "second", b).status_code == 200
    assert put(served, "extra", b).status_code == 201
    # What was PUT gives way; what has not changed is not loaded again.
    config = configured(folder, f"name: third, spec: {b}", f"name: main, spec: {a}")
    hang_up("third added; extra, second removed; main unchanged")
    assert everywhere(served, ["third", "main"])
    assert (labels(served, "third"), labels(served)) == (B, A)

    for wrong, words in (
        ("models: [", "not YAML"),
        ("prot: 1", "did you mean port?"),
        (
            f"models: [{{spec: {a}, name: x, engine: eager}}, {{spec: /nowhere}}]",
            f"{config}:1: models[1].spec: /nowhere",
        ),
        (f"models: [{{spec: {a}, name: x}}, {{spec: {b}, name: x}}]", "twice"),
    ):
        config.write_text(wrong)
        hang_up("SIGHUP changed nothing: ", words)
        assert everywhere(served, ["third", "main"])

    configured(folder, f"name: main, spec: {b}")
    with config.open("a") as file:
        file.write("log_level: error\nmax_pixels: 5000\n")
    with load(served, callers=2) as answers:
        until(partial(more, answers, 5))
        hang_up("max_pixels take effect at the next start")
        until(lambda: labels(served) == B)
    assert {status for status, _ in answers} == {200}
    assert everywhere(served, ["main"])
    # Nothing below an error is logged any more, by any process.
    seen = len(served.log)
    assert put(served, "main", b).status_code == 200
    assert served.log[seen:] == []


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_twenty_replacements_leave_no_memory_threads_or_files_behind(
    workers: str, tmp_path: Path
) -> None:
    large = "spec: random:resnet18"  # 45 MB of weights, and as much while it loads
    config = configured(tmp_path, f"name: main, {large}")
    with started("--config", str(config), "--workers", workers, **WITH_KEY) as service:
        pid = children(service, "engine_process")[0] if workers == "2" else service.process.pid

        def replaced(count: int) -> tuple[int, int, int]:
            for _ in range(count):
                assert put(service, "main", "random:resnet18").status_code == 200
            threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            return resident(pid), threads, files

        memory, threads, files = replaced(4)
        later = replaced(20)
        assert later[0] < memory + 200e6, (memory, later)
        assert later[1] <= threads + 2
        assert later[2] <= files + 4
