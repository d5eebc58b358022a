"""A simulation of hosts that serve one model, event by event, image by image.

Hosts decode in threads and form batches by pull, with the service's own rule; queues have bounds,
deadlines pass, callers come again when Retry-After says so; a balancer chooses the host; hosts
fail, come back, and are added and removed. Times are seconds throughout.

Not simulated: the network, several models on a device, `max_delay_ms`, priorities, the bound in
bytes, bodies that arrive slowly.
"""

from __future__ import annotations

from benchmarks.scale.simulation.fleet import Fleet, Scaling, simulate
from benchmarks.scale.simulation.node import Host
from benchmarks.scale.simulation.outcome import Outcome

__all__ = ["Fleet", "Host", "Outcome", "Scaling", "simulate"]
