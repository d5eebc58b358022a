"""Runs a command and outlives it: when it ends, whatever it left behind ends too.

python -m benchmarks.peers.supervise COMMAND...

SIGTERM is passed on to the command. A process that the command started belongs to it however it
was detached, because the kernel gives orphans to this process. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERMINATE_SECONDS = 15.0
KILL_SECONDS = 5.0


def descendants(root: int) -> list[int]:
    """Process ids of all that `root` started, and those started; `root` is not among them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name is in brackets and may hold anything; the parent comes after it.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def peak_rss(root: int) -> int:
    """Bytes: each process's peak under `root`, summed. Pages they share count in each."""
    total = 0
    for process in descendants(root):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        total += sum(int(kib) * 1024 for kib in peaks)
    return total


def end_all(sig: signal.Signals, seconds: float) -> list[int]:
    """Signals every descendant and waits; those still alive after `seconds`."""
    for process in descendants(os.getpid()):
        try:
            os.kill(process, sig)
        except ProcessLookupError:
            continue
    until = time.monotonic() + seconds
    while (alive := descendants(os.getpid())) and time.monotonic() < until:
        reap()
        time.sleep(0.05)
    reap()
    return alive


def reap() -> None:
    """Collects the orphans that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    child = subprocess.Popen(sys.argv[1:])

    def stop(*_: object) -> None:
        child.terminate()
        signal.alarm(int(TERMINATE_SECONDS))

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, lambda *_: child.kill())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = child.wait()
    # Some leave by themselves a moment after their parent.
    until = time.monotonic() + 2
    while descendants(os.getpid()) and time.monotonic() < until:
        reap()
        time.sleep(0.05)
    if left := descendants(os.getpid()):
        print(f"left behind by the command: {len(left)} processes", file=sys.stderr)
        if end_all(signal.SIGTERM, TERMINATE_SECONDS):
            end_all(signal.SIGKILL, KILL_SECONDS)
    return status


if __name__ == "__main__":
    sys.exit(main())
