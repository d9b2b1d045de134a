"""Which instance of a frame is which object of the scene: strategies, and the bank of what is known of each object.

`LearnedMerging` follows the online mode of ESAM (Xu et al., "EmbodiedSAM", ICLR 2025): box IoU times the similarity of
learned features, labels alike, one to one. `GeometricMerging` needs nothing from the network but its masks and point
features, so it serves any checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..data.frames import NONE
from .voxel_map import grown


@dataclass
class FrameInstances:
    """The K instances that a frame found, as merging sees them. float64 arrays.

    Args:
        scores: [K].
        labels: int64 [K].
        boxes: [K, 6] min x, y, z, max x, y, z in metres of the world; those of the box head, or of the points.
        class_logits: [K, C + 1], the last column is "no object".
        features: [K, D]; the merge head's, or the mean of the fused point features, of unit length.
        queries: [K, E], the decoder's, or [K, 0].
        semantics: [K, C], how probable each semantic class is for each, or [K, 0].
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    class_logits: np.ndarray
    features: np.ndarray
    queries: np.ndarray
    semantics: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class CoveredObjects:
    """What the scene already knew of the voxels that a frame sees, for M objects and K instances.

    Args:
        ids: int64 [M], objects that own at least one of these voxels, ascending.
        visible: int64 [M], voxels of each among all those that the frame sees.
        shared: int64 [M, K], voxels of each among those of each instance.
        known: int64 [K], voxels of each instance that were seen before.
    """

    ids: np.ndarray
    visible: np.ndarray
    shared: np.ndarray
    known: np.ndarray

    @classmethod
    def count(cls, owners: np.ndarray, rows: np.ndarray, num_instances: int) -> "CoveredObjects":
        """Counts the voxels of a frame that were seen before.

        Args:
            owners: int64 [V], the object of each, `NONE` = none.
            rows: int64 [V], the frame's instance in each, `NONE` = none.
            num_instances: K.
        """
        ids, place = np.unique(owners[owners >= 0], return_inverse=True)
        shared = np.zeros((len(ids), num_instances), dtype=np.int64)
        of_instance = rows[owners >= 0]
        np.add.at(shared, (place[of_instance >= 0], of_instance[of_instance >= 0]), 1)
        return cls(
            ids=ids,
            visible=np.bincount(place, minlength=len(ids)).astype(np.int64),
            shared=shared,
            known=np.bincount(rows[rows >= 0], minlength=num_instances).astype(np.int64),
        )


class ObjectBank:
    """The objects of a scene: running means over the frames that saw each, in rows.

    `bank[name]` is a column of N rows: `ids` int64, ascending; `views` int64, frames merged into each; `labels` int64,
    that of the first; and the means, as in `FrameInstances`: `scores`, `boxes`, `class_logits`, `features`, `queries`,
    `semantics`.
    """

    MEANS: ClassVar = ("scores", "boxes", "class_logits", "features", "queries", "semantics")

    def __init__(self):
        self.next_id = 0
        self._arrays: dict[str, np.ndarray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self._count]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of each id, int64; all of them are in the bank."""
        return np.searchsorted(self["ids"], ids)

    def merge(self, instances: FrameInstances, objects: np.ndarray) -> np.ndarray:
        """Takes a frame in.

        Args:
            instances: The frame's K instances.
            objects: int64 [K], the object of each, each once, `NONE` = a new one.

        Returns:
            int64 [K], the id of each.
        """
        ids = np.array(objects, dtype=np.int64)
        new = np.flatnonzero(ids < 0)
        ids[new] = self.next_id + np.arange(len(new))
        self.next_id += len(new)
        values = {
            "ids": ids,
            "views": np.ones(len(ids), dtype=np.int64),
            **{field.name: getattr(instances, field.name) for field in fields(instances)},
        }
        old = np.flatnonzero(objects >= 0)
        if len(old):
            rows = self.rows(ids[old])
            views = self._arrays["views"][rows]
            for name in self.MEANS:
                count = views.reshape(-1, *[1] * (values[name].ndim - 1))
                self._arrays[name][rows] = (self._arrays[name][rows] * count + values[name][old]) / (count + 1)
            self._arrays["views"][rows] = views + 1
        count = self._count + len(new)
        for name, value in values.items():
            array = self._arrays.get(name, np.empty((0, *value.shape[1:]), dtype=value.dtype))
            self._arrays[name] = grown(array, count)
            self._arrays[name][self._count : count] = value[new]
        self._count = count
        return ids

    def keep(self, rows: np.ndarray) -> None:
        """Forgets all objects but those of the rows, ascending."""
        self._arrays = {name: array[: self._count][rows] for name, array in self._arrays.items()}
        self._count = len(rows)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that is kept, as arrays."""
        return {name: array[: self._count].copy() for name, array in self._arrays.items()}

    @classmethod
    def from_state(cls, next_id: int, state: Mapping[str, np.ndarray]) -> "ObjectBank":
        """The bank of a `state`."""
        bank = cls()
        bank.next_id = next_id
        bank._arrays = {name: np.array(array) for name, array in state.items()}
        bank._count = len(state["ids"]) if "ids" in state else 0
        return bank


class NoMerging:
    """Every instance of every frame is an object of its own: what the other strategies are measured against."""

    name: ClassVar = "none"
    # Instances that the frame's own map does not show, being hidden by better ones, are left out.
    visible_only: ClassVar = True
    # An object that no voxel votes for is found no more.
    by_voxels: ClassVar = False

    def match(self, bank: ObjectBank, instances: FrameInstances, covered: CoveredObjects) -> np.ndarray:
        """int64 [K], the object of each instance, `NONE` = a new one."""
        return np.full(len(instances), NONE, dtype=np.int64)


@dataclass(frozen=True)
class GeometricMerging:
    """Instances are the objects whose voxels they cover.

    Only voxels that the scene knew before and that the frame sees again count. There, the overlap of an instance and
    an object is the IoU of their voxels; it is multiplied by the cosine of their point features (negatives to 0), and
    pairs are chosen one to one so that the sum is largest. Where an instance meets pieces of several objects the
    votes of the voxels decide in the course of frames.

    Args:
        min_overlap: Pairs need a higher product.
        min_known: Voxels seen before that a pair has to cover together; a few tell nothing.
    """

    min_overlap: float = 0.2
    min_known: int = 5

    name: ClassVar = "geometric"
    visible_only: ClassVar = True
    by_voxels: ClassVar = True

    def match(self, bank: ObjectBank, instances: FrameInstances, covered: CoveredObjects) -> np.ndarray:
        """int64 [K], the object of each instance, `NONE` = a new one."""
        matched = np.full(len(instances), NONE, dtype=np.int64)
        if len(covered.ids) == 0 or len(instances) == 0:
            return matched
        union = covered.visible[:, None] + covered.known - covered.shared
        similarity = covered.shared / union
        similarity *= np.maximum(_cosines(bank["features"][bank.rows(covered.ids)], instances.features), 0)
        similarity[(similarity <= self.min_overlap) | (union < self.min_known)] = 0
        return _assign(similarity, covered.ids, matched)


@dataclass(frozen=True)
class LearnedMerging:
    """The rules of the original online mode, for networks with a box head and a merge head.

    The similarity of an object and an instance is the product of their merge features' dot product and the IoU of
    their boxes, negatives to 0, times whether their labels agree. Pairs are chosen one to one so that the sum is
    largest, and those above 0 are merged.

    Args:
        label_gate: Labels must agree; AutoSeg3D drops this.
    """

    label_gate: bool = True

    name: ClassVar = "learned"
    visible_only: ClassVar = False
    by_voxels: ClassVar = False

    def match(self, bank: ObjectBank, instances: FrameInstances, covered: CoveredObjects) -> np.ndarray:
        """int64 [K], the object of each instance, `NONE` = a new one."""
        matched = np.full(len(instances), NONE, dtype=np.int64)
        if len(bank) == 0 or len(instances) == 0:
            return matched
        # Boxes that do not meet give 0, so only objects near the frame take part.
        low, high = instances.boxes[:, :3].min(axis=0), instances.boxes[:, 3:].max(axis=0)
        near = np.flatnonzero(((bank["boxes"][:, :3] < high) & (bank["boxes"][:, 3:] > low)).all(axis=1))
        similarity = box_iou(bank["boxes"][near], instances.boxes) * (bank["features"][near] @ instances.features.T)
        if self.label_gate:
            similarity *= bank["labels"][near][:, None] == instances.labels
        return _assign(np.maximum(similarity, 0), bank["ids"][near], matched)


STRATEGIES = {kind.name: kind for kind in (NoMerging, GeometricMerging, LearnedMerging)}
Merging = NoMerging | GeometricMerging | LearnedMerging


def choose_merging(merging: str | Merging | None, config: Any) -> Merging:
    """The strategy of a name, or that which fits a network best.

    Args:
        merging: Name, strategy, or None.
        config: Of the network.

    Raises:
        ValueError: The name is unknown, or the network lacks the heads.
    """
    has_heads = getattr(config, "use_box_head", False) and bool(getattr(config, "use_merge_head", None))
    if merging is None:
        merging = "learned" if has_heads else "geometric"
    if isinstance(merging, str):
        if merging not in STRATEGIES:
            raise ValueError(f"merging is {merging!r}; expected one of {', '.join(STRATEGIES)}, or a strategy")
        merging = STRATEGIES[merging]()
    if isinstance(merging, LearnedMerging) and not has_heads:
        raise ValueError(
            "merging 'learned' needs a network with a box head and a merge head (use_box_head, use_merge_head); "
            "'geometric' works with any"
        )
    return merging


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of axis-aligned boxes, float64 [M, K]; boxes [M, 6] and [K, 6] are min x, y, z, max x, y, z."""
    low = np.maximum(first[:, None, :3], second[None, :, :3])
    high = np.minimum(first[:, None, 3:], second[None, :, 3:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    volumes = [np.clip(boxes[:, 3:] - boxes[:, :3], 0, None).prod(axis=1) for boxes in (first, second)]
    union = volumes[0][:, None] + volumes[1] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)
    return first @ second.T / np.maximum(lengths, 1e-12)


def _assign(similarity: np.ndarray, ids: np.ndarray, matched: np.ndarray) -> np.ndarray:
    """`matched` with the ids of the pairs above 0 that the best one-to-one choice out of [M, K] makes."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    good = similarity[rows, columns] > 0
    matched[columns[good]] = ids[rows[good]]
    return matched
