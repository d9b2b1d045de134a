"""Shards made by processes of this machine."""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ..stopping import end_with_the_parent, leave_interrupts_to_the_parent
from .engine import MAX_DEATHS, Work, WorkerDiedError
from .fork_server import ended_when_stopped, fork_server_context


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine; one is the process that asks.

    Args:
        processes: How many.
        preload: Modules that the workers share from the start.
        gpus: GPUs that the workers take in turn; 0 leaves the choice to them.
    """

    processes: int = 1
    preload: Sequence[str] = ()
    gpus: int = 0

    def run(self, build: Callable[[], Work], shards: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """See `Engine`."""
        count = min(self.processes, len(shards))
        if self.processes == 1 or count == 0:
            work = build() if count else None
            for name, task in shards.items():
                with _named(name):
                    record = work(name, task)
                yield name, record
            return
        # Each worker fills a core by itself; threads of linear algebra would only get in each other's way.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with ended_when_stopped():
            yield from self._run_in_workers(build, shards, count)

    def _run_in_workers(
        self, build: Callable[[], Work], shards: Mapping[str, Any], count: int
    ) -> Iterator[tuple[str, Any]]:
        waiting, deaths = list(reversed(shards.items())), dict.fromkeys(shards, 0)
        workers: dict[Future, tuple[int, ProcessPoolExecutor, str, Any]] = {}
        free = [(index, self._start(build, index)) for index in range(count)]
        try:
            while waiting or workers:
                while waiting and free:
                    (index, worker), (name, task) = free.pop(), waiting.pop()
                    try:
                        future = worker.submit(_work, name, task)
                    except BrokenProcessPool:
                        # It died with nothing to do, which no shard is to blame for.
                        worker = self._start(build, index)
                        future = worker.submit(_work, name, task)
                    workers[future] = index, worker, name, task
                done, _ = wait(workers, return_when=FIRST_COMPLETED)
                # A set has no order; those that were begun first come first.
                for future in [future for future in workers if future in done]:
                    index, worker, name, task = workers.pop(future)
                    try:
                        with _named(name):
                            record = future.result()
                    except BrokenProcessPool as error:
                        # A pool of one: no other shard has lost its worker, and what broke has shut itself down.
                        deaths[name] += 1
                        if deaths[name] == MAX_DEATHS:
                            raise WorkerDiedError(name) from error
                        logger.warning("shard %s: its worker died; once more", name)
                        waiting.append((name, task))
                        free.append((index, self._start(build, index)))
                        continue
                    free.append((index, worker))
                    yield name, record
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            # What they write has private names, which the next run takes away.
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            for _, worker in [*free, *(entry[:2] for entry in workers.values())]:
                worker.shutdown(wait=False, cancel_futures=True)

    def _start(self, build: Callable[[], Work], index: int) -> ProcessPoolExecutor:
        # A fork of this process would inherit the locks of its threads, and a spawned one would import all anew: the
        # fork server imports once, and forks from there.
        if "forkserver" in multiprocessing.get_all_start_methods():
            context = fork_server_context([__name__, *self.preload])
        else:
            context = multiprocessing.get_context("spawn")
        gpu = index % self.gpus if self.gpus else None
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(build, gpu))


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Within, an error is logged with the shard that it is of; what it says stays."""
    try:
        yield
    except BrokenProcessPool:
        raise
    except Exception as error:
        logger.error("shard %s failed: %s", name, error)
        raise


_build: Callable[[], Work] | None = None
_worker: Work | None = None


def _start_worker(build: Callable[[], Work], gpu: int | None) -> None:
    global _build
    leave_interrupts_to_the_parent()
    # Each worker holds the pipe that it waits at open: it would never see the end of a parent that was killed.
    end_with_the_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    _build = build


def _work(name: str, task: Any) -> Any:
    global _worker
    if _worker is None:
        # Here and not at the start, where an error would only be a pool that is broken.
        _worker = _build()
    return _worker(name, task)
