"""Which replica a request goes to: Ray's choice, but not one that has just said it cannot serve.

Ray prefers the replica with the least to do. One whose engine is down refuses at once, so that it
always has the least: it would be sent nearly everything, and refuse what the others could answer.
"""

from __future__ import annotations

import random

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from service.ray.resting import rests

PATH = f"{__name__}:Router"


class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc] # Ray has no types.
    """Ray's own for as long as no replica rests."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        able = [each for each in candidate_replicas if not rests(each.replica_id.unique_id)]
        if able and len(able) < len(candidate_replicas):
            return [random.sample(able, min(2, len(able)))]
        chosen: list[list[RunningReplica]] = await super().choose_replicas(
            candidate_replicas, pending_request
        )
        return chosen
