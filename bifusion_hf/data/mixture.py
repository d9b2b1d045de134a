"""Rows of several sources as one sequence, and which of them an epoch takes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .frames import load_frames


if TYPE_CHECKING:
    import datasets


class Mixture(Sequence):
    """Sources one after another, each with a weight.

    An epoch has as many frames as all sources have rows. A source's share of them is its weight over the sum of the
    weights; it gives its rows in passes, each in another order, that go on where the last epoch stopped: however
    large the share, all its rows come equally often.

    Args:
        sources: Rows of each source by its name, in order.
        weights: Of each source; positive.

    Raises:
        ValueError: No source, one without rows, a weight that is not positive, or one without its source.
    """

    def __init__(self, sources: Mapping[str, Sequence[Any]], weights: Mapping[str, float]):
        if not sources or sources.keys() != weights.keys():
            raise ValueError(f"weights are of {sorted(weights)}; expected one for each source of {sorted(sources)}")
        for name, rows in sources.items():
            if not len(rows):
                raise ValueError(f"{name} has no rows; expected some in every source of a mixture")
            if not 0 < weights[name] < float("inf"):
                raise ValueError(f"weight of {name} is {weights[name]}; expected a positive number")
        self.sources = dict(sources)
        self.weights = {name: weights[name] for name in sources}
        self.starts = dict(zip(sources, accumulate([0, *map(len, sources.values())]), strict=False))

    def __len__(self) -> int:
        return sum(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> Any:
        name, row = self._locate(index)
        return self.sources[name][row]

    def place(self, index: int) -> str:
        """How messages name a row."""
        name, row = self._locate(index)
        return f"row {row} of {name}"

    def _locate(self, index: int) -> tuple[str, int]:
        index = range(len(self))[index]
        name = next(name for name in reversed(self.starts) if self.starts[name] <= index)
        return name, index - self.starts[name]

    def shares(self) -> dict[str, int]:
        """Frames of each source in an epoch: whole numbers nearest to its part, which add up to all rows."""
        exact = {name: len(self) * weight / sum(self.weights.values()) for name, weight in self.weights.items()}
        shares = {name: int(value) for name, value in exact.items()}
        missing = len(self) - sum(shares.values())
        for name in sorted(exact, key=lambda name: shares[name] - exact[name])[:missing]:
            shares[name] += 1
        return shares

    def epoch_keys(self, seed: int, epoch: int) -> list[tuple[int, int]]:
        """The keys (pass, row) of an epoch, in order; a function of seed and epoch alone.

        A row that comes twice in an epoch has another pass each time, by which its sample is another one too.
        """
        keys = []
        for number, (name, share) in enumerate(self.shares().items()):
            size = len(self.sources[name])
            for turn in range(epoch * share // size, -(-(epoch + 1) * share // size)):
                first, last = (min(max(place * share - turn * size, 0), size) for place in (epoch, epoch + 1))
                # A whole pass needs no order of its own: one source is what it is without a mixture.
                is_whole = (first, last) == (0, size)
                order = range(size) if is_whole else np.random.default_rng([seed, number, turn]).permutation(size)
                keys += [(turn, self.starts[name] + int(row)) for row in order[first:last]]
        return shuffled(keys, seed, epoch)


def shuffled(keys: Sequence[Any], seed: int, epoch: int) -> list[Any]:
    """The keys in an order that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [keys[index] for index in torch.randperm(len(keys), generator=generator).tolist()]


def load_rows(
    sources: str | Mapping[str, float], split: str, prepare: Callable[["datasets.Dataset"], Any] = lambda rows: rows
) -> Any:
    """The rows of a source, or of several with their weights as a `Mixture`.

    Args:
        sources: What `load_frames` takes, or weights by such names.
        split: See there; of each source.
        prepare: Applied to the rows of each source.

    Raises:
        ValueError: See `load_frames` and `Mixture`.
    """
    if isinstance(sources, Mapping):
        return Mixture({source: prepare(load_frames(source, split)) for source in sources}, sources)
    return prepare(load_frames(sources, split))
