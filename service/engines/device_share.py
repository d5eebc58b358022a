"""Fair scheduling of a device shared by several models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter


@dataclass(eq=False)
class Tenant:
    """An engine that uses a shared device, and the device's account of it.

    `share`: its weight among the tenants; `used`: seconds of the device divided by `share`;
    `latest`: what its latest batch added to `used`; `in_flight`: its batches on the device.
    """

    share: float = 1.0
    used: float = 0.0
    latest: float = 0.0
    in_flight: int = 0

    @property
    def claimed(self) -> float:
        """What it has used, and what its batches in flight will probably add."""
        return self.used + self.in_flight * self.latest


@dataclass(eq=False)
class Permit:
    """Lets one batch onto the device, or with `alone`, everything that its holder does."""

    tenant: Tenant
    alone: bool = False
    began: float = 0.0


class DeviceShare:
    """Up to `depth` batches at a time; next is the tenant that has used the least of the device's
    time.

    Time counts in proportion to a tenant's share. A tenant that was idle starts level with the
    others, so that nobody saves up time. One that is ahead of another with work to do, by more
    than it may have in flight, waits for it even if the device is free.
    """

    def __init__(self, depth: int = 1) -> None:
        self._depth = depth
        self._changed = threading.Condition()
        self._active: set[Tenant] = set()  # Those with work to do, between `begin` and `leave`.
        self._waiting: list[Permit] = []
        self._in_flight: list[Permit] = []
        self._level = 0.0  # What the latest to begin had used by then.
        self._ended = 0.0  # When the latest batch ended.

    def begin(self, tenant: Tenant) -> Permit:
        """Waits until a batch of `tenant` may be launched; the thread holds no other permit."""
        with self._changed:
            self._join(tenant)
            self._active.add(tenant)
            return self._granted(Permit(tenant))

    def try_begin(self, tenant: Tenant) -> Permit | None:
        """A permit for one more batch of a tenant with work to do; None if others come first."""
        permit = Permit(tenant)
        with self._changed:
            self._waiting.append(permit)
            may_begin = self._may_begin(permit)
            self._waiting.remove(permit)
            if may_begin:
                self._take(permit)
        return permit if may_begin else None

    @contextmanager
    def alone(self, tenant: Tenant) -> Iterator[None]:
        """A context in which nothing else is in flight; the thread holds no permit."""
        with self._changed:
            if tenant not in self._active:
                self._join(tenant)
            permit = self._granted(Permit(tenant, alone=True))
        try:
            yield
        finally:
            self.end(permit)

    def end(self, permit: Permit) -> None:
        """Ends a batch, unless it has ended, and charges its tenant with the device's time.

        The device computes one batch after the other: a batch's time begins when the one before
        it ends.
        """
        with self._changed:
            if permit in self._in_flight:
                now, tenant = perf_counter(), permit.tenant
                tenant.latest = (now - max(permit.began, self._ended)) / tenant.share
                tenant.used += tenant.latest
                tenant.in_flight -= 1
                self._ended = now
                self._in_flight.remove(permit)
                self._changed.notify_all()

    def leave(self, tenant: Tenant) -> None:
        """Nobody waits for `tenant` any more: it has no work until it begins again."""
        with self._changed:
            self._active.discard(tenant)
            self._changed.notify_all()

    def free(self, tenant: Tenant) -> None:
        """Ends all that `tenant` has in flight, as it will not, and leaves."""
        with self._changed:
            for permit in [each for each in self._in_flight if each.tenant is tenant]:
                self.end(permit)
            self.leave(tenant)

    def _join(self, tenant: Tenant) -> None:
        if tenant not in self._active:
            tenant.used = max(tenant.used, self._level)

    def _granted(self, permit: Permit) -> Permit:
        self._waiting.append(permit)
        self._changed.wait_for(lambda: self._may_begin(permit))
        self._waiting.remove(permit)
        self._take(permit)
        return permit

    def _take(self, permit: Permit) -> None:
        self._level = permit.tenant.used
        permit.began = perf_counter()
        permit.tenant.in_flight += 1
        self._in_flight.append(permit)
        self._changed.notify_all()  # There may be room for one more.

    def _may_begin(self, permit: Permit) -> bool:
        if self._in_flight and (permit.alone or any(each.alone for each in self._in_flight)):
            return False
        # Among equals, the first that came.
        first = min(self._waiting, key=lambda each: each.tenant.claimed)
        free = len(self._in_flight) < self._depth
        return free and first is permit and self._is_level(permit.tenant)

    def _is_level(self, tenant: Tenant) -> bool:
        lead = self._depth * tenant.latest
        return all(tenant.claimed <= other.claimed + lead for other in self._active)


class DeviceShares(dict[str, DeviceShare]):
    """By the device's name; a CUDA device has two batches in flight, so that it never idles while
    a result is collected and the next batch is staged."""

    def __missing__(self, device: str) -> DeviceShare:
        return self.setdefault(device, DeviceShare(1 if device == "cpu" else 2))
