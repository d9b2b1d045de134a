"""What is found in one frame, to look at, save and hand on."""

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.augmentation import resize_image
from .data.frames import RGBDFrame
from .import_utils import require_package
from .io.atomic import new_file
from .io.images import save_png
from .visualization import (
    color_by_instance,
    draw_instances,
    instance_color,
    segment_name,
    segments_to_json,
    write_ply,
)


# Entries that are arrays, in the order of their file.
ARRAYS = ("segmentation", "point_masks", "scores", "labels", "queries", "num_parts", "points", "pixel_indices")
# Rows that a notebook's list of segments shows.
_LISTED = 20


class InstanceSegmentation(dict):
    """The instances of a frame: a dict, as the pipeline "rgbd-instance-segmentation" describes it, that can be shown.

    Args:
        values: The entries.
        frame: What they were found in; `frame` of the result.
    """

    def __init__(self, values: Mapping[str, Any], frame: RGBDFrame):
        super().__init__(values)
        self.frame = frame

    def __repr__(self) -> str:
        segments = self["segments_info"]
        shown = ", ".join(f"{segment_name(segment)} {segment['score']:.2f}" for segment in segments[:5])
        more = f" and {len(segments) - 5} more" if len(segments) > 5 else ""
        height, width = self["segmentation"].shape
        return f"<{self.frame.frame_id!r}, {height}x{width}: {len(segments)} segments: {shown}{more}>"

    def plot(self) -> Image.Image:
        """The image with its instances tinted, outlined and labelled."""
        return draw_instances(self.frame.image, self["segmentation"], self["segments_info"])

    def show(self) -> None:
        """Opens the picture: in a notebook below the cell, else in the system's viewer."""
        try:
            from IPython import display, get_ipython
        except ImportError:
            get_ipython = lambda: None  # noqa: E731
        if get_ipython() is None:
            self.plot().show()
        else:
            display.display(self)

    def _repr_html_(self) -> str:
        content = io.BytesIO()
        self.plot().save(content, format="PNG")
        rows = [
            f"<tr><td>{segment['id']}</td><td>{html.escape(str(segment_name(segment)))}</td><td>{segment['score']:.2f}</td>"
            f"<td>{' x '.join(f'{side:.2f}' for side in segment['oriented_box_3d']['size'])}</td></tr>"
            for segment in self["segments_info"][:_LISTED]
        ]
        more = len(self["segments_info"]) - _LISTED
        return (
            f'<img style="max-width:100%" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
            f"<table><tr><th>id</th><th>name</th><th>score</th><th>size in m</th></tr>{''.join(rows)}</table>"
            + (f"<p>and {more} more</p>" if more > 0 else "")
        )

    def colored_points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All measured pixels as points.

        Returns:
            float32 [P, 3] metres in the frame of the input; uint8 [P, 3], an instance's points in its colour; int32
            [P], instance, -1 = none.
        """
        measured = np.flatnonzero(self.frame.depth)
        instance = self["segmentation"].reshape(-1)[measured]
        own = resize_image(self.frame.image, self.frame.depth.shape).reshape(-1, 3)[measured]
        return self.frame.unproject(measured), color_by_instance(own, instance), instance

    def to_json(self, **extra: Any) -> dict[str, Any]:
        """The segments as plain JSON values: `visualization.segments_to_json`, and each one's colour in the pictures.

        Args:
            extra: Further entries of the top level.
        """
        return segments_to_json(
            self.frame.frame_id,
            self["segmentation"],
            [{**segment, "color": instance_color(segment["id"])} for segment in self["segments_info"]],
            **extra,
            up=self["up"],
            coordinates=self.frame.axes,
        )

    def save(self, folder: str | Path, name: str | None = None, **extra: Any) -> dict[str, Path]:
        """Writes picture, coloured points and segments.

        Args:
            folder: Made if it is not there.
            name: Of the files; by default the frame's.
            extra: Further entries of the JSON file.

        Returns:
            `overlay`, `ply` and `json` -> the file.
        """
        name = re.sub(r"[^\w.-]+", "_", self.frame.frame_id) if name is None else name
        folder = Path(folder)
        paths = {"overlay": folder / f"{name}_overlay.png", "ply": folder / f"{name}.ply"}
        paths["json"] = folder / f"{name}.json"
        save_png(self.plot(), paths["overlay"])
        self.to_ply(paths["ply"])
        with new_file(paths["json"]) as partial:
            partial.write_text(json.dumps(self.to_json(**extra), indent=2) + "\n", encoding="utf-8")
        return paths

    def to_ply(self, path: str | Path) -> None:
        """Writes the coloured points, each with its `instance`, and the instances' names."""
        points, colors, instance = self.colored_points()
        names = {segment["id"]: str(segment_name(segment)) for segment in self["segments_info"]}
        write_ply(path, points, colors, instance=instance, names=names)

    def to_npz(self, path: str | Path) -> None:
        """Writes the arrays, and `segments_info` as JSON text, to a file that `numpy.load` reads."""
        arrays: dict[str, Any] = {name: np.asarray(self[name]) for name in ARRAYS if name in self}
        segments = np.array(json.dumps(self["segments_info"]))
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays, segments_info=segments)

    def to_coco(self, image_id: int = 0, first_id: int = 1) -> dict[str, list[dict[str, Any]]]:
        """The result in COCO's form, masks as uncompressed run lengths, as pycocotools reads them.

        Args:
            image_id: Of the frame.
            first_id: Of the first annotation.

        Returns:
            `images`, `annotations` (with `score`, `name` and `num_parts`) and `categories`.
        """
        height, width = self["segmentation"].shape
        annotations, categories = [], {}
        for number, segment in enumerate(self["segments_info"]):
            mask = self["segmentation"] == segment["id"]
            rows, columns = np.nonzero(mask)
            left, top = int(columns.min()), int(rows.min())
            categories[segment["label_id"]] = segment["label"]
            annotations.append(
                {
                    "id": first_id + number,
                    "image_id": image_id,
                    "category_id": segment["label_id"],
                    "segmentation": {"counts": run_lengths(mask), "size": [height, width]},
                    "area": len(rows),
                    "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                    "iscrowd": 0,
                    "score": segment["score"],
                    "name": segment_name(segment),
                    "num_parts": segment["num_parts"],
                }
            )
        return {
            "images": [{"id": image_id, "file_name": self.frame.frame_id, "width": width, "height": height}],
            "annotations": annotations,
            "categories": [{"id": label, "name": name} for label, name in sorted(categories.items())],
        }

    def to_open3d(self) -> list[Any]:
        """The coloured points and the segments' oriented boxes, as Open3D draws them.

        Raises:
            ImportError: Open3D is missing.
        """
        open3d = require_package("open3d")
        points, colors, _ = self.colored_points()
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(np.float64)))
        cloud.colors = open3d.utility.Vector3dVector(colors / 255)
        shown = [cloud]
        for segment in self["segments_info"]:
            box = {name: np.array(value) for name, value in segment["oriented_box_3d"].items()}
            drawn = open3d.geometry.OrientedBoundingBox(box["center"], box["rotation"], box["size"])
            drawn.color = instance_color(segment["id"]) / 255
            shown.append(drawn)
        return shown

    def to_rerun(self, path: str | Path) -> None:
        """Writes image, map, points and boxes as a recording of the Rerun viewer.

        Raises:
            ImportError: The package rerun is missing.
        """
        rerun = require_package("rerun")
        points, colors, _ = self.colored_points()
        segments = self["segments_info"]
        tints = [instance_color(segment["id"]) for segment in segments]
        labels = [f"{segment_name(segment)} {segment['score']:.2f}" for segment in segments]
        with new_file(path) as partial:
            stream = rerun.RecordingStream("bifusion_frame")
            stream.save(partial)
            stream.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
            stream.log("world/points", rerun.Points3D(points, colors=colors), static=True)
            if segments:
                boxes = np.array([segment["box_3d"] for segment in segments])
                sizes = boxes[:, 3:] - boxes[:, :3]
                shown = rerun.Boxes3D(mins=boxes[:, :3], sizes=sizes, colors=np.array(tints), labels=labels)
                stream.log("world/segments", shown, static=True)
            classes = [(segment["id"] + 1, *each) for segment, *each in zip(segments, labels, tints, strict=True)]
            stream.log("image", rerun.AnnotationContext(classes), static=True)
            stream.log("image", rerun.Image(resize_image(self.frame.image, self.frame.depth.shape)), static=True)
            ids = (self["segmentation"] + 1).astype(np.uint16)
            stream.log("image/segments", rerun.SegmentationImage(ids), static=True)
            stream.flush()
            stream.disconnect()


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of False and True in turn, the first of False, down the columns of bool [H, W]."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], ends, [len(flat)]])).tolist()
    return [0, *lengths] if len(flat) and flat[0] else lengths
