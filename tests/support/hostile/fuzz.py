"""Decodes mutated files in this process, which may neither die nor take more memory than it has.

    python -m tests.support.hostile.fuzz COUNT [SEED]

prints a report as JSON: what came out how often, the slowest input and the memory at the most.
Whatever is wrong ends it with that input's number; its bytes are kept in a file.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.preprocess import CIFAR
from service.errors import TooLarge, UndecodableImage
from service.inference.decoding import decode_image, prepare
from tests.support.hostile.images import SEEDS

PIXELS = 4_000_000
# Beyond what the process has when it begins; 12 bytes a pixel and some for libraries' tables.
MEMORY = 256 * 2**20
MAGIC_BYTES = 16  # kept, more often than not: what has another signature is refused at once
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Where a part of a file begins, in any format.
PART = re.compile(rb"\xff[\xc0-\xfe]|[A-Za-z]{4}|[!,]")

Mutation = Callable[[bytearray, random.Random, bytes], None]


def place(data: bytearray, source: random.Random) -> int:
    lowest = min(MAGIC_BYTES, len(data)) if source.random() < 0.9 else 0
    return source.randint(lowest, max(lowest, len(data) - 1))


def flip_bits(data: bytearray, source: random.Random, other: bytes) -> None:
    for _ in range(source.choice((1, 1, 2, 8, 32))):
        at = place(data, source)
        data[at : at + 1] = bytes([(*data[at : at + 1], 0)[0] ^ 1 << source.randrange(8)])


def set_number(data: bytearray, source: random.Random, _: bytes) -> None:
    """A length, a count, a size or an offset becomes a limit of its kind."""
    at, size = place(data, source), source.choice((1, 2, 4))
    value = source.choice(INTERESTING) & (1 << 8 * size) - 1
    data[at : at + size] = value.to_bytes(size, source.choice(("big", "little")))


def truncate(data: bytearray, source: random.Random, _: bytes) -> None:
    del data[place(data, source) :]


def splice(data: bytearray, source: random.Random, other: bytes) -> None:
    """A stretch of another file in place of one of this."""
    size = source.randint(1, 64)
    at, start = place(data, source), source.randrange(len(other))
    data[at : at + source.choice((0, size))] = other[start : start + size]


def repeat_part(data: bytearray, source: random.Random, _: bytes) -> None:
    """From one beginning of a part to another, again and again or moved."""
    begins = [found.start() for found in PART.finditer(data)]
    if len(begins) < 2:
        return
    first, last = sorted(source.sample(begins, 2))
    part = data[first:last][:4096]
    at = source.choice(begins)
    data[at:at] = part * source.choice((1, 1, 2, 50))


def delete(data: bytearray, source: random.Random, _: bytes) -> None:
    at = place(data, source)
    del data[at : at + source.choice((1, 2, 4, 16, 200))]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits,
    set_number,
    set_number,
    splice,
    repeat_part,
    truncate,
    delete,
)


def mutants(seeds: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` files with the names of the seeds they were made from; equal for equal `seed`."""
    source = random.Random(seed)
    names = sorted(seeds)
    for i in range(count):
        name = names[i % len(names)]
        data = bytearray(seeds[name])
        other = seeds[source.choice(names)]
        for _ in range(source.choice((1, 1, 2, 4))):
            source.choice(MUTATIONS)(data, source, other)
        yield name, bytes(data)


def kind_of(data: bytes) -> str:
    """What came of decoding `data`: pixels, or why not, without the numbers of this input."""
    try:
        pixels = decode_image(data, CIFAR, PIXELS).pixels
    except TooLarge as error:
        if "memory" in str(error):
            raise MemoryError from error
        return "too large"
    except UndecodableImage as error:
        if not str(error).isprintable():
            raise ValueError(repr(str(error))) from error
        cause = type(error.__cause__).__name__ if error.__cause__ else "refused"
        return f"{cause}: {re.sub(r'[0-9]+', 'N', str(error))[:60]}"
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == "uint8"
    return "pixels"


def memory() -> int:
    """Bytes of this process's address space now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(count: int, seed: int) -> dict[str, Any]:
    prepare()
    seeds = {name: make() for name, make in SEEDS.items()}
    for data in seeds.values():
        kind_of(data)  # Loads what each format needs.
    begun = memory()
    resource.setrlimit(resource.RLIMIT_AS, (begun + MEMORY, resource.RLIM_INFINITY))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kinds: Counter[str] = Counter()
    slowest = (0.0, "", -1)
    with tempfile.NamedTemporaryFile(prefix="mutant-", delete=False) as kept:
        for i, (name, data) in enumerate(mutants(seeds, count, seed)):
            # Written before it is decoded: a crash leaves no time for it.
            kept.seek(0)
            kept.truncate()
            kept.write(data)
            kept.flush()
            started = time.process_time()
            try:
                kinds[kind_of(data)] += 1
            except BaseException as error:
                error.add_note(f"input {i}, made from {name}, is in {kept.name}")
                raise
            slowest = max(slowest, (time.process_time() - started, name, i))
    Path(kept.name).unlink()
    return {
        "inputs": count,
        "kinds": dict(kinds.most_common()),
        "slowest_s": round(slowest[0], 3),
        "slowest": f"input {slowest[2]}, made from {slowest[1]}",
        "peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) // 1024,
    }


if __name__ == "__main__":
    inputs, number, *_ = (*map(int, sys.argv[1:]), 0)
    json.dump(run(inputs, number), sys.stdout, indent=1)
