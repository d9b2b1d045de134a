"""A scene as a recording of the Rerun viewer (extra `rerun`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..import_utils import require_package
from ..io.atomic import new_file
from ..visualization.colors import instance_color
from ..visualization.ply import color_by_instance


if TYPE_CHECKING:
    from ..data.recordings import Recording
    from .objects import SceneObject
    from .session import SceneSession


def write_rerun(
    path: str | Path, session: "SceneSession", objects: Sequence["SceneObject"], recording: "Recording"
) -> None:
    """Writes an `.rrd` file: the cloud and boxes of the scene; for each frame its camera, image and map of objects.

    Args:
        path: The file.
        session: The scene.
        objects: Those that are shown.
        recording: Where the frames come from; those of the session are read again.

    Raises:
        ImportError: The package rerun is missing.
    """
    rerun = require_package("rerun")
    points, colors, ids = session.cloud()
    shown = np.isin(ids, [item.id for item in objects])
    places = {name: index for index, name in enumerate(recording.ids)}
    with new_file(path) as partial:
        stream = rerun.RecordingStream("bifusion_scan")
        stream.save(partial)
        stream.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        tinted = color_by_instance(colors, np.where(shown, ids, -1))
        stream.log("world/points", rerun.Points3D(points, colors=tinted, radii=session.voxel_size / 3), static=True)
        if objects:
            boxes = np.array([item.box_3d for item in objects])
            stream.log(
                "world/objects",
                rerun.Boxes3D(
                    mins=boxes[:, :3],
                    sizes=boxes[:, 3:] - boxes[:, :3],
                    colors=np.array([instance_color(item.id) for item in objects]),
                    labels=[f"{item.name} {item.id} {item.score:.2f}" for item in objects],
                ),
                static=True,
            )
        classes = [
            (item.id + 1, f"{item.name} {item.id}", tuple(instance_color(item.id).tolist())) for item in objects
        ]
        stream.log("world/camera", rerun.AnnotationContext(classes), static=True)
        for number, (name, pose) in enumerate(zip(session.frame_ids, session.poses, strict=True)):
            frame = recording[places[name]]
            stream.set_time("frame", sequence=number)
            stream.log("world/camera", rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            height, width = frame.depth.shape
            camera = rerun.Pinhole(image_from_camera=frame.intrinsics, resolution=[width, height])
            stream.log("world/camera", camera)
            stream.log("world/camera/image", rerun.Image(frame.image).compress(jpeg_quality=80))
            if session.keep_frames:
                segmentation = np.minimum(session.frame_segmentation(number) + 1, np.iinfo(np.uint16).max)
                stream.log("world/camera/objects", rerun.SegmentationImage(segmentation.astype(np.uint16)))
        stream.flush()
        stream.disconnect()
