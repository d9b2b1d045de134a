"""Evaluation of scene segmentation over sequences of labelled frames."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from ..data.frames import RGBDFrame
from ..data.scannet.scan_mesh import ScanMesh
from ..labels import NONE, raw_id_to_index, thing_classes
from ..scenes.session import SceneSession
from ..scenes.voxel_map import SceneMap, frame_voxels, voxel_keys
from .open_vocabulary import OpenVocabulary
from .scene_average_precision import SceneAveragePrecision, masks_at_vertices, vote_segments


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..modeling_bifusion import BiFusionForInstanceSegmentation
    from ..processing_bifusion import BiFusionProcessor

# About the spacing of the vertices of ScanNet's meshes.
TRUTH_VOXEL_SIZE = 0.02
POINTS = f"one for each voxel of {TRUTH_VOXEL_SIZE:g} m that the frames saw"
VERTICES = "vertices of the scan's mesh, masks voted by segment"
# Metres; half of the points of frames in the mesh's world lie within a few centimetres of a vertex.
MAX_MESH_DISTANCE = 0.1


class SceneTruth:
    """Ground truth of a scene from the labels of its frames: one point for each voxel that they saw.

    A voxel belongs to the object to which most of its frames give it; its class is the one that most of the object's
    pixels have.

    Args:
        processor: Says which classes have instances, and their labels.
        voxel_size: Metres.
    """

    def __init__(self, processor: "BiFusionProcessor", voxel_size: float = TRUTH_VOXEL_SIZE):
        self.processor = processor
        self.map = SceneMap(voxel_size)
        self._classes: dict[int, Counter[int]] = {}

    def instance_map(self, frame: RGBDFrame) -> np.ndarray:
        """int [H, W], ids of the things of a frame where it was measured, -1 = void.

        Raises:
            ValueError: The frame has no instance labels.
        """
        if frame.instance is None:
            raise ValueError(f"{frame.frame_id}: no instance labels; expected them for evaluation")
        instance = np.where(frame.depth > 0, frame.instance, NONE)
        if frame.semantic is not None:
            processor = self.processor
            things = thing_classes(
                frame.semantic, processor.num_semantic_labels, processor.stuff_classes, processor.class_to_label
            )
            instance = np.where(things >= 0, instance, NONE)
        return instance

    def add(self, frame: RGBDFrame) -> tuple[np.ndarray, np.ndarray]:
        """Adds a frame.

        Returns:
            Its `instance_map` where it was measured, int [N]; and the voxel of each of these pixels, int64 [N].
        """
        measured = frame.depth > 0
        positions = frame.unproject(np.flatnonzero(measured))
        instance = self.instance_map(frame)[measured]
        keys = voxel_keys(positions, self.map.voxel_size)
        voxels, places, colors, rows = frame_voxels(
            keys, positions, frame.image[:1, :1].repeat(len(keys), 0)[:, 0], instance
        )
        self.map.add(voxels, places, colors, rows)
        classes = np.zeros_like(instance) if frame.semantic is None else frame.semantic[measured]
        pairs, counts = np.unique(np.stack([instance, classes], axis=1), axis=0, return_counts=True)
        for (index, name), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            if index >= 0:
                self._classes.setdefault(index, Counter())[name] += count
        return instance, keys

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [V], instance 0..M-1 of each voxel of the map, -1 = void; and int64 [M], label of each."""
        owners, _ = self.map.owners()
        used = np.unique(owners[owners >= 0])
        classes = np.array([self._classes[index].most_common(1)[0][0] for index in used.tolist()], dtype=np.int64)
        labels = np.zeros_like(classes)
        if self.processor.class_to_label is not None:
            labels = np.asarray(self.processor.class_to_label, dtype=np.int64)[classes]
        return np.where(owners >= 0, np.searchsorted(used, owners), NONE), labels


class SceneEvaluator:
    """Measures scenes, frame by frame.

    Args:
        processor: Of the network.
        class_agnostic: Leave the labels of a class-aware network out.
        include_95: See `InstanceAveragePrecision`.
        min_points: Smallest object that takes part, in voxels of 2 cm.
        vocabulary: Names the objects by text; the session has its labeler.
        masks: What an object's mask is: `"votes"`, the voxels that it owns in the session's map; `"union"`, all that
            one of its views covered, so that masks may overlap.
    """

    def __init__(
        self,
        processor: "BiFusionProcessor",
        *,
        class_agnostic: bool = False,
        include_95: bool = False,
        min_points: int = 100,
        masks: str = "votes",
        vocabulary: OpenVocabulary | None = None,
    ):
        if masks not in ("votes", "union"):
            raise ValueError(f"masks is {masks!r}; expected 'votes' or 'union'")
        if vocabulary is not None:
            processor = vocabulary.processor
        names = processor.label_names
        self.processor, self.masks, self.min_points = processor, masks, min_points
        self.vocabulary = vocabulary
        names = None if class_agnostic or len(names) == 1 else names
        self.metric = SceneAveragePrecision(names, min_points, include_95=include_95)
        self.on_mesh = False

    def run(self, session: SceneSession, frames: Iterable[RGBDFrame], mesh: ScanMesh | None = None) -> None:
        """Adds a scene: resets the session, gives it the frames in their order and measures its objects.

        Args:
            session: Of the network.
            frames: Of the scene.
            mesh: Measure over its vertices, as ScanNet's benchmark does: each takes the masks of the nearest point of
                the frames, and a segment belongs to a mask with more than half of its vertices. None = the points.

        Raises:
            ValueError: A frame has no pose or no labels, or is malformed; or the frames do not lie on the mesh.
        """
        session.reset()
        truth, covered = SceneTruth(self.processor), {}
        for frame in frames:
            result = session.update(frame)
            instance, keys = truth.add(frame)
            found = result["segmentation"][frame.depth > 0]
            self.metric.identity.update(found, instance)
            if self.masks == "union":
                for index in np.unique(found[found >= 0]).tolist():
                    covered.setdefault(index, []).append(np.unique(keys[found == index]))
        self.metric.identity.end_scene()
        ids = session.ids_at(truth.map.positions)
        objects = session.objects(min_points=0)
        masks = np.zeros((len(objects), len(ids)), dtype=bool)
        for row, item in enumerate(objects):
            if self.masks == "votes":
                masks[row] = ids == item.id
            else:
                masks[row, truth.map.find(np.concatenate(covered[item.id]))] = True
        scores = [item.score for item in objects]
        if self.masks == "union":
            # The score of an object counts the votes that masks of their own do not take part in.
            scores = session.bank["scores"][session.bank.rows(np.array([item.id for item in objects], dtype=np.int64))]
        truth_ids, truth_labels = truth.labels()
        if mesh is not None:
            masks = on_mesh(truth.map.positions, masks, mesh)
            found = self.processor.point_labels(mesh.labels.instance, raw_id_to_index(mesh.labels.raw_ids))
            truth_ids, truth_labels = found["instance"], found["class_labels"]
        self.on_mesh = mesh is not None
        labels = [item.label_id for item in objects]
        if self.vocabulary is not None:
            labels = self.vocabulary.name_objects(session, [item.id for item in objects])
        self.metric.update(masks, scores, labels, truth_ids, truth_labels)

    def compute(self, extra_protocol: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The result in the form that `evaluation.results` describes, with `"identity"`."""
        results = self.metric.compute()
        agnostic = self.metric.metrics["class_agnostic"]
        results["protocol"] = {
            "num_scenes": agnostic.num_frames,
            "points": VERTICES if self.on_mesh else POINTS,
            "masks": self.masks,
            "min_points": self.min_points,
            "iou_thresholds": [round(float(threshold), 2) for threshold in agnostic.thresholds],
            **(extra_protocol or {}),
        }
        return results


def on_mesh(points: np.ndarray, masks: np.ndarray, mesh: ScanMesh) -> np.ndarray:
    """Masks over the points of a scene as whole segments of its mesh.

    Args:
        points: float [P, 3] metres.
        masks: bool [K, P].
        mesh: Of the scan.

    Returns:
        bool [K, V].

    Raises:
        ValueError: The points do not lie on the mesh.
    """
    distance = float(np.median(cKDTree(mesh.vertices).query(points)[0]))
    if distance > MAX_MESH_DISTANCE:
        raise ValueError(
            f"the points of the frames lie {distance:.2f} m from the vertices of the mesh (median); expected at most "
            f"{MAX_MESH_DISTANCE} m: another scan, or frames whose poses were turned by the scan's axisAlignment"
        )
    return vote_segments(masks_at_vertices(points, masks, mesh.vertices), mesh.segments)


def evaluate_scenes(
    model: "BiFusionForInstanceSegmentation",
    processor: "BiFusionProcessor",
    scenes: Mapping[str, Iterable[RGBDFrame]],
    *,
    masks: str | None = None,
    class_agnostic: bool = False,
    include_95: bool = False,
    min_points: int = 100,
    meshes: Mapping[str, ScanMesh] | None = None,
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    vocabulary: OpenVocabulary | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measures a network on whole scenes.

    With several processes each takes its own scenes, and the metrics are exchanged.

    Args:
        model: In eval mode, on its device.
        processor: Of the model.
        scenes: Frames of each scene, with poses and with labels whose ids are the same in all of them.
        masks: Of `SceneEvaluator`; None = `"union"` without merging, else `"votes"`.
        class_agnostic: Leave the labels of a class-aware network out.
        include_95: See `InstanceAveragePrecision`.
        min_points: Of `SceneEvaluator`.
        meshes: The mesh of each scene, of `SceneEvaluator.run`; None = measure over the points of the frames.
        accelerator: Of the run; None = this process alone.
        progress: Show a bar on the main process.
        vocabulary: Names the objects by text.
        settings: Of `SceneSession`.

    Raises:
        ValueError: A frame has no pose or no labels, or a setting does not fit.
    """
    labeler = None if vocabulary is None else vocabulary.labeler
    session = SceneSession(model, processor, keep_frames=False, labeler=labeler, **settings)
    masks = masks or ("union" if session.merging.name == "none" else "votes")
    options = {"class_agnostic": class_agnostic, "include_95": include_95, "min_points": min_points, "masks": masks}
    evaluator = SceneEvaluator(processor, vocabulary=vocabulary, **options)
    names = list(scenes)
    if accelerator is not None:
        names = names[accelerator.process_index :: accelerator.num_processes]
    show = progress and (accelerator is None or accelerator.is_main_process)
    for name in tqdm(names, disable=not show, unit="scene"):
        evaluator.run(session, scenes[name], None if meshes is None else meshes[name])
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        metrics = gather_object([evaluator.metric])
        evaluator.metric, evaluator.on_mesh = metrics[0], meshes is not None
        for other in metrics[1:]:
            evaluator.metric.merge(other)
    return evaluator.compute(
        {
            "points_per_frame": processor.num_points,
            "merging": session.merging.name,
            "score_threshold": session.threshold,
            "voxel_size": session.voxel_size,
            "max_objects": session.max_objects,
            **({} if vocabulary is None else {**vocabulary.protocol, "views_per_object": session.views_per_object}),
        }
    )
