"""What a caller sends, and what comes back."""

from __future__ import annotations

import io
import time
from operator import itemgetter
from typing import Any

import httpx
import pytest
from PIL import Image

from models import image_files
from service.repository import catalog
from tests.conftest import Service, client, encoded
from tests.support import rounding

PNG = {"Content-Type": "image/png"}


def classify(service: Service, content: bytes, **options: Any) -> httpx.Response:
    options.setdefault("headers", PNG)
    return client.post(f"{service.url}/v1/classify", content=content, **options)


def is_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert problem["detail"]
    return problem


def test_raw_bytes_get_predictions_by_falling_probability(service: Service) -> None:
    response = classify(service, encoded())
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"model", "predictions", "timing_ms", "batch_size"}
    assert answer["model"] == "resnet20-cifar10"
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert set(answer["predictions"][0]) == {"class_id", "label", "probability"}


def server_timing(response: httpx.Response) -> dict[str, float]:
    parts = [part.split(";dur=") for part in response.headers["server-timing"].split(", ")]
    return {name: float(milliseconds) for name, milliseconds in parts}


def test_the_timing_adds_up_and_goes_out_as_a_header(service: Service) -> None:
    response = classify(service, encoded())
    timing = response.json()["timing_ms"]
    parts = timing["decode"] + timing["queue"] + timing["inference"]
    assert 0 < parts <= timing["total"] + 0.01
    assert server_timing(response) == timing


def test_the_timing_of_several_images_is_that_of_the_slowest(service: Service) -> None:
    files = [("image", (f"{i}.png", encoded())) for i in range(3)]
    response = client.post(f"{service.url}/v1/classify/batch", files=files)
    timing = server_timing(response)
    assert list(timing) == ["accept", "decode", "queue", "inference", "total"]
    assert timing["decode"] + timing["inference"] > 0
    assert max(timing.values()) == timing["total"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify?top_k=0", "/v1/nothing"])
def test_a_refusal_tells_how_long_it_took(service: Service, path: str) -> None:
    response = client.post(f"{service.url}{path}", content=b"no image")
    assert response.status_code in {400, 404, 422}
    assert server_timing(response)["total"] > 0


def test_all_classes_can_be_asked_for_and_their_probabilities_sum_to_one(service: Service) -> None:
    answer = classify(service, encoded(), params={"top_k": 10}).json()
    assert sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1, abs=1e-5)
    assert sorted(p["class_id"] for p in answer["predictions"]) == list(range(10))


@pytest.mark.parametrize("kind", ["image/jpeg", "image/x-unheard-of", "application/octet-stream"])
def test_any_image_type_and_octets_are_taken_raw(service: Service, kind: str) -> None:
    assert classify(service, encoded(), headers={"Content-Type": kind}).status_code == 200


def test_a_form_gives_the_same_as_raw_bytes(service: Service) -> None:
    files = {"image": ("a.png", encoded(), "image/png")}
    form = client.post(f"{service.url}/v1/classify", files=files)
    assert form.json()["predictions"] == classify(service, encoded()).json()["predictions"]


def test_chunked_bodies_without_a_length_are_read(service: Service) -> None:
    response = classify(service, iter([encoded()[:100], encoded()[100:]]))  # type: ignore[arg-type]
    assert response.json()["predictions"] == classify(service, encoded()).json()["predictions"]


def test_lossless_formats_agree(service: Service) -> None:
    answers = [
        classify(service, encoded(name)).json()["predictions"] for name in ("PNG", "BMP", "TIFF")
    ]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_are_read(service: Service, format: str) -> None:
    assert classify(service, encoded(format)).status_code == 200


def test_a_model_is_chosen_by_name(service: Service) -> None:
    answer = classify(service, encoded(), params={"model": "resnet20", "top_k": 1}).json()
    assert answer["model"] == "resnet20"
    assert len(answer["predictions"]) == 1


def test_one_bad_image_of_a_batch_fails_alone(service: Service) -> None:
    files = [
        ("image", ("good.png", encoded(), "image/png")),
        ("image", ("bad.png", encoded()[:80], "image/png")),
        ("image", ("also-good.jpg", encoded("JPEG"), "image/jpeg")),
    ]
    response = client.post(f"{service.url}/v1/classify/batch", files=files, params={"top_k": 2})
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == "resnet20-cifar10"
    first, second, third = answer["results"]
    assert [r["filename"] for r in answer["results"]] == ["good.png", "bad.png", "also-good.jpg"]
    assert set(first) == set(third) == {"filename", "predictions"}
    assert len(first["predictions"]) == 2
    assert set(second) == {"filename", "error"}
    assert "truncated" in second["error"]


@pytest.mark.parametrize("content", [b"", b"not an image", encoded()[:-200], encoded("JPEG")[:300]])
def test_400_for_what_no_decoder_reads(service: Service, content: bytes) -> None:
    problem = is_problem(classify(service, content), 400)
    assert f"send a whole {image_files.listed()} image" in problem["detail"]


def test_400_for_a_broken_form(service: Service) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    assert "boundary" in is_problem(classify(service, b"x", headers=headers), 400)["detail"]


def test_404_for_an_unknown_model_names_what_there_is(service: Service) -> None:
    response = classify(service, encoded(), params={"model": "resnet20-cifar"})
    assert "resnet20-cifar10" in is_problem(response, 404)["detail"]
    assert is_problem(client.get(f"{service.url}/v1/models/nope"), 404)
    assert is_problem(client.get(f"{service.url}/v3/nowhere"), 404)


def test_405_names_the_method(service: Service) -> None:
    assert "GET" in is_problem(client.get(f"{service.url}/v1/classify"), 405)["detail"]


def test_413_for_too_many_pixels_is_found_before_decoding(service: Service) -> None:
    # A PNG's size stands in its first bytes; there is nothing else here to decode.
    image = bytearray(encoded())
    image[16:24] = (50_000).to_bytes(4, "big") * 2
    import zlib

    image[29:33] = zlib.crc32(bytes(image[12:29])).to_bytes(4, "big")
    assert "50000 x 50000" in is_problem(classify(service, bytes(image)), 413)["detail"]


def test_413_for_sides_that_are_too_unequal(service: Service) -> None:
    assert (
        "differ too much" in is_problem(classify(service, encoded(size=(1, 60_000))), 413)["detail"]
    )


@pytest.mark.parametrize("kind", ["text/plain", "text/html", "video/mp4"])
def test_415_for_a_type_that_is_no_image_and_bytes_that_are_none(
    service: Service, kind: str
) -> None:
    problem = is_problem(classify(service, b"<html>", headers={"Content-Type": kind}), 415)
    assert f"{kind!r}, and the body is an HTML page; send" in problem["detail"]


@pytest.mark.parametrize("top_k", ["0", "11", "-1", "many"])
def test_422_for_top_k_out_of_range(service: Service, top_k: str) -> None:
    detail = is_problem(classify(service, encoded(), params={"top_k": top_k}), 422)["detail"]
    assert "top_k" in detail


@pytest.mark.parametrize("timeout", ["0", "-5", "soon", "nan", "inf"])
def test_422_for_an_impossible_timeout(service: Service, timeout: str) -> None:
    response = classify(service, encoded(), headers=PNG | {"X-Request-Timeout-Ms": timeout})
    assert "X-Request-Timeout-Ms" in is_problem(response, 422)["detail"]


def test_422_for_a_form_without_a_file(service: Service) -> None:
    response = client.post(f"{service.url}/v1/classify", files={"note": (None, "a ship")})
    detail = is_problem(response, 422)["detail"]
    assert "the form has no file; its fields: 'note'" in detail


def test_422_for_several_images_where_one_is_wanted(service: Service) -> None:
    files = [("image", ("a.png", encoded())), ("image", ("b.png", encoded()))]
    response = client.post(f"{service.url}/v1/classify", files=files)
    assert "/v1/classify/batch" in is_problem(response, 422)["detail"]


def test_413_for_more_images_than_a_batch_may_have(service: Service) -> None:
    files = [("image", (f"{index}.png", encoded())) for index in range(65)]
    response = client.post(f"{service.url}/v1/classify/batch", files=files)
    assert "more than 64 images" in is_problem(response, 413)["detail"]


def test_the_callers_request_id_comes_back_if_it_is_one_word(service: Service) -> None:
    for given, kept in (("abc-123", True), ("two words", False), ("x" * 200, False)):
        response = classify(service, encoded(), headers=PNG | {"X-Request-ID": given})
        assert (response.headers["x-request-id"] == given) is kept


def test_a_refusal_is_logged_in_one_line_with_its_request_id(service: Service) -> None:
    classify(service, b"not an image", headers=PNG | {"X-Request-ID": "look-for-me"})
    classify(service, b"not an image", headers=PNG | {"X-Request-ID": "the-next"})
    while not any("the-next" in line for line in service.log):
        time.sleep(0.01)  # The line is written after the answer.
    lines = [line for line in service.log if "look-for-me" in line]
    assert len(lines) == 1
    assert "undecodable_image" in lines[0]
    assert not any("Traceback" in line for line in service.log)


def test_a_path_cannot_forge_a_line_of_the_log(service: Service) -> None:
    is_problem(client.get(f"{service.url}/v1/a%0aforged%20line"), 404)
    client.get(f"{service.url}/health/live")
    assert not any(line.startswith("forged") for line in service.log)


def test_an_answer_does_not_depend_on_the_images_beside_it(service: Service) -> None:
    alone = classify(service, encoded(), params={"top_k": 10}).json()["predictions"]
    noise = io.BytesIO()
    Image.effect_noise((32, 32), 100).save(noise, "PNG")
    files = [("image", ("a.png", encoded()))] + [("image", ("n.png", noise.getvalue()))] * 6
    response = client.post(f"{service.url}/v1/classify/batch", params={"top_k": 10}, files=files)
    together = response.json()["results"][0]["predictions"]
    name = "resnet20-cifar10"
    ours, theirs = (
        [sure["probability"] for sure in sorted(found, key=itemgetter("class_id"))]
        for found in (alone, together)
    )
    assert len(ours) == 10
    rounding.assert_probabilities_near(theirs, ours, catalog.load(f"builtin:{name}").bundle.tensors)
