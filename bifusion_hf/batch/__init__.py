"""Work in shards: cut, handed to processes of this machine or of a Ray cluster, each written once, gone on with."""

from .engine import Engine, Work, WorkerDiedError
from .engines import ENGINES, open_engine
from .local_engine import LocalEngine
from .processes import Processes, launched_processes
from .shards import check_settings, cut, shard_names


__all__ = [
    "ENGINES",
    "Engine",
    "LocalEngine",
    "Processes",
    "Work",
    "WorkerDiedError",
    "check_settings",
    "cut",
    "launched_processes",
    "open_engine",
    "shard_names",
]
