"""A `resnet-serve serve` of our own: started, timed and measured from outside."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 600.0  # An engine may compile first.
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Started:
    """`url` classifies; `seconds` from the start of `process` to its first answer with status 200;
    `log` grows as it writes."""

    url: str
    seconds: float
    process: subprocess.Popen[str]
    log: list[str]

    @property
    def pid(self) -> int:
        return self.process.pid


@contextmanager
def started(
    arguments: Sequence[str],
    image: bytes,
    cache: Path,
    *,
    program: Sequence[str] = ("-m", "service.cli"),
    **environment: str,
) -> Iterator[Started]:
    """The service with `arguments` of `serve`, ended afterwards; `image` is what is asked first.

    What it compiles it keeps in the folder `cache`. `program` is what Python is told to run.

    Raises:
        SystemExit: it ended, or did not answer with 200; the message is the end of its log.
    """
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)} | environment,
    )
    log: list[str] = []
    # Its log must go on being read, or the pipe would fill and block it.
    reader = threading.Thread(target=_read, args=(server, log), daemon=True)
    reader.start()
    try:
        url = _first_answer(server, log, image, until=began + START_SECONDS)
        yield Started(url, time.perf_counter() - began, server, log)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        reader.join()


def _read(server: subprocess.Popen[str], log: list[str]) -> None:
    assert server.stderr is not None
    with server.stderr as lines:
        log.extend(lines)


def _first_answer(server: subprocess.Popen[str], log: list[str], image: bytes, until: float) -> str:
    while server.poll() is None and time.perf_counter() < until:
        listening = re.search(r"https?://\S+:\d+", "".join(log))
        if listening:
            url = f"{listening[0]}/v1/classify"
            headers = {"Content-Type": "application/octet-stream"}
            request = urllib.request.Request(url, image, headers)
            try:
                # A certificate made for a benchmark is signed by nobody.
                context = ssl._create_unverified_context()
                with urllib.request.urlopen(request, timeout=60, context=context):
                    return url
            except urllib.error.HTTPError as refusal:
                if refusal.code != 503:
                    raise SystemExit(f"{url}: {refusal.code} {refusal.read()!r}") from None
                refusal.close()
            except OSError:
                pass
        time.sleep(0.01)
    raise SystemExit(f"the service did not start: {''.join(log[-3:])}")


def processes(pid: int) -> list[int]:
    """A process and all it started, directly or not."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # A thread that has just ended.
            for child in path.read_text("utf-8").split():
                found += processes(int(child))
    return found


def peak_memory(pid: int) -> int:
    """The largest resident sizes so far of a process and of all it started, summed, in bytes.

    What several of them share is counted for each; a process that has ended counts nothing.
    """
    return sum(_memory(each, "VmHWM") for each in processes(pid))


def cpu_seconds(pid: int, *, main_threads: bool = False) -> tuple[float, float]:
    """CPU time so far, user and system, of a process and of all it started that still run.

    `main_threads`: of each process's first thread only, which is where event loops run.
    """
    users, systems = 0, 0
    for each in processes(pid):
        stat = f"/proc/{each}/task/{each}/stat" if main_threads else f"/proc/{each}/stat"
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(stat).read_text("utf-8").rpartition(")")[2].split()
            users, systems = users + int(fields[11]), systems + int(fields[12])
    return users / CLOCK_TICKS, systems / CLOCK_TICKS


def resident(pid: int) -> int:
    """What one process holds of the machine's memory now, in bytes; 0 if it has ended."""
    return _memory(pid, "VmRSS")


def open_files(pid: int) -> int:
    """How many file descriptors a process has; 0 if it has ended."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except FileNotFoundError:
        return 0


def _memory(pid: int, what: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
