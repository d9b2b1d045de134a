"""Names by an image-text model on the instances that the network found, by the package's own path."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bifusion_hf import RGBDFrame, SceneSession
from bifusion_hf.data.frames import load_frames
from bifusion_hf.data.recordings.rows import RowScenes
from bifusion_hf.evaluation.scene_evaluator import SceneTruth
from bifusion_hf.labeling import TextLabeler, read_labels
from bifusion_hf.labels import SCANNET200_CLASS_NAMES
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline

from .matching import FOUND_IOU, Named, found_instances, shares
from .small_clip import TEMPLATES
from .speed import seconds


LABELS = "scannet200"
SCENE_VOXEL = 0.04


def measure(
    segmenter: RGBDInstanceSegmentationPipeline,
    model: str,
    frames: Sequence[RGBDFrame],
    scenes: str | None = None,
    scene_limit: int | None = None,
) -> dict[str, Any]:
    """Shares of right names, and times.

    Args:
        segmenter: Finds the instances.
        model: Of the labelers.
        frames: With labels.
        scenes: Data set of walks, for one view against several.
        scene_limit: First scenes only.
    """
    labelers = {
        "crops": TextLabeler(model, mode="crops", templates=TEMPLATES, none_texts=()),
        "dense": TextLabeler(model, mode="dense", templates=TEMPLATES, none_texts=()),
    }
    encoder = labelers["dense"].encoder
    side = encoder.image_size
    labelers["dense, at the model's own size"] = TextLabeler(
        encoder, mode="dense", dense_size=side, templates=TEMPLATES, none_texts=()
    )
    named: dict[str, list[Named]] = {name: [] for name in ("semantic head", *labelers)}
    for frame in frames:
        result = segmenter(frame)
        pairs = list(found_instances(frame, result))
        masks = np.array([result["segmentation"] == segment["id"] for segment, _ in pairs], dtype=bool)
        for segment, truth in pairs:
            named["semantic head"].append(Named(truth, segment["semantic_label"], segment["semantic_probability"]))
        for name, labeler in labelers.items():
            features = labeler.instance_features(frame.image, masks)
            for (_, truth), found in zip(pairs, labeler.label(features, LABELS, 1), strict=True):
                named[name].append(Named(truth, found["label"], found["score"]))
    counts = Counter(item.truth for item in named["semantic head"])
    content: dict[str, Any] = {
        "protocol": {
            "found": f"pipeline's instances above 0.5 with an IoU above {FOUND_IOU} over the measured pixels",
            "labels": f"{LABELS}, {len(read_labels(LABELS))} of them, the best one whatever its score",
            "templates": list(TEMPLATES),
        },
        "frames": {
            "chance": {
                "any of the labels": 1 / len(read_labels(LABELS)),
                "always the most frequent class": max(counts.values(), default=0) / max(sum(counts.values()), 1),
            },
            **{name: shares(items) for name, items in named.items()},
        },
        "seconds": {name: seconds(labeler, frames[0]) for name, labeler in labelers.items()},
    }
    if scenes is not None:
        rows = RowScenes(scenes, load_frames(scenes, "val"), scene_limit)
        content["scenes"] = _scenes(segmenter, labelers["crops"], rows)
    return content


def _scenes(segmenter: RGBDInstanceSegmentationPipeline, labeler: TextLabeler, scenes: RowScenes) -> dict[str, Any]:
    """Names of whole scenes' objects by their best view, and by up to three."""
    named: dict[str, list[Named]] = {"semantic head": [], "1 view": [], "3 views": []}
    for scene in scenes:
        sessions = {
            count: SceneSession(
                segmenter.model,
                segmenter.processor,
                voxel_size=SCENE_VOXEL,
                labeler=labeler,
                views_per_object=count,
                keep_frames=False,
            )
            for count in (1, 3)
        }
        truth = SceneTruth(segmenter.processor)
        classes: dict[int, Counter[int]] = {}
        for frame in scenes[scene]:
            for session in sessions.values():
                session.update(frame)
            instance, _ = truth.add(frame)
            semantic = frame.semantic[frame.depth > 0]
            for index in np.unique(instance[instance >= 0]).tolist():
                classes.setdefault(index, Counter()).update(semantic[instance == index].tolist())
        owners = truth.map.owners()[0]
        for count, session in sessions.items():
            ids, labels = session.ids_at(truth.map.positions), session.label(LABELS, 1)
            for item in session.objects():
                mask = ids == item.id
                counts = np.bincount(owners[mask & (owners >= 0)], minlength=1)
                best = int(counts.argmax())
                union = np.count_nonzero(mask | (owners == best))
                if not counts[best] > FOUND_IOU * union or item.id not in labels:
                    continue
                name = SCANNET200_CLASS_NAMES[classes[best].most_common(1)[0][0]]
                found = labels[item.id]
                named["1 view" if count == 1 else "3 views"].append(Named(name, found["label"], found["score"]))
                if count == 1:
                    named["semantic head"].append(Named(name, item.semantic_label, item.semantic_probability))
    return {name: shares(items) for name, items in named.items()}
