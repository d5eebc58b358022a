"""LitServe, as its guides show an image classifier.

https://lightning.ai/docs/litserve/features/batching
tutorial: decoded in `decode_request` in the worker, batches of 8, waiting 10 ms for them.
tuned: decoded in threads of the HTTP process, so that the worker only computes; the fast queue;
no waiting, as requests gather while the engine works; no access log.
"""

# LitServe gives FastAPI the annotation of `request` as it is: it must not be a string.

from functools import cache
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body, Depends
from numpy.typing import NDArray

from benchmarks.peers import network
from models.preprocess import InputSpec
from service.inference.decoding import decode_image
from service.inference.tasks import Pixels
from service.repository import catalog

Row = NDArray[np.float32]
RawImage = Annotated[bytes, Body(media_type="application/octet-stream")]


class Tutorial(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.network = network.load()

    def decode_request(self, request: RawImage) -> Any:
        return self.network.prepare(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> Row:
        return self.network.infer(x)

    def unbatch(self, output: Row) -> list[Row]:
        return list(output)

    def encode_response(self, output: Row) -> dict[str, Any]:
        return self.network.answer(output)


@cache
def input_spec() -> InputSpec:
    return catalog.load(network.MODEL).bundle.input


def decoded(image: RawImage) -> Pixels:
    """A dependency of the endpoint, which FastAPI runs in its threads."""
    return decode_image(image, input_spec(), network.MAX_PIXELS).pixels


class Tuned(Tutorial):
    def decode_request(self, request: Annotated[Any, Depends(decoded)]) -> Any:
        return request


def main() -> None:
    if network.VARIANT == "tuned":
        api: litserve.LitAPI = Tuned(max_batch_size=network.MAX_BATCH, batch_timeout=0)
        server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
    else:
        api = Tutorial(max_batch_size=network.MAX_BATCH, batch_timeout=0.01)
        server = litserve.LitServer(api, accelerator="cpu")
    log_level = "warning" if network.VARIANT == "tuned" else "info"
    server.run(
        host=network.HOST, port=network.PORT, log_level=log_level, generate_client_file=False
    )


if __name__ == "__main__":
    main()
