"""Options of the commands that read recordings."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..data.recordings import Recording


def add_recording_options(parser: argparse._ActionsContainer) -> None:
    """Options beside the place of a recording, but for those of its camera (`add_camera_options`)."""
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame, default: 1")
    parser.add_argument("--limit", type=int, metavar="N", help="take N frames at most")
    parser.add_argument("--scene", help="of a data set with several: its scene_id, or the start of its frames' names")
    parser.add_argument(
        "--up",
        choices=("z", "-z", "y", "-y", "x", "-x"),
        help="axis that points up in the recording's world, by default that of its layout",
    )
    parser.add_argument(
        "--max_difference",
        type=float,
        default=0.02,
        metavar="SECONDS",
        help="between what belongs together in TUM's lists, default: 0.02",
    )


def add_camera_options(parser: argparse._ActionsContainer) -> None:
    """Options that say of the depth images what a recording does not, or says wrongly."""
    parser.add_argument("--depth_scale", type=float, help="units per metre of integer depth, by default the layout's")
    parser.add_argument(
        "--intrinsics",
        nargs="+",
        metavar=("FX FY CX CY | FILE", ""),
        help="of the depth image, in pixels, by default the recording's own",
    )


def parse_intrinsics(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Turns the words of `--intrinsics` into four numbers or one file, or ends with a usage error."""
    words = arguments.intrinsics
    if words is None:
        return
    if len(words) == 1:
        arguments.intrinsics = words[0]
        return
    try:
        arguments.intrinsics = [float(word) for word in words]
    except ValueError:
        parser.error(f"--intrinsics {' '.join(words)}: expected fx fy cx cy, or one file")
    if len(words) != 4:
        parser.error(f"--intrinsics has {len(words)} numbers; expected fx fy cx cy")


def open_source(source: str | Path, arguments: argparse.Namespace) -> "Recording":
    """The recording that the arguments describe."""
    from ..data.recordings import open_recording

    return open_recording(
        source,
        intrinsics=arguments.intrinsics,
        depth_scale=arguments.depth_scale,
        up=arguments.up,
        split=arguments.split,
        scene=arguments.scene,
        max_difference=arguments.max_difference,
        every=arguments.every,
        limit=arguments.limit,
    )
