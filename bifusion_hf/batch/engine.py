"""Who makes the shards: one interface, `Engine`, with processes of this machine and (`ray_engine`) a Ray cluster.

What makes a shard is a function that a worker builds once, with the network or whatever else is slow to load, and then
calls shard by shard. It writes the shard itself and gives back no more than a short record, so that no engine ever
holds results. A shard that ends in an error ends the run; one whose worker dies is made once more.
"""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from ..stopping import leave_interrupts_to_the_parent


logger = logging.getLogger(__name__)

ENGINES = ("local", "ray")
# Workers that a shard may lose; after that the shard is what kills them.
MAX_DEATHS = 3

# Gives a shard's record from its name and what is to be done.
Work = Callable[[str, Any], Any]


class WorkerDiedError(RuntimeError):
    """The processes that were to make a shard were killed, time and again; the message names the shard."""

    def __init__(self, shard: str):
        super().__init__(
            f"shard {shard}: {MAX_DEATHS} workers died while they made it; expected them to live: is there memory "
            "enough for one more frame in each?"
        )


class Engine(Protocol):
    """Makes shards."""

    def run(self, build: Callable[[], Work], shards: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Makes shards, at most one at a time in each worker.

        Args:
            build: Called once in each worker; what it gives is called with the name of a shard and what is to be done.
                It goes to other processes, and so do the shards and what comes back.
            shards: What is to be done, by the name of the shard.

        Returns:
            Name and record of each shard, when it is done.

        Raises:
            WorkerDiedError: See there.
            Exception: That of a shard; those that were done stay.
        """
        ...


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
        waiting, deaths = list(reversed(shards.items())), dict.fromkeys(shards, 0)
        workers: dict[Future, tuple[int, ProcessPoolExecutor, str, Any]] = {}
        free = [(index, self._start(build, index)) for index in range(count)]
        try:
            while waiting or workers:
                while waiting and free:
                    (index, worker), (name, task) = free.pop(), waiting.pop()
                    workers[worker.submit(_work, name, task)] = index, worker, name, task
                done, _ = wait(workers, return_when=FIRST_COMPLETED)
                for future in done:
                    index, worker, name, task = workers.pop(future)
                    try:
                        with _named(name):
                            record = future.result()
                    except BrokenProcessPool as error:
                        # A pool of one: no other shard has lost its worker.
                        worker.shutdown(wait=False)
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
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__, *self.preload])
        else:
            context = multiprocessing.get_context("spawn")
        gpu = index % self.gpus if self.gpus else None
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker, initargs=(build, gpu))


def open_engine(
    name: str = "local",
    *,
    processes: int | None = None,
    address: str | None = None,
    preload: Sequence[str] = (),
    gpu: bool = False,
) -> Engine:
    """The engine of a name out of `ENGINES`.

    Args:
        name: `"local"` or `"ray"`.
        processes: Workers; None = one of this machine, or as many as the cluster has room for.
        address: Of the Ray cluster; None = a new one of this machine alone.
        preload: See `LocalEngine`.
        gpu: Each worker computes on a GPU.

    Raises:
        ValueError: The name is unknown, or an argument belongs to the other engine.
        ImportError: Ray is missing.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; expected one of {ENGINES}")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; expected at least 1")
    if name == "ray":
        from .ray_engine import RayEngine

        return RayEngine(address, processes, gpu)
    if address is not None:
        raise ValueError(f"address is {address} with the engine {name!r}; expected the engine 'ray'")
    return LocalEngine(processes or 1, preload, _count_gpus() if gpu else 0)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


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
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    _build = build


def _work(name: str, task: Any) -> Any:
    global _worker
    if _worker is None:
        # Here and not at the start, where an error would only be a pool that is broken.
        _worker = _build()
    return _worker(name, task)
