"""Renders a data set of RGB-D indoor frames."""

import argparse
import os
import textwrap
from pathlib import Path

from ..import_utils import require_package
from ..io.storage import same_kind
from ..rooms.catalog import LIBRARIES
from ..rooms.dataset import build_dataset
from ..rooms.generate import WORLDS, RoomSettings
from ..rooms.sensor import SENSORS, about_sensors
from .engine_options import add_engine_options, check_engine_options, engine_of
from .entry import command
from .parser import CommandParser


_EPILOG = """
Furniture comes from the Debian package sweethome3d-furniture; it need not be installed:
  apt-get download sweethome3d-furniture
  bifusion-render-rooms --furniture sweethome3d-furniture_*.deb --output rooms --train 1500 --val 300

Close-ups of things, by the sensors and cameras that people have:
  bifusion-render-rooms --world tabletop --sensor mixed --width 320 --height 240 --views 5 \\
      --furniture sweethome3d-furniture_*.deb --output tabletop --train 2500 --val 64

Sensors:
%s

The libraries differ in licence: %s.
BlendSwap-CC-0 alone gives frames without any obligation; the others ask for attribution, which the data set's
README.md then carries. An interrupted run goes on where it stopped when it is started again.
"""


def _sensor_lines() -> list[str]:
    return [
        textwrap.fill(text, 110, initial_indent=f"  {name:8} ", subsequent_indent=11 * " ")
        for name, text in about_sensors("mixed").items()
    ]


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-render-rooms",
        description=__doc__,
        epilog=_EPILOG
        % (
            "\n".join(_sensor_lines()),
            ", ".join(f"{name} {licence}" for name, licence in LIBRARIES.items()),
        ),
    )
    parser.add_argument(
        "--furniture",
        nargs="+",
        default=[],
        metavar="PATH",
        help="sweethome3d-furniture .deb, a folder with .sh3f files, or .sh3f files; without it rooms hold "
        "parametric furniture alone",
    )
    parser.add_argument("--output", "--out", required=True, type=same_kind, help="of the data set: folder or address")
    parser.add_argument("--train", type=int, default=0, metavar="N", help="training frames (default: 0)")
    parser.add_argument("--val", type=int, default=0, metavar="N", help="validation frames (default: 0)")
    parser.add_argument("--width", type=int, default=640, help="pixels (default: 640)")
    parser.add_argument("--height", type=int, default=480, help="pixels (default: 480)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same frames (default: 0)")
    parser.add_argument("--views", type=int, default=4, help="frames of each room (default: 4)")
    parser.add_argument(
        "--path",
        action="store_true",
        help="the frames of a room lie along a walk through it, ids the same in all: for whole scenes",
    )
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=tuple(LIBRARIES),
        default=["BlendSwap-CC-0"],
        help="furniture libraries to use (default: BlendSwap-CC-0)",
    )
    parser.add_argument(
        "--texture_pack",
        metavar="WHEEL",
        help="wheel of miniworld (pip download --no-deps miniworld), whose pictures cover walls and floors too",
    )
    parser.add_argument(
        "--photometric",
        action="store_true",
        help="boxes, books, pictures, towels and more become classes that only fine texture tells apart",
    )
    parser.add_argument(
        "--world",
        choices=WORLDS,
        default="rooms",
        help="rooms; tabletop: things on tables, floors, shelves and in bins, seen from near; mixed: both in "
        "turn (default: rooms)",
    )
    parser.add_argument(
        "--sensor",
        choices=(*SENSORS, "mixed"),
        default="kinect1",
        help="depth model; mixed: another one for each frame (default: kinect1)",
    )
    parser.add_argument("--workers", type=int, help="processes (default: all cores; on a cluster all of its own)")
    add_engine_options(parser)
    parser.add_argument("--jpeg_quality", type=int, metavar="Q", help="JPEG colour of this quality (default: PNG)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "bifusion_hf" / "rooms",
        help="folder for parsed meshes (default: %(default)s)",
    )
    return parser


@command("bifusion-render-rooms")
def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.train < 0 or arguments.val < 0 or arguments.train + arguments.val == 0:
        parser.error(f"--train {arguments.train} --val {arguments.val}: expected at least one frame")
    check_engine_options(parser, arguments)
    require_package("embreex")
    settings = RoomSettings(
        furniture=tuple(arguments.furniture),
        libraries=tuple(arguments.libraries) if arguments.furniture else (),
        cache=str(arguments.cache),
        texture_pack=arguments.texture_pack,
        seed=arguments.seed,
        width=arguments.width,
        height=arguments.height,
        views=arguments.views,
        photometric=arguments.photometric,
        world=arguments.world,
        sensor=arguments.sensor,
        path=arguments.path,
    )
    summary = build_dataset(
        arguments.output,
        settings,
        {"train": arguments.train, "val": arguments.val},
        workers=arguments.workers or os.cpu_count() or 1,
        engine=None if arguments.engine == "local" else engine_of(arguments, workers=arguments.workers),
        jpeg_quality=arguments.jpeg_quality,
    )
    for split, digest in summary["sha256"].items():
        print(
            f"{split}: {summary['frames'][split]} frames, {summary['instances_per_frame'][split]} instances a frame, "
            f"{100 * summary['depth_holes'][split]:.1f} % without depth, sha256 {digest}"
        )


if __name__ == "__main__":
    main()
