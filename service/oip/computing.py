"""What a request asks of a model, computed image by image."""

from __future__ import annotations

from service.errors import InvalidInput, RequestError
from service.inference.interfaces import Model
from service.inference.jobs import Priority
from service.inference.queue_share import QueueShare, gather
from service.inference.ranking import Row
from service.oip import codec, metadata
from service.oip.codec import Image, ParsedRequest


async def compute_all(share: QueueShare, parsed: ParsedRequest, priority: Priority) -> list[Row]:
    """The network's output for each image; the first failure cancels the others."""

    async def compute_one(number: int, image: Image) -> Row:
        try:
            computed = await share.compute(image, parsed.task, priority)
        except RequestError as error:
            if len(parsed.images) == 1:
                raise
            raise type(error)(f"image {number} of {len(parsed.images)}: {error}") from None
        return computed.row

    return await gather(compute_one(*each) for each in enumerate(parsed.images, 1))


def check_outputs(parsed: ParsedRequest, serving: Model) -> None:
    """Raises `InvalidInput`: an output is unknown or requested twice, or the model lacks it."""
    known = metadata.outputs(serving)
    names = [output.name for output in parsed.outputs]
    for name in names:
        if name == codec.PROBABILITIES and name not in known:
            raise InvalidInput(
                f"outputs: the model {serving.name} has no classes; request {codec.EMBEDDING}"
            )
        if name not in known:
            raise InvalidInput(f"outputs: unknown output {name!r}; use {', '.join(known)}")
        if names.count(name) > 1:
            raise InvalidInput(f"outputs: {name} is requested twice")
