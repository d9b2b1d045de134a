"""Windows of consecutive frames of one scene, in one world and augmented as one, for training the online stage.

Unlike a single frame, a window is not centred: what the frame adapters remember lies in the world's voxels, and at
inference frames have the world's coordinates too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .alignment import alignment_error
from .augmentation import JointAugmentation, Sample
from .collator import FrameProcessor
from .dataset import FrameDataset
from .frames import RGBDFrame, frame_from_row
from .recordings.rows import scenes_of


@dataclass(frozen=True)
class Scene(Sequence):
    """The rows of a scene, in the order of time.

    Args:
        name: Of the scene.
        data: Rows of `load_frames`.
        rows: Which of them.
    """

    name: str
    data: Any
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.data[self.rows[index]]


class Scenes(Sequence):
    """The scenes of a data set of frames with the columns of `sequence_features()`.

    Args:
        data: Rows of `load_frames`.
    """

    def __init__(self, data: Any):
        self._scenes = [Scene(name, data, tuple(rows)) for name, rows in scenes_of(data).items()]

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        return self._scenes[index]


class WindowDataset(FrameDataset):
    """A window of each scene, by scene or by (epoch, scene): consecutive frames from a random start.

    A window goes on with the first frame where the scene ends. Its frames have one augmentation: the same flips,
    rotation, scale, translation and elastic distortion of the world, about the middle of the window, and the same
    flip, crop and colours of the images. Points are drawn for each frame, as are holes and noise of its depth.

    Args:
        scenes: `Scenes`, or a `Mixture` of them.
        processor: Samples the points.
        num_frames: Of a window.
        augmentation: Applied to each window.
        seed: All draws of a sample are from (seed, epoch, scene).
        skip_broken: See `FrameDataset`; one broken frame is enough for a window.

    Raises:
        ValueError: `num_frames` is below 1, or the augmentation has a part that frames of a window cannot share.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        processor: FrameProcessor,
        num_frames: int,
        *,
        augmentation: JointAugmentation | None = None,
        seed: int = 0,
        skip_broken: bool = False,
    ):
        options = {"augmentation": augmentation, "seed": seed, "skip_broken": skip_broken}
        super().__init__(scenes, processor, training=True, **options)
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; expected at least 1")
        for name in ("pose_dropout", "recolor_probability"):
            value = 0.0 if augmentation is None else getattr(augmentation.config, name)
            if value:
                raise ValueError(f"AugmentationConfig: {name} is {value}; expected 0 for windows")
        self.num_frames = num_frames

    def _name(self, row: Scene) -> str:
        return f"scene {row.name!r}"

    def _prepare(self, row: Scene, epoch: int, index: int) -> dict[str, list[Sample]]:
        rng = np.random.default_rng([self.seed, epoch, index])
        start = int(rng.integers(len(row)))
        rows = [row[(start + step) % len(row)] for step in range(self.num_frames)]
        return {"frames": self._window(rows, rng)}

    def _window(self, rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> list[Sample]:
        samples, boxes = [], [_boxes_of(row) for row in rows]
        for row in rows:
            frame = frame_from_row(row)
            if self.augmentation is not None:
                frame = self.augmentation.frame(frame, rng)
            samples.append(_in_the_world(self.processor.prepare_frame(frame, rng), frame))
        # One entry an object: they are the same in all frames of a scene.
        corners = {name: _corners(box) for part in boxes for name, box in (part or {}).items()}
        if self.augmentation is not None:
            samples, corners = _augment(self.augmentation, samples, corners, rng)
        else:
            samples = [{**sample, "alignment_error": alignment_error(sample)} for sample in samples]
        for sample, known in zip(samples, boxes, strict=True):
            sample["query_seed"] = int(rng.integers(2**62))
            if known is not None:
                sample["object_boxes"] = _boxes_around(corners, known, sample)
        return samples


class WindowCollator:
    """`collate_fn` of a DataLoader over `WindowDataset`.

    The batch is that of all frames of its W windows, first the first frame of each window, then the second ones, and
    so on, with `window_frames`, `instance_ids` (list of int64 [M_i]) and, where the rows have them, `object_boxes`
    (list of float32 [M_i, 6]).

    Args:
        processor: Gives the normalisation.
    """

    def __init__(self, processor: FrameProcessor):
        self.processor = processor

    def __call__(self, samples: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
        """A batch; None where all windows were skipped."""
        windows = [sample["frames"] for sample in samples if sample is not None]
        if not windows:
            return None
        frames = [frame for time in zip(*windows, strict=True) for frame in time]
        batch = self.processor.collate(frames)
        batch["window_frames"] = len(windows[0])
        batch["instance_ids"] = [torch.from_numpy(frame["instance_ids"]) for frame in frames]
        lacking = [frame["frame_id"] for frame in frames if "object_boxes" not in frame]
        if not lacking:
            batch["object_boxes"] = [torch.from_numpy(frame["object_boxes"]) for frame in frames]
        elif len(lacking) < len(frames):
            raise ValueError(f"{', '.join(lacking)}: object_boxes is missing; expected in all frames or in none")
        return batch


def _boxes_of(row: Mapping[str, Any]) -> dict[int, np.ndarray] | None:
    """Box [6] of each object of a row by its id; None where the row tells of none."""
    if row.get("object_boxes") is None or row.get("object_ids") is None:
        return None
    boxes = np.asarray(row["object_boxes"], dtype=np.float64).reshape(-1, 6)
    if len(boxes) != len(row["object_ids"]):
        raise ValueError(
            f"{row.get('frame_id')}: object_boxes has {len(boxes)} rows; expected {len(row['object_ids'])}, one for "
            "each of object_ids"
        )
    return dict(zip(row["object_ids"], boxes, strict=True))


def _in_the_world(sample: Sample, frame: RGBDFrame) -> Sample:
    """The sample without its centring, with the ids that its instances have in all frames."""
    if frame.camera_to_world is None:
        raise ValueError(f"{frame.frame_id}: camera_to_world is None; a window needs the pose of each frame")
    if "instance" not in sample:
        raise ValueError(f"{frame.frame_id}: no instance labels; a window needs ids that are the same in all frames")
    # The instances of a sample are numbered in the order of the frame's ids.
    labels = frame.instance.reshape(-1)[sample["pixel_indices"]]
    sample["instance_ids"] = np.unique(labels[sample["instance"] >= 0]).astype(np.int64)
    sample["points"] = sample["points"] + sample["point_offset"]
    sample["point_offset"] = np.zeros_like(sample["point_offset"])
    return sample


def _augment(
    augmentation: JointAugmentation,
    samples: Sequence[Sample],
    corners: Mapping[int, np.ndarray],
    rng: np.random.Generator,
) -> tuple[list[Sample], dict[int, np.ndarray]]:
    """The frames of a window and the corners [8, 3] of its objects' boxes, moved as one cloud."""
    parts = [sample["points"] for sample in samples] + [corners[name].astype(np.float32) for name in corners]
    middle = np.concatenate(parts[: len(samples)]).mean(axis=0)
    world = {
        "points": np.concatenate(parts) - middle,
        "camera_rotation": np.stack([sample["camera_rotation"] for sample in samples]),
    }
    world = augmentation.move_points(world, rng)
    moved = np.split(world["points"] + middle, np.cumsum([len(part) for part in parts])[:-1])
    # The images of a window are flipped, cropped and coloured by the same draws.
    image_seed = int(rng.integers(2**62))
    result = []
    for sample, points, rotation in zip(samples, moved, world["camera_rotation"], strict=False):
        own = np.random.default_rng(image_seed)
        sample = augmentation.move_image({**sample, "points": points, "camera_rotation": rotation}, own)
        sample["alignment_error"] = alignment_error(sample)
        result.append(augmentation.photometric(sample, own))
    return result, dict(zip(corners, moved[len(samples) :], strict=True))


def _corners(box: np.ndarray) -> np.ndarray:
    """The eight corners of a box, float64 [8, 3]."""
    return np.stack(np.meshgrid(*np.stack([box[:3], box[3:]], axis=1)), axis=-1).reshape(8, 3)


def _boxes_around(corners: Mapping[int, np.ndarray], known: Mapping[int, np.ndarray], sample: Sample) -> np.ndarray:
    """Boxes of a frame's instances that enclose their moved corners, float32 [M, 6]."""
    ids = sample["instance_ids"].tolist()
    missing = sorted(set(ids) - set(known))
    if missing:
        raise ValueError(f"{sample['frame_id']}: object_ids has no {missing}; expected all ids of its instances")
    boxes = [np.concatenate([corners[name].min(axis=0), corners[name].max(axis=0)]) for name in ids]
    return np.array(boxes, dtype=np.float32).reshape(-1, 6)
