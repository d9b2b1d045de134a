"""What a scene is known to be made of: voxels with their mean place and colour, and votes for whose they are.

Everything is kept in arrays that double when they are full, and a voxel is found by a hash of its place, so that what
a frame costs follows from the frame alone. The memory follows from the surface that was seen, about 80 bytes a voxel.
"""

from collections.abc import Mapping

import numpy as np

from ..data.frames import NONE


# Objects that can hold votes in one voxel; more are noise, and would make the map grow with the number of frames.
NUM_SLOTS = 4
# Voxels from the origin that a place may lie away, along each axis.
MAX_COORDINATE = 2**20
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def voxel_keys(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """The voxel of each point, as one number.

    Args:
        points: float [N, 3] metres.
        voxel_size: Metres.

    Returns:
        int64 [N].

    Raises:
        ValueError: A point is not finite, or lies more than `MAX_COORDINATE` voxels from the origin.
    """
    coordinates = np.floor(np.asarray(points, dtype=np.float64) / voxel_size)
    # NaN is on neither side, hence the form of the test.
    if not (np.abs(coordinates) < MAX_COORDINATE).all():
        raise ValueError(
            f"points lie up to {np.abs(points).max():g} m from the origin; expected less than "
            f"{MAX_COORDINATE * voxel_size:g} m"
        )
    x, y, z = (coordinates + MAX_COORDINATE).astype(np.int64).T
    return (x << 42) | (y << 21) | z


class VoxelIndex:
    """Rows of voxels by their keys: a hash table with open addressing, in arrays.

    Attributes: `keys` int64 [V], the key of each row.

    Args:
        keys: Of the first rows, without duplicates.
    """

    def __init__(self, keys: np.ndarray | None = None):
        self._keys = np.empty(1024, dtype=np.int64)
        self._table = np.full(4096, NONE, dtype=np.int32)
        self._count = 0
        if keys is not None:
            self.insert(keys)

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> np.ndarray:
        return self._keys[: self._count]

    def _place(self, keys: np.ndarray) -> np.ndarray:
        bits = self._table.size.bit_length() - 1
        return ((keys.view(np.uint64) * _MULTIPLIER) >> np.uint64(64 - bits)).astype(np.int64)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key, int64 [N], `NONE` where there is none."""
        rows = np.full(len(keys), NONE, dtype=np.int64)
        pending, places = np.arange(len(keys)), self._place(keys)
        while len(pending):
            found = self._table[places]
            same = (found >= 0) & (self._keys[found] == keys[pending])
            rows[pending[same]] = found[same]
            # A free place ends the search, another voxel's sends it on to the next one.
            on = (found >= 0) & ~same
            pending, places = pending[on], (places[on] + 1) & (self._table.size - 1)
        return rows

    def insert(self, keys: np.ndarray) -> np.ndarray:
        """The row of each of N different keys, int64 [N]; new ones get the next rows, in their order."""
        rows = self.find(keys)
        new = np.flatnonzero(rows < 0)
        rows[new] = self._count + np.arange(len(new))
        self._keys = grown(self._keys, self._count + len(new))
        self._keys[rows[new]] = keys[new]
        self._count += len(new)
        if 2 * self._count > self._table.size:
            self._table = np.full(2 ** (4 * self._count).bit_length(), NONE, dtype=np.int32)
            self._enter(np.arange(self._count))
        else:
            self._enter(rows[new])
        return rows

    def _enter(self, rows: np.ndarray) -> None:
        """Puts rows into the table; their keys are not in it yet."""
        places = self._place(self._keys[rows])
        while len(rows):
            free = self._table[places] < 0
            self._table[places[free]] = rows[free]
            # Of several that met at a free place one has it now.
            left = self._table[places] != rows
            rows, places = rows[left], (places[left] + 1) & (self._table.size - 1)


def grown(array: np.ndarray, count: int, fill: float = 0) -> np.ndarray:
    """The array, or one at least twice as long with the same beginning where it has fewer than `count` rows."""
    if count <= len(array):
        return array
    result = np.full((max(count, 2 * len(array)), *array.shape[1:]), fill, dtype=array.dtype)
    result[: len(array)] = array
    return result


class SceneMap:
    """The voxels of a scene.

    Each frame gives a voxel one vote: for the object that most of its pixels in the voxel belong to, or for none. A
    voxel keeps the votes of `NUM_SLOTS` objects. A further one takes a vote from the weakest of them, and its place
    once that has none left.

    Args:
        voxel_size: Metres.
    """

    def __init__(self, voxel_size: float):
        self.voxel_size = voxel_size
        self.index = VoxelIndex()
        self._seen = np.zeros(1024, dtype=np.int32)
        self._positions = np.zeros((1024, 3), dtype=np.float32)
        self._colors = np.zeros((1024, 3), dtype=np.float32)
        self._ids = np.full((1024, NUM_SLOTS), NONE, dtype=np.int32)
        self._votes = np.zeros((1024, NUM_SLOTS), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def seen(self) -> np.ndarray:
        """int32 [V], frames that saw each voxel."""
        return self._seen[: len(self)]

    @property
    def positions(self) -> np.ndarray:
        """float32 [V, 3] metres, mean of what the frames saw in each voxel."""
        return self._positions[: len(self)]

    @property
    def colors(self) -> np.ndarray:
        """uint8 [V, 3] RGB, likewise."""
        return np.rint(self._colors[: len(self)]).astype(np.uint8)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Rows of voxels, int64, `NONE` where a voxel was never seen."""
        return self.index.find(keys)

    def owners(self, rows: np.ndarray | None = None, min_share: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Whose voxels are.

        Args:
            rows: int64 [N] of seen voxels; None = all.
            min_share: Share of the frames that saw a voxel that must have voted for its owner.

        Returns:
            int64 [N], the object with the most votes (of equals the one with the lowest id), `NONE` = none; float32
            [N], its share of the frames that saw the voxel.
        """
        rows = slice(len(self)) if rows is None else rows
        ids, votes, seen = self._ids[rows], self._votes[rows], self._seen[rows]
        most = votes.max(axis=1)
        leading = (votes == most[:, None]) & (ids >= 0)
        owners = np.where(leading, ids, np.iinfo(np.int32).max).min(axis=1)
        share = (most / seen).astype(np.float32)
        owned = (most > 0) & (share >= min_share)
        return np.where(owned, owners, NONE).astype(np.int64), np.where(owned, share, 0)

    def add(self, keys: np.ndarray, positions: np.ndarray, colors: np.ndarray, ids: np.ndarray) -> None:
        """Adds what a frame saw.

        Args:
            keys: int64 [N], the voxels, each once.
            positions: float [N, 3], the mean place of the frame's points in each.
            colors: float [N, 3], their mean colour, 0..255.
            ids: int [N], the object that the frame votes for, `NONE` = none.
        """
        rows = self.index.insert(keys)
        for name, fill in (("_seen", 0), ("_positions", 0), ("_colors", 0), ("_ids", NONE), ("_votes", 0)):
            setattr(self, name, grown(getattr(self, name), len(self), fill))
        self._seen[rows] += 1
        weight = 1 / self._seen[rows][:, None].astype(np.float32)
        self._positions[rows] += weight * (positions - self._positions[rows])
        self._colors[rows] += weight * (colors - self._colors[rows])
        self._vote(rows[ids >= 0], ids[ids >= 0])

    def _vote(self, rows: np.ndarray, ids: np.ndarray) -> None:
        slots, votes = self._ids[rows], self._votes[rows]
        each = np.arange(len(rows))
        mine, free = slots == ids[:, None], slots < 0
        slot = np.where(mine.any(axis=1), mine.argmax(axis=1), free.argmax(axis=1))
        has_place = mine.any(axis=1) | free.any(axis=1)
        weakest = votes.argmin(axis=1)
        slot = np.where(has_place, slot, weakest)
        votes[each, slot] += np.where(has_place, 1, -1)
        slots[each, slot] = np.where(has_place, ids, np.where(votes[each, slot] > 0, slots[each, slot], NONE))
        self._ids[rows], self._votes[rows] = slots, votes

    def voted_for(self) -> np.ndarray:
        """int64, the objects that hold a vote in some voxel, ascending."""
        ids = np.unique(self._ids[: len(self)])
        return ids[ids >= 0].astype(np.int64)

    def forget(self, ids: np.ndarray) -> None:
        """Takes the votes of objects away."""
        gone = np.isin(self._ids[: len(self)], ids)
        self._ids[: len(self)][gone] = NONE
        self._votes[: len(self)][gone] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Everything that is kept, as arrays."""
        names = ("_seen", "_positions", "_colors", "_ids", "_votes")
        return {
            "keys": self.index.keys.copy(),
            **{name[1:]: getattr(self, name)[: len(self)].copy() for name in names},
        }

    @classmethod
    def from_state(cls, voxel_size: float, state: Mapping[str, np.ndarray]) -> "SceneMap":
        """The map of a `state`."""
        result = cls(voxel_size)
        result.index = VoxelIndex(state["keys"])
        for name in ("seen", "positions", "colors", "ids", "votes"):
            setattr(result, f"_{name}", np.array(state[name]))
        return result


def frame_voxels(
    keys: np.ndarray, positions: np.ndarray, colors: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a frame's points say of the voxels that they lie in.

    Args:
        keys: int64 [N], the voxel of each point.
        positions: float [N, 3].
        colors: uint8 [N, 3].
        rows: int [N], instance of each point, `NONE` = none.

    Returns:
        The V voxels: keys int64 [V], ascending; mean positions and colours float32 [V, 3]; int64 [V], the instance of
        most of the points (of equals the lowest, none before any).
    """
    voxels, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    means = [
        np.stack([np.bincount(inverse, values[:, axis], len(voxels)) / counts for axis in range(3)], axis=1)
        for values in (positions, colors)
    ]
    width = int(rows.max(initial=NONE)) + 2
    pairs, votes = np.unique(inverse * width + (rows + 1), return_counts=True)
    # The last of equal voxels wins, so the best one has to come last.
    order = np.lexsort((-(pairs % width), votes, pairs // width))
    winners = np.full(len(voxels), NONE, dtype=np.int64)
    winners[pairs[order] // width] = pairs[order] % width - 1
    return voxels, means[0].astype(np.float32), means[1].astype(np.float32), winners
