"""Class-aware evaluation of a class-agnostic network whose instances are named by text."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.frames import frame_from_row
from ..labeling import TextLabeler, read_labels
from ..labels import NONE
from ..postprocessing import pixel_masks
from .evaluator import FramePrediction


if TYPE_CHECKING:
    from pathlib import Path

    from ..processing_bifusion import BiFusionProcessor
    from ..scenes.session import SceneSession


class OpenVocabulary:
    """Classes of the data as candidate labels, and the labeler that chooses among them.

    Every instance gets its best label, whatever its score, and keeps the score of the network: average precision ranks
    by how sure the mask is.

    Attributes: `processor`, one whose labels are the candidates, for the ground truth; `protocol`, entries for a
    result.

    Args:
        labeler: Names the instances.
        candidate_labels: See `labeling.read_labels`; each is the name of a class that has instances. Instances of
            other classes are void.
        processor: Of the network.
        class_names: Names of the data's classes.
        compare_semantics: The numbers of the network's semantic classes mean the same as the data's; else its semantic
            predictions are left out.

    Raises:
        ValueError: The network has classes of its own, or a label is no class of the data.
    """

    def __init__(
        self,
        labeler: TextLabeler,
        candidate_labels: "str | Path | Sequence[str]",
        processor: "BiFusionProcessor",
        class_names: Mapping[int, str],
        *,
        compare_semantics: bool = True,
    ):
        if processor.class_to_label is not None:
            raise ValueError("the network has classes of its own; naming by text needs a class-agnostic one")
        self.labeler, self.labels = labeler, read_labels(candidate_labels)
        self.compare_semantics = compare_semantics
        classes = {name: index for index, name in class_names.items() if index not in processor.stuff_classes}
        unknown = [name for name in self.labels if name not in classes]
        if unknown:
            raise ValueError(
                f"candidate_labels has {unknown[:5]}, which are no classes of the data that have instances; expected "
                f"some of {', '.join(list(classes)[:5])}, ..."
            )
        self.processor = copy.deepcopy(processor)
        self.processor.label_names = self.labels
        self.processor.num_semantic_labels = len(class_names)
        self.processor.class_to_label = [NONE] * len(class_names)
        for label, name in enumerate(self.labels):
            self.processor.class_to_label[classes[name]] = label
        named = isinstance(candidate_labels, str) and candidate_labels == "scannet200"
        self.protocol = {
            "candidate_labels": candidate_labels if named else self.labels,
            "labeler": {**labeler.settings, "templates": list(labeler.templates)},
            "names": "the best label of each instance, whatever its score; ranked by the score of the network",
        }

    def best(self, features: np.ndarray) -> np.ndarray:
        """int64 [K], the label of each of features [K, D]."""
        if not len(features):
            return np.zeros(0, dtype=np.int64)
        return self.labeler.scores(features, self.labels)[0].argmax(axis=1)

    def namer(self, rows: Any) -> Callable[[FramePrediction, Mapping[str, Any]], FramePrediction]:
        """What `evaluate_model` takes as `name_instances`.

        Args:
            rows: Of `load_frames`, not streamed: the frames whose images are looked at.

        Raises:
            ValueError: Two frames have one name.
        """
        names = list(rows["frame_id"])
        places = {name: row for row, name in enumerate(names)}
        if len(places) < len(names):
            raise ValueError(f"{len(names) - len(places)} frames have the name of another")

        def name(prediction: FramePrediction, points: Mapping[str, Any]) -> FramePrediction:
            image = frame_from_row(rows[places[prediction.frame_id]]).image
            return self.name_prediction(prediction, image, points)

        return name

    def name_prediction(
        self, prediction: FramePrediction, image: np.ndarray, points: Mapping[str, Any]
    ) -> FramePrediction:
        """A prediction with the labels of its instances.

        Args:
            prediction: Of a frame.
            image: uint8 [Hc, Wc, 3] RGB of the frame.
            points: Of `unpad_frames`.

        Raises:
            ValueError: The frame's points do not come from a depth image.
        """
        if points["superpoint_map"] is None:
            raise ValueError(f"{prediction.frame_id}: its points have no depth image, so its masks have no pixels")
        masks = pixel_masks(
            torch.from_numpy(prediction.masks),
            points["superpoint_ids"],
            points["pixel_indices"],
            points["superpoint_map"],
        ).numpy()
        return replace(
            prediction,
            labels=self.best(self.labeler.instance_features(image, masks)),
            semantic=prediction.semantic if self.compare_semantics else None,
        )

    def name_objects(self, session: "SceneSession", ids: Sequence[int]) -> list[int]:
        """The label of each object of a session that has this labeler; 0 for one that no frame showed."""
        found, features = session.views.mean(ids)
        labels = dict(zip(found.tolist(), self.best(features).tolist(), strict=True))
        return [labels.get(index, 0) for index in ids]
