"""Who makes the shards: one interface, `Engine`, with processes of this machine and (`ray_engine`) a Ray cluster.

What makes a shard is a function that a worker builds once, with the network or whatever else is slow to load, and then
calls shard by shard. It writes the shard itself and gives back no more than a short record, so that no engine ever
holds results. A shard that ends in an error ends the run; one whose worker dies is made once more.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol


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
