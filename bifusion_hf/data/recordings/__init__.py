"""Recordings of posed RGB-D frames in the layouts that cameras, apps and benchmarks write."""

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...io.files import DataFileError
from ...io.storage import Folder, is_remote, same_kind
from ..frames import RGBDFrame
from .base import UP_ROTATIONS, ReadOptions, Recording


__all__ = ["LAYOUTS", "Recording", "open_recording"]

LAYOUTS = {
    "sens": "a .sens file of ScanNet, or a folder with one of its own name",
    "folders": "folders color/, depth/ with pose/ and intrinsic/ (ScanNet, ESAM) or trajectory.log (Redwood, Open3D)",
    "tum": "rgb.txt, depth.txt and groundtruth.txt (TUM RGB-D, ICL-NUIM)",
    "r3d": "a .r3d file of Record3D",
    "frames": "a folder for each frame with colour.png, depth.png, intrinsics.json and pose.txt",
    "rows": "a folder with data/SPLIT-*.parquet, an id on the Hub, or 'sample'",
}


def open_recording(
    source: str | Path,
    *,
    intrinsics: str | Path | Sequence[float] | None = None,
    depth_scale: float | None = None,
    up: str | None = None,
    split: str = "val",
    scene: str | None = None,
    max_difference: float = ReadOptions.max_difference,
    every: int = 1,
    limit: int | None = None,
) -> Recording:
    """Opens a recording; its layout (see `LAYOUTS`) is told by what is there.

    Args:
        source: A folder, a file, or a data set of the Hub; or an address (`io.storage`): a recording is copied here
            and stays as long as it is in use, of a data set nothing but the rows is read.
        intrinsics: fx, fy, cx, cy of the depth image, or a file for `read_intrinsics`; replaces the recording's own.
        depth_scale: Units per metre of depth; replaces that of the layout (1000 for ScanNet, Redwood and Open3D, 5000
            for TUM).
        up: Axis that points up in the recording's world: `"z"`, `"-z"`, `"y"`, `"-y"`, `"x"` or `"-x"`; frames come
            with z up. By default `"y"` for Record3D, `"-y"` (the first camera's) for a `trajectory.log`, else `"z"`.
        split: Of a data set.
        scene: Of a data set with several: the `scene_id`, or the frames' name without the number at its end.
        max_difference: Seconds between what belongs together in TUM's lists.
        every: Take every how manieth frame.
        limit: Take no more frames.

    Returns:
        The frames in order: `len(recording)`, `recording.ids`, `recording[i]`, `recording.posed`.

    Raises:
        DataFileError: Nothing there is a recording, or what belongs to it is missing or damaged; the message names the
            file and the place.
        ValueError: An argument is malformed.
    """
    if up is not None and up not in UP_ROTATIONS:
        raise ValueError(f"up is {up!r}; expected one of {', '.join(UP_ROTATIONS)}")
    if every < 1 or (limit is not None and limit < 1):
        raise ValueError(f"every is {every} and limit {limit}; expected at least 1")
    if depth_scale is not None and not depth_scale > 0:
        raise ValueError(f"depth_scale is {depth_scale}; expected positive units per metre")
    options = ReadOptions(intrinsics, depth_scale, up, split, scene, max_difference)
    return _open(source, options)[::every][:limit]


def _open_remote(source: str, options: ReadOptions) -> Recording:
    if Folder(source).names("data/*-*.parquet"):
        from .rows import open_rows

        return open_rows(source, options)
    with contextlib.ExitStack() as stack:
        place, _, name = source.rstrip("/").rpartition("/")
        recording = _open(stack.enter_context(Folder(place).copy(name)), options)
        kept = stack.pop_all()

    def read(index: int) -> RGBDFrame:
        return recording.read(index)

    # The copy goes with the last part of the recording, or with the process.
    weakref.finalize(read, kept.close)
    return replace(recording, path=source, read=read)


def _open(source: str | Path, options: ReadOptions) -> Recording:
    # Readers bring scikit-image or datasets along, so each is imported where it is used.
    if is_remote(source):
        return _open_remote(str(source), options)
    path = Path(source := same_kind(source))
    if path.is_file():
        if path.suffix == ".sens":
            from .folders import open_sens

            return open_sens(path, options)
        if path.suffix == ".r3d":
            from .record3d import open_r3d

            return open_r3d(path, options)
        raise DataFileError(path, f"is no recording; expected {_expected()}")
    if not path.exists():
        if path.is_absolute() or str(source).count("/") > 1 or path.suffix:
            raise DataFileError(path, "no such file or folder")
        from .rows import open_rows

        return open_rows(source, options)
    if list((path / "data").glob("*-*.parquet")):
        from .rows import open_rows

        return open_rows(path, options)
    from . import folders, tum

    if tum.is_tum(path):
        return tum.open_tum(path, options)
    sens = path / f"{path.name}.sens"
    if sens.is_file():
        return folders.open_sens(sens, options)
    if folders.subfolder(path, folders.COLOR_FOLDERS) and folders.subfolder(path, folders.DEPTH_FOLDERS):
        return folders.open_color_depth(path, options)
    if any(folders.is_frame_folder(place) for place in path.iterdir() if place.is_dir()):
        return folders.open_frame_folders(path, options)
    found = ", ".join(sorted(place.name for place in path.iterdir())[:8])
    raise DataFileError(path, f"is no recording; it has {found or 'nothing'}. Expected {_expected()}")


def _expected() -> str:
    return "; ".join(LAYOUTS.values())
