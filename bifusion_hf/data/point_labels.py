"""Labels of points in the form the losses take."""

from collections.abc import Sequence

import numpy as np

from ..labels import IGNORE, NONE, point_instances_from_labels, thing_classes


def labels_of_points(
    instance: np.ndarray | None,
    semantic: np.ndarray | None,
    num_classes: int,
    stuff_classes: Sequence[int],
    class_to_label: Sequence[int] | None,
    frame_id: str = "frame",
) -> dict[str, np.ndarray]:
    """Labels of points in the form the losses take.

    Points of stuff and points without a class belong to no instance; the rest is renumbered, and an instance has
    the class of its first point.

    Args:
        instance: int [N], -1 = none, or None.
        semantic: int [N], class index, -1 = unlabelled, or None.
        num_classes: Number of semantic classes.
        stuff_classes: Classes that have no instances.
        class_to_label: Instance label of each class, -1 for classes whose instances are left out; None = every
            instance has label 0.
        frame_id: Name used in messages.

    Returns:
        `instance` int64 [N] (-1 = none, else 0..M-1) and `class_labels` int64 [M], `semantic` int64 [N] (-100 =
        ignore); what there are no labels for is left out.

    Raises:
        ValueError: A class is out of range, or instances without classes where labels are not class-agnostic.
    """
    labels = {}
    if semantic is not None:
        if semantic.max(initial=NONE) >= num_classes:
            raise ValueError(f"{frame_id}: semantic has class {semantic.max()}; expected classes below {num_classes}")
        labels["semantic"] = np.where(semantic >= 0, semantic, IGNORE).astype(np.int64)
    if instance is not None:
        if semantic is None and class_to_label is not None:
            raise ValueError(f"{frame_id}: semantic is missing; expected the classes of the instances")
        # Without classes every instance is a thing.
        things = np.zeros_like(instance)
        if semantic is not None:
            things = thing_classes(semantic, num_classes, stuff_classes, class_to_label)
        labels["instance"], classes = point_instances_from_labels(instance, things, stuff_classes=())
        if class_to_label is None:
            labels["class_labels"] = np.zeros_like(classes)
        else:
            labels["class_labels"] = np.asarray(class_to_label, dtype=np.int64)[classes]
    return labels
