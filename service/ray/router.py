"""Request routing: Ray's choice, but without replicas that recently reported they cannot serve.

Ray prefers the least-loaded replica. One whose engine is down refuses at once, so it always has the
least load: it would attract nearly all requests and refuse what others could serve.
"""

from __future__ import annotations

import random

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from service.ray.cooldown import is_cooling_down

PATH = f"{__name__}:Router"


class Router(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc] # Ray has no types.
    """Ray's own router while no replica is cooling down."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        available = [
            replica
            for replica in candidate_replicas
            if not is_cooling_down(replica.replica_id.unique_id)
        ]
        if available and len(available) < len(candidate_replicas):
            return [random.sample(available, min(2, len(available)))]
        chosen: list[list[RunningReplica]] = await super().choose_replicas(
            candidate_replicas, pending_request
        )
        return chosen
