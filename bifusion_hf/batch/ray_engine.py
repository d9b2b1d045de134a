"""Shards made by the workers of a Ray cluster, through Ray Data: placing, restarting and back-pressure are its own."""

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..import_utils import require_package
from .engine import MAX_DEATHS, Work, WorkerDiedError


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayEngine:
    """Actors of a Ray cluster (extra `ray`), each with one shard at a time.

    Every node needs the package, and the places that the work reads and writes: a shared disk, or a store. Nothing
    but the short records comes back.

    Args:
        address: Of the cluster; None = one of this machine, for as long as the process lives.
        processes: Most workers at once; None = as many as the cluster has CPUs, or GPUs, for.
        gpu: Each worker has a GPU to itself.

    Raises:
        ImportError: Ray is missing.
    """

    address: str | None = None
    processes: int | None = None
    gpu: bool = False

    def __post_init__(self):
        require_package("ray")

    def run(self, build: Callable[[], Work], shards: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """See `Engine`.

        Raises:
            ConnectionError: There is no such cluster.
        """
        if not shards:
            return
        import ray
        import ray.data

        if not ray.is_initialized():
            ray.init(address=self.address, logging_level=logging.WARNING)
        deaths = ray.remote(num_cpus=0)(_Tries).remote()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # A row a block, so that each shard is a task of its own: what is lost with a worker is one of them.
        rows = [{"name": name, "task": pickle.dumps(task)} for name, task in shards.items()]
        most = min(self.processes or self._room(), len(rows))
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=[pickle.dumps(build), deaths],
            compute=ray.data.ActorPoolStrategy(size=most, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if self.gpu else None,
        )
        for row in done.iter_rows():
            name, record, error = row["name"], pickle.loads(row["record"]), pickle.loads(row["error"])  # noqa: S301
            if error is not None:
                logger.error("shard %s failed: %s", name, error)
                raise error
            yield name, record

    def _room(self) -> int:
        import ray

        return max(1, int(ray.cluster_resources().get("GPU" if self.gpu else "CPU", 1)))


class _Tries:
    """How often each shard was begun; Ray itself would try again for ever."""

    def __init__(self):
        self._begun: dict[str, int] = {}

    def begin(self, name: str) -> int:
        """Counts one more, and gives how many came before it."""
        self._begun[name] = self._begun.get(name, 0) + 1
        return self._begun[name] - 1


class _Worker:
    """An actor; it builds the worker with its first shard, so that an error there has a way back."""

    def __init__(self, build: bytes, tries: Any):
        self._build, self._tries = build, tries
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        name, record, failure = row["name"], None, None
        deaths = ray.get(self._tries.begin.remote(name))
        try:
            if deaths == MAX_DEATHS:
                raise WorkerDiedError(name)
            if deaths:
                logger.warning("shard %s: its worker died; once more", name)
            if self._work is None:
                self._work = pickle.loads(self._build)()  # noqa: S301 - of our own driver
            record = self._work(name, pickle.loads(row["task"]))  # noqa: S301
        # Ray would wrap it; the caller is to get what a process of its own would have raised.
        except Exception as error:
            failure = error
        return {"name": name, "record": pickle.dumps(record), "error": pickle.dumps(failure)}
