"""Processes that torchrun or `accelerate launch` started, on one node or several: each takes its shards."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar


if TYPE_CHECKING:
    from accelerate.utils import InitProcessGroupKwargs

Item = TypeVar("Item")
# Others may still be at their last shard when one has ended its own.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """The processes of a launch, of which this is one.

    Args:
        rank: Number of this one.
        count: Of all.
        device: Of this one, a `torch.device` string; None = no choice was made.
    """

    rank: int = 0
    count: int = 1
    device: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes what is written once."""
        return self.rank == 0

    def share(self, shards: Mapping[str, Item]) -> dict[str, Item]:
        """The shards of this process: the main one's are cut, so that all agree on what is left to do.

        Args:
            shards: What the main process found to do; of the others any value.
        """
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            box = [list(shards.items())]
            broadcast_object_list(box)
            shards = dict(box[0])
        return dict(list(shards.items())[self.rank :: self.count])

    def gather(self, value: Any) -> Sequence[Any]:
        """The value of each process, when all have come here."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])


def group_options() -> "InitProcessGroupKwargs":
    """For an `Accelerator` whose processes share shards: none gives up waiting for the others."""
    from accelerate.utils import InitProcessGroupKwargs

    return InitProcessGroupKwargs(timeout=_PATIENCE)


def launched_processes(cpu: bool = False) -> Processes:
    """The processes of this launch; a program that was started alone is one.

    Args:
        cpu: They compute on the CPU.

    Raises:
        ValueError: Accelerate sees another number of them than was launched.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=cpu or not torch.accelerator.is_available(), **group_options().to_kwargs())
    if launched != state.num_processes:
        raise ValueError(f"{launched} processes were launched, but Accelerate runs {state.num_processes}")
    return Processes(state.process_index, state.num_processes, str(state.device))
