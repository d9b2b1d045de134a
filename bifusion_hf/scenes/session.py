"""A scene from posed frames, one at a time: the segmentation of each with ids that persist, and the objects so far."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.augmentation import resize_image
from ..data.frames import NONE, RGBDFrame
from ..io.sanity import check_fraction
from ..labeling import TextLabeler
from ..layers.frame_batch import FORWARD_INPUTS
from ..layers.frame_memory import FrameMemory
from ..postprocessing import describe_class
from .merging import (
    STRATEGIES,
    CoveredObjects,
    FrameInstances,
    LearnedMerging,
    Merging,
    ObjectBank,
    choose_merging,
)
from .objects import SceneMatch, SceneObject
from .storage import read_scene, write_scene
from .taken_frames import TakenFrames
from .view_features import ViewFeatures
from .voxel_map import SceneMap, frame_voxels, voxel_keys


if TYPE_CHECKING:
    from ..modeling_bifusion import BiFusionForInstanceSegmentation
    from ..processing_bifusion import BiFusionProcessor

# Arguments of a session that it keeps under their names.
SAVED_SETTINGS = (
    "threshold",
    "max_instances",
    "voxel_size",
    "max_objects",
    "memory",
    "keep_frames",
    "views_per_object",
)


# New objects after which those are forgotten that no frame can find again.
LOOK_FOR_LOST_AFTER = 500


class SceneSession:
    """Merges the instances of posed frames into the objects of one scene.

    ```python
    session = SceneSession(model, processor)
    for frame in frames:                    # RGBDFrame with camera_to_world, in any order
        result = session.update(frame)      # result["segmentation"] has ids that stay
    for item in session.objects():
        print(item.id, item.label, item.score, item.num_views, item.box_3d, len(item.points))
    ```

    Attributes: `frame_ids`, of the frames taken in; `notes`, a dict for what the caller wants `save` to keep with the
    scene, as JSON; `bank` and `map`, what is known of objects and voxels.

    What is kept is the objects' means, a map of voxels with votes for their owners, and each frame's small map of ids:
    no mask over all points. The time of an update does not depend on the number of frames before it.

    Args:
        model: A network in eval mode, on its device.
        processor: Of the model.
        merging: `"learned"` (for a network with a box head and a merge head), `"geometric"` (any network), `"none"`,
            one of the strategies of `scenes.merging` with other settings, or None: learned where the heads are there.
        threshold: Instances of a frame need a higher score to enter the scene.
        max_instances: Of a frame; None = the processor's, or 20 as in the original with learned merging.
        voxel_size: Metres, of the map.
        max_objects: Above this number the scene forgets those of fewest views, the lower score first.
        memory: Of a network with frame adapters: `"scene"` remembers all frames, `"frame"` is reset at every frame, as
            the original's streaming demonstration does.
        keep_frames: Keep each frame's map of ids for `frame_segmentation`, a few KB each.
        labeler: Keep for each object the image-text features of its most visible views, for `find` and `label`. They
            are stored with the session.
        views_per_object: So many views.

    Raises:
        ValueError: An unknown strategy, learned merging without the heads, or a processor that enlarges frames for a
            network that compares them.
    """

    def __init__(
        self,
        model: "BiFusionForInstanceSegmentation",
        processor: "BiFusionProcessor",
        *,
        merging: str | Merging | None = None,
        threshold: float = 0.3,
        max_instances: int | None = None,
        voxel_size: float = 0.04,
        max_objects: int = 2000,
        memory: str = "scene",
        keep_frames: bool = True,
        labeler: TextLabeler | None = None,
        views_per_object: int = 3,
    ):
        self.model, self.processor = model, processor
        self.merging = choose_merging(merging, model.config)
        check_fraction("threshold", threshold)
        if not voxel_size > 0:
            raise ValueError(f"voxel_size is {voxel_size}; expected metres above 0")
        if views_per_object < 1:
            raise ValueError(f"views_per_object is {views_per_object}; expected at least 1")
        if max_objects < 1:
            raise ValueError(f"max_objects is {max_objects}; expected at least 1")
        if memory not in ("scene", "frame"):
            raise ValueError(f"memory is {memory!r}; expected 'scene' or 'frame'")
        if processor.reference_depth and (self._has_adapters or isinstance(self.merging, LearnedMerging)):
            raise ValueError(
                f"the processor's reference_depth is {processor.reference_depth}; frame adapters and learned merging "
                "compare frames in metres, so expected 0"
            )
        self.memory = memory
        if max_instances is None and isinstance(self.merging, LearnedMerging):
            max_instances = 20
        self.threshold, self.max_instances = float(threshold), max_instances
        self.voxel_size, self.max_objects, self.keep_frames = float(voxel_size), int(max_objects), keep_frames
        self.labeler, self.views_per_object = labeler, int(views_per_object)
        self.reset()

    def reset(self) -> None:
        """Forgets the scene."""
        self.bank = ObjectBank()
        self.map = SceneMap(self.voxel_size)
        self.frame_memory = FrameMemory() if self._has_adapters and self.memory == "scene" else None
        self._frames = TakenFrames()
        self.notes: dict[str, Any] = {}
        self.views = ViewFeatures(self.views_per_object)
        # Settings of the labeler that made them, in a session that was loaded without it.
        self._made_with: dict[str, Any] | None = None

    @property
    def _has_adapters(self) -> bool:
        return getattr(getattr(self.model.config, "point_config", None), "use_frame_adapters", False)

    @property
    def frame_ids(self) -> list[str]:
        """Names of the frames taken in."""
        return self._frames.ids

    @property
    def num_frames(self) -> int:
        """Frames taken in."""
        return len(self.frame_ids)

    @property
    def poses(self) -> np.ndarray:
        """float64 [F, 4, 4], camera to world of the frames."""
        return self._frames.poses

    def update(self, frame: RGBDFrame) -> dict[str, Any]:
        """Takes a frame in.

        Args:
            frame: With a pose.

        Returns:
            A dict of numpy arrays: `segmentation` int32 [H, W] of the depth image, ids of objects, -1 = none;
            `segments_info` as of the processor with these ids, the object's `name` so far, `num_views` and `is_new`;
            for the K instances `ids` int64, `point_masks` bool [K, N], `scores`, `labels`; for the N points `points`
            float32 [N, 3] metres of the world and `pixel_indices` int64.

        Raises:
            ValueError: The frame has no pose, or is malformed; the message names it. The session is as it was.
        """
        if not isinstance(frame, RGBDFrame):
            raise ValueError(f"frame is a {type(frame).__name__}; expected an RGBDFrame")
        if frame.camera_to_world is None:
            raise ValueError(
                f"{frame.frame_id}: camera_to_world is None; a scene needs the pose of each frame, [4, 4] camera to "
                "world"
            )
        # A frame may have been changed after it was checked.
        frame = replace(frame)
        result, instances, frame_memory = self._predict(frame)
        measured = frame.depth > 0
        positions = frame.unproject(np.flatnonzero(measured))
        colors = resize_image(frame.image, frame.depth.shape)[measured]
        voxels = frame_voxels(
            voxel_keys(positions, self.voxel_size), positions, colors, result["segmentation"][measured]
        )
        keys, *_, rows = voxels
        known = self.map.find(keys)
        owners, _ = self.map.owners(known[known >= 0])
        covered = CoveredObjects.count(owners, rows[known >= 0], len(instances))
        objects = self.merging.match(self.bank, instances, covered)
        views = self._view_features(frame, result["segmentation"], objects)

        # From here on nothing can fail.
        next_id = self.bank.next_id
        self.frame_memory = frame_memory
        ids = self.bank.merge(instances, objects)
        self.map.add(*voxels[:3], _look_up(ids, rows))
        for row, pixels, feature in views:
            self.views.add(int(ids[row]), pixels, feature)
        result["segmentation"] = _look_up(ids, result["segmentation"]).astype(np.int32)
        result["ids"] = ids
        places = self.bank.rows(ids)
        for segment in result["segments_info"]:
            row = segment["id"]
            segment.update(
                id=int(ids[row]),
                num_views=int(self.bank["views"][places[row]]),
                is_new=bool(objects[row] < 0),
                **self._semantic_entries(places[row], segment["label"]),
            )
        kept = result["segmentation"] if self.keep_frames else None
        self._frames.add(frame.frame_id, frame.camera_to_world, kept)  # type: ignore[arg-type]
        if next_id // LOOK_FOR_LOST_AFTER < self.bank.next_id // LOOK_FOR_LOST_AFTER:
            self._forget_lost(ids)
        self._forget_weakest(ids)
        return result

    def _view_features(
        self, frame: RGBDFrame, segmentation: np.ndarray, objects: np.ndarray
    ) -> list[tuple[int, int, np.ndarray]]:
        """Row, pixels and feature of the instances of a frame whose object is seen better than in earlier ones."""
        if self.labeler is None:
            return []
        counts = np.bincount(segmentation[segmentation >= 0], minlength=len(objects))
        rows = [row for row, index in enumerate(objects.tolist()) if self.views.wanted(index, int(counts[row]))]
        masks = np.array([segmentation == row for row in rows], dtype=bool)
        features = self.labeler.instance_features(frame.image, masks)
        return [(row, int(counts[row]), feature) for row, feature in zip(rows, features, strict=True)]

    def _semantic_entries(self, place: int, label: str) -> dict[str, Any]:
        """The entries of `describe_class` for the object in a row of the bank; without a semantic head the label."""
        names, values = self.model.config.semantic_id2label, self.bank["semantics"][place]
        if names is None or not len(values):
            return {"name": label}
        label_tells = len(self.model.config.id2label) > 1
        return describe_class(values, names, label, self.processor.name_threshold, label_tells=label_tells)

    @torch.no_grad()
    def _predict(self, frame: RGBDFrame) -> tuple[dict[str, Any], FrameInstances, FrameMemory | None]:
        """What the network finds in a frame.

        Returns:
            The result with rows for ids, the instances for merging, and the network's memory with this frame.
        """
        batch = self.processor.collate([self.processor.prepare_frame(frame)])
        if self._has_adapters:
            # Frames meet in the memory's voxels, so all have the world's coordinates, as the original's online mode.
            batch["points"] = batch["points"] + batch["point_offsets"][:, None]
            batch["point_offsets"] = torch.zeros_like(batch["point_offsets"])
        device = self.model.device
        inputs = {name: batch[name].to(device) for name in FORWARD_INPUTS if name in batch}
        if self.frame_memory is not None:
            inputs["frame_memory"] = self.frame_memory
        outputs = self.model(**inputs, score_threshold=self.threshold)
        settings = {} if self.max_instances is None else {"max_instances": self.max_instances}
        result = self.processor.post_process_instance_segmentation(
            outputs, batch, threshold=self.threshold, label_names=self.model.config.id2label, **settings
        )[0]
        queries, masks = result.pop("queries"), result["point_masks"]
        points = batch["points"][0] / batch["point_scales"][0] + batch["point_offsets"][0]
        if self.merging.visible_only:
            kept = torch.tensor([segment["id"] for segment in result["segments_info"]], dtype=torch.int64)
            queries, masks = queries[kept], masks[kept]
            result.update({name: result[name][kept] for name in ("point_masks", "scores", "labels", "num_parts")})
            result["segmentation"] = _rows_of(kept, result["segmentation"])
            for row, segment in enumerate(result["segments_info"]):
                segment["id"] = row
        instances = self._instances(outputs, batch, queries, masks, points, result)
        result.update(points=points, pixel_indices=batch["pixel_indices"][0])
        return (
            {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in result.items()},
            instances,
            getattr(outputs, "frame_memory", None),
        )

    def _instances(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        queries: torch.Tensor,
        masks: torch.Tensor,
        points: torch.Tensor,
        result: Mapping[str, Any],
    ) -> FrameInstances:
        on_device = queries.to(outputs.class_queries_logits.device)

        def of_queries(values: torch.Tensor) -> np.ndarray:
            return values[0][on_device].double().cpu().numpy()

        if isinstance(self.merging, LearnedMerging):
            boxes = of_queries(outputs.pred_boxes) + np.tile(batch["point_offsets"][0].double().numpy(), 2)
            features = of_queries(outputs.merge_embeddings)
        else:
            boxes = np.array([_bounds(points[mask]) for mask in masks]).reshape(-1, 6)
            weights = masks.double() / masks.sum(dim=1, keepdim=True).clamp(min=1)
            features = (weights @ outputs.point_features[0].double().cpu()).numpy()
            features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        semantics = np.zeros((len(queries), 0))
        if getattr(outputs, "semantic_queries_logits", None) is not None:
            semantics = self.processor.post_process_mask_classes(outputs, batch, [masks])[0].double().numpy()
        return FrameInstances(
            scores=result["scores"].double().numpy(),
            labels=result["labels"].numpy(),
            boxes=boxes,
            class_logits=of_queries(outputs.class_queries_logits),
            features=features,
            queries=np.zeros((len(queries), 0)),
            semantics=semantics,
        )

    def _forget_weakest(self, protected: np.ndarray) -> None:
        """Brings the number of objects a tenth under its limit where it is above; those of this frame stay."""
        if len(self.bank) <= self.max_objects:
            return
        rank = np.lexsort((self.bank["scores"], self.bank["views"]))
        rank = rank[~np.isin(self.bank["ids"][rank], protected)]
        self._forget(rank[: len(self.bank) - int(0.9 * self.max_objects)])

    def _forget_lost(self, protected: np.ndarray) -> None:
        """Forgets objects that merging by voxels cannot find again; else a place seen again and again would add some.

        An instance across the voxels of other objects makes one of its own each time, which those outvote.
        """
        if self.merging.by_voxels:
            ids = self.bank["ids"]
            self._forget(np.flatnonzero(~np.isin(ids, self.map.voted_for()) & ~np.isin(ids, protected)))

    def _forget(self, rows: np.ndarray) -> None:
        ids = self.bank["ids"][rows]
        self.map.forget(ids)
        self.views.forget(ids)
        self.bank.keep(np.setdiff1d(np.arange(len(self.bank)), rows))

    def objects(self, min_views: int = 1, min_points: int = 1) -> list[SceneObject]:
        """The objects of the scene, the best first.

        Args:
            min_views: Only those found in as many frames.
            min_points: Only those that own as many voxels; 0 gives those that own none any more, too.
        """
        owners, shares = self.map.owners()
        order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[order], np.stack([self._ids(), self._ids() + 1]))
        result = []
        for row, (start, stop) in enumerate(bounds.T):
            if stop - start < min_points or self.bank["views"][row] < min_views:
                continue
            voxels = np.sort(order[start:stop])
            result.append(self._object(row, voxels, float(shares[voxels].sum()) / max(len(voxels), 1)))
        return sorted(result, key=lambda item: -item.score)

    def _ids(self) -> np.ndarray:
        return self.bank["ids"] if len(self.bank) else np.zeros(0, dtype=np.int64)

    def _object(self, row: int, voxels: np.ndarray, share: float) -> SceneObject:
        points = self.map.positions[voxels]
        learned = isinstance(self.merging, LearnedMerging)
        label = int(self.bank["labels"][row] if learned else self.bank["class_logits"][row][:-1].argmax())
        score = float(self.bank["scores"][row])
        semantic = self._semantic_entries(row, self.model.config.id2label[label])
        return SceneObject(
            id=int(self.bank["ids"][row]),
            label_id=label,
            label=self.model.config.id2label[label],
            score=score if learned else score * share,
            box_3d=self.bank["boxes"][row].copy() if learned or len(points) == 0 else _bounds(points),
            num_views=int(self.bank["views"][row]),
            points=points,
            colors=self.map.colors[voxels],
            **{name: value for name, value in semantic.items() if name != "semantic_label_id"},
        )

    def find(self, text: str, top_k: int = 5, min_views: int = 1) -> list[SceneMatch]:
        """The objects that a text fits best, in descending order.

        Args:
            text: What to look for, such as "red mug".
            top_k: Number of objects.
            min_views: Only those found in as many frames.

        Raises:
            ValueError: The session has no labeler, or the text is empty.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected at least 1")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text is {text!r}; expected what to look for")
        labeler, objects = self._needed_labeler(), {item.id: item for item in self.objects(min_views)}
        ids, features = self.views.mean(list(objects))
        if not len(ids):
            return []
        similarities = features @ labeler.text_features([" ".join(text.split())])[0]
        best = np.argsort(-similarities, kind="stable")[:top_k]
        return [SceneMatch(objects[int(ids[row])], float(similarities[row])) for row in best]

    def label(self, candidate_labels: str | Path | Sequence[str], top_k: int = 5) -> dict[int, dict[str, Any]]:
        """The labels of all objects that have views, by id, as `TextLabeler.label` gives them.

        Raises:
            ValueError: The session has no labeler, or the labels are malformed.
        """
        labeler = self._needed_labeler()
        ids, features = self.views.mean(self._ids())
        return dict(zip(ids.tolist(), labeler.label(features, candidate_labels, top_k), strict=True))

    def _needed_labeler(self) -> TextLabeler:
        if self.labeler is None:
            raise ValueError(
                "the session has no labeler, so nothing of its objects was kept that a text compares with; expected "
                "SceneSession(..., labeler=TextLabeler(...)), or the one it was made with in SceneSession.load"
            )
        return self.labeler

    def cloud(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The whole scene, a point for each voxel: positions float32 [V, 3], colours uint8 [V, 3], ids int64 [V]."""
        return self.map.positions.copy(), self.map.colors, self.map.owners()[0]

    def ids_at(self, points: np.ndarray) -> np.ndarray:
        """The object at each of the points [N, 3] in metres of the world, int64 [N], -1 = none or never seen."""
        rows = self.map.find(voxel_keys(points, self.voxel_size))
        return _look_up(self.map.owners()[0], rows)

    def frame_segmentation(self, index: int) -> np.ndarray:
        """The map of ids of a frame, int32 [H, W], as `update` gave it; objects forgotten since are -1.

        Raises:
            ValueError: The session keeps no maps.
        """
        if not self.keep_frames:
            raise ValueError("keep_frames is False; expected True for the maps of the frames")
        segmentation = self._frames.segmentation(index)
        return np.where(np.isin(segmentation, self._ids()), segmentation, NONE)

    def save(self, path: str | Path) -> None:
        """Writes the scene to a `.safetensors` file, whole or not at all."""
        arrays = {
            **{f"bank.{name}": value for name, value in self.bank.state().items()},
            **{f"map.{name}": value for name, value in self.map.state().items()},
            **({} if self.frame_memory is None else _to_arrays("memory.", self.frame_memory.state())),
            **{f"views.{name}": value for name, value in self.views.state().items()},
            **{f"frames.{name}": value for name, value in self._frames.state().items()},
        }
        merging = asdict(self.merging) if is_dataclass(self.merging) else {}
        content = {
            "merging": {"name": self.merging.name, **merging},
            "settings": {name: getattr(self, name) for name in SAVED_SETTINGS},
            "labeler": self._made_with if self.labeler is None else self.labeler.settings,
            "next_id": self.bank.next_id,
            "frame_ids": self.frame_ids,
            "notes": self.notes,
        }
        write_scene(path, arrays, content)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: "BiFusionForInstanceSegmentation",
        processor: "BiFusionProcessor",
        labeler: TextLabeler | None = None,
    ) -> "SceneSession":
        """The session of a file that `save` wrote; it goes on as if it had never stopped.

        Args:
            path: The file.
            model: The network that it was made with.
            processor: Of the model.
            labeler: The one that it was made with, or one for a session that had none.

        Raises:
            DataFileError: The file is missing, damaged, or not of a session.
            ValueError: The network lacks what the session's merging needs, or the labeler is another one.
        """
        arrays, content = read_scene(path)
        merging = dict(content["merging"])
        session = cls(model, processor, merging=STRATEGIES[merging.pop("name")](**merging), **content["settings"])

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        bank = part("bank.")
        if "ids" in bank:
            # Sessions of release 0.1 have none: an object's name then waits for what further frames say.
            bank.setdefault("semantics", np.zeros((len(bank["ids"]), model.config.num_semantic_labels)))
        session.bank = ObjectBank.from_state(content["next_id"], bank)
        session.map = SceneMap.from_state(session.voxel_size, part("map."))
        session.views = ViewFeatures.from_state(session.views_per_object, part("views."))
        session._made_with, session.labeler = content.get("labeler"), labeler
        if labeler is not None and session._made_with not in (None, labeler.settings):
            raise ValueError(f"{path} was made with the labeler {session._made_with}; this one is {labeler.settings}")
        if session.frame_memory is not None:
            device = model.device
            tensors = {name: torch.from_numpy(value).to(device) for name, value in part("memory.").items()}
            session.frame_memory = FrameMemory.from_state(tensors)
        session._frames, session.notes = (
            TakenFrames.from_state(content["frame_ids"], part("frames.")),
            content["notes"],
        )
        return session


def _to_arrays(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {
        prefix + name: value.cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy()
        for name, value in tensors.items()
    }


def _bounds(points: torch.Tensor | np.ndarray) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _look_up(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values of rows, `NONE` for the row `NONE`."""
    return np.append(values, NONE)[rows]


def _rows_of(kept: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
    """A map of rows as a map of places in `kept`, which has all of them."""
    place = torch.full((int(kept.max()) + 2 if len(kept) else 1,), NONE, dtype=segmentation.dtype)
    place[kept] = torch.arange(len(kept), dtype=segmentation.dtype)
    return place[segmentation.long()]
