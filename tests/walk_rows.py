"""Frames of the package's sample as sequences: rooms of four views, with the boxes of the objects that they show."""

import datasets
import numpy as np

from bifusion_hf.data.frames import encode_png16, frame_from_row, load_frames, sequence_features


VIEWS = 4
# Pixels of a side of a superpoint; to find real ones takes longer than all else that becomes of a frame.
BLOCK = 16


def walk_rows(scenes=2, split="train"):
    """Rows of `sequence_features()`."""
    rows = [dict(row) for row in load_frames("sample", split).select(range(scenes * VIEWS))]
    height, width = 240, 320
    squares = np.arange(height)[:, None] // BLOCK * (width // BLOCK) + np.arange(width) // BLOCK
    for scene in range(scenes):
        views = rows[scene * VIEWS : (scene + 1) * VIEWS]
        seen = {}
        for row in views:
            frame = frame_from_row(row)
            points = frame.unproject()
            for name in np.unique(frame.instance[(frame.instance >= 0) & (frame.depth > 0)]).tolist():
                seen.setdefault(name, []).append(points[(frame.instance == name) & (frame.depth > 0)])
        clouds = {name: np.concatenate(parts) for name, parts in seen.items()}
        boxes = [[*cloud.min(axis=0), *cloud.max(axis=0)] for cloud in clouds.values()]
        for row in views:
            row.update(scene_id=f"room {scene}", object_ids=list(clouds), object_boxes=np.array(boxes).tolist())
            row["superpoints"] = encode_png16(squares + 1)
    return rows


def walk_data(scenes=2, split="train"):
    """The rows as `load_frames` gives them."""
    data = datasets.Dataset.from_list(walk_rows(scenes, split), features=sequence_features())
    for column in ("image", "depth", "instance", "semantic", "superpoints"):
        data = data.cast_column(column, datasets.Image(decode=False))
    return data


def write_walks(folder, scenes=2):
    """A data set of such rows, `train` and `val`."""
    (folder / "data").mkdir(parents=True)
    for split in ("train", "val"):
        data = datasets.Dataset.from_list(walk_rows(scenes, split), features=sequence_features())
        data.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder
