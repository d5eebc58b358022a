"""Reading, cropping and collating images in worker processes that live across epochs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from models.data.collection import Images, Transform, decoded
from models.data.datasets import Corrupt
from models.data.label_list import Targets
from models.data.order import image_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How images are loaded.

    `corrupt`: an unreadable image is an error ("fail"), or is left out ("skip") and passed to
        `report` in one line, once.
    `workers`: processes that read ahead.
    `resident`: decode the whole set before training, which padded crops alone allow; by default
        if images have at most 128 pixels a side and together at most `resident_bytes`. `progress`
        is called with the number of images decoded so far.
    """

    corrupt: Corrupt = "fail"
    workers: int = 0
    resident: bool | None = None
    resident_bytes: int = 2**31
    report: Callable[[str], object] = lambda line: None
    progress: Callable[[int], object] = lambda count: None


DEFAULT_LOADING = Loading()


class Request(NamedTuple):
    """The rows `rank::world` of a batch. `replaced`: other images of the batch replace those that
    cannot be read. `repeats`: how often each image came before in the epoch; none did if it is
    None."""

    indices: NDArray[np.int64]
    rank: int = 0
    world: int = 1
    seed: int = 0
    epoch: int = 0
    replaced: bool = False
    repeats: NDArray[np.int64] | None = None


class Answer(NamedTuple):
    """Images uint8 [n, H, W, C], targets int64 [n] or bool [n, K], the unreadable images, and an
    error or "".

    The error is text: an exception from a worker would arrive with its traceback.
    """

    images: Tensor
    targets: Tensor
    unreadable: list[str]
    error: str


class Reader(TorchDataset[Answer]):
    """Answers requests in a worker process."""

    def __init__(
        self,
        images: Images,
        targets: Targets,
        shape: tuple[int, int, int],
        transform: Transform,
        corrupt: Corrupt,
    ) -> None:
        self.images, self.targets, self.shape = images, targets, shape
        self.transform, self.corrupt = transform, corrupt

    def __getitem__(self, request: Request) -> Answer:
        rows = range(request.rank, len(request.indices), request.world)
        repeats = np.zeros_like(request.indices) if request.repeats is None else request.repeats
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        kept: list[int] = []
        unreadable: list[str] = []
        for row in rows:
            following = len(request.indices) if request.replaced else 1
            for at in [(row + ahead) % len(request.indices) for ahead in range(following)]:
                index, repeat = int(request.indices[at]), int(repeats[at])
                seed = 0
                if request.replaced:
                    seed = image_seed(request.seed, request.epoch, index, repeat)
                try:
                    pixels[len(kept)] = self._decoded(index, seed)
                except ValueError as error:
                    unreadable.append(str(error))
                else:
                    kept.append(index)
                    break
                if self.corrupt == "fail":
                    return self._answer(pixels[:0], [], unreadable, unreadable[-1])
            else:
                if request.replaced:
                    reason = f"{unreadable[-1]}, nor is any other of its batch"
                    return self._answer(pixels[:0], [], unreadable, reason)
        # Sending a view to the main process would send the whole array.
        whole = pixels if len(kept) == len(rows) else pixels[: len(kept)].copy()
        return self._answer(whole, kept, unreadable, "")

    def _decoded(self, index: int, seed: int) -> NDArray[np.uint8]:
        opener = partial(self.images.open, index)
        return decoded(opener, self.images.name(index), self.transform, seed)

    def _answer(
        self, pixels: NDArray[np.uint8], kept: list[int], unreadable: list[str], error: str
    ) -> Answer:
        targets = torch.from_numpy(self.targets[kept])
        return Answer(torch.from_numpy(pixels), targets, unreadable, error)


class _Requests:
    """A sampler that serves many epochs, so that a loader's workers live on."""

    def __init__(self) -> None:
        self.pending: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.pending


class Loader:
    """Answers requests in order, in `workers` processes or, with 0, in this one."""

    def __init__(
        self, reader: Reader, source: str, workers: int, report: Callable[[str], object]
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers must be at least 0, not {workers}")
        self.reader, self.source, self.workers = reader, source, workers
        self.report, self.named = report, set[str]()
        self.requests = _Requests()
        self._loaders: dict[bool, DataLoader[Answer]] = {}

    def answers(self, requests: Iterator[Request], *, pinned: bool = False) -> Iterator[Answer]:
        self.requests.pending = requests
        if pinned not in self._loaders:
            self._loaders[pinned] = self._made(pinned)
        for answer in self._loaders[pinned]:
            yield self.checked(answer)

    def checked(self, answer: Answer) -> Answer:
        """The answer, after reporting each unreadable image once.

        Raises:
            ValueError: the answer is an error.
        """
        if answer.error:
            raise ValueError(f"{self.source}: {answer.error}")
        for line in answer.unreadable:
            if line not in self.named:
                self.named.add(line)
                self.report(f"{self.source}: {line}; left out")
        return answer

    def _made(self, pinned: bool) -> DataLoader[Answer]:
        context = None
        if self.workers and "forkserver" in multiprocessing.get_all_start_methods():
            # A fork would inherit locks without the threads that hold them.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", __name__])
        return DataLoader(
            self.reader,
            batch_size=None,
            sampler=self.requests,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            multiprocessing_context=context,
            # Otherwise each epoch would draw from dropout's generator.
            generator=torch.Generator(),
        )


def _as_it_is(answer: Any) -> Any:
    return answer
