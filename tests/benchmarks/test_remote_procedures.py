from __future__ import annotations

import struct

from tritonclient.grpc import service_pb2

from benchmarks.serving.remote_procedures import of_grpc, of_v2, summary, table


def test_the_call_is_one_that_any_client_could_send() -> None:
    image = b"x" * 300
    message = service_pb2.ModelInferRequest.FromString(of_grpc(image, "m"))
    wanted = service_pb2.ModelInferRequest(
        model_name="m", raw_input_contents=[struct.pack("<I", 300) + image]
    )
    wanted.inputs.add(name="image", datatype="BYTES", shape=[1])
    assert message == wanted
    head, _, body = of_v2(image, "m").partition(b"\r\n\r\n")
    assert f"\r\nContent-Length: {len(body)}".encode() in head


def test_rounds_are_summed_up() -> None:
    rounds = [{"images_per_second": value, "p50_ms": value} for value in (1.0, 5.0, 2.0)]
    figures = summary(rounds)
    assert figures["p50_ms"] == {"median": 2.0, "lowest": 1.0, "highest": 5.0}
    assert "| gRPC | 32 | 2 | 2 |" in table({"gRPC": {"32": figures}})
