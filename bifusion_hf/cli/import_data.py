"""bifusion-import: one's own frames, with labels or without, as a data set for training and evaluation."""

import argparse
from collections.abc import Sequence

from ..data.annotations import FORMATS
from ..data.importing import UNANNOTATED, LabelOptions, import_recording, report_text
from ..data.scannet.shards import PRELOAD
from ..io.storage import same_kind
from .engine_options import add_engine_options, check_engine_options, engine_of
from .entry import command
from .parser import CommandParser
from .recording_options import add_camera_options, add_recording_options, parse_intrinsics


EXAMPLES = """examples:
  bifusion-import my_recording --output mine --annotations instances.json
  bifusion-import my_recording --output mine --annotations labels/ --classes data.yaml --val 0.1
  bifusion-import my_recording --output mine --instances instance/ --semantics semantic/ --classes names.txt
  bifusion-import rgbd_dataset_freiburg2_desk --every 10 --output desk

docs/own_data.md goes through one. An interrupted run goes on where it stopped when it is started again with the same
arguments.
"""


@command("bifusion-import")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: With a message where the arguments or files are malformed, with 1 where labels failed.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    parse_intrinsics(parser, arguments)
    check_engine_options(parser, arguments)
    report = import_recording(
        arguments.source,
        arguments.output,
        labels=LabelOptions(
            arguments.annotations, arguments.format, arguments.instances, arguments.semantics, arguments.classes
        ),
        val=arguments.val,
        val_frames=arguments.val_frames,
        every=arguments.every,
        limit=arguments.limit,
        unannotated=arguments.unannotated,
        skip_unmatched=arguments.skip_unmatched,
        jpeg_quality=arguments.jpeg_quality or None,
        frames_per_shard=arguments.frames_per_shard,
        engine=engine_of(arguments, preload=PRELOAD, workers=arguments.workers),
        intrinsics=arguments.intrinsics,
        depth_scale=arguments.depth_scale,
        up=arguments.up,
        split=arguments.split,
        scene=arguments.scene,
        max_difference=arguments.max_difference,
    )
    print(report_text(report), end="")
    print(f"-> {arguments.output}")
    failed = [message for part in report["splits"].values() for message in part["failed"].values()]
    if failed:
        raise SystemExit(f"bifusion-import: error: the labels of {len(failed)} frames failed; the first: {failed[0]}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-import",
        description="Makes a data set of a recording, or of a folder of frames, with the labels of its colour images: "
        "parquet shards of two splits, the names of the classes, and a report of what was left out.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help="as in bifusion-scan; poses are not needed")
    parser.add_argument("--output", type=same_kind, required=True, help="folder of the data set, or its address")
    labels = parser.add_argument_group("labels, by default those that the recording has itself, if any")
    labels.add_argument(
        "--annotations",
        metavar="PATH",
        help="a JSON file of COCO, or a folder of YOLO's segmentation labels or of labelme's JSON files",
    )
    labels.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of --annotations, default: auto")
    labels.add_argument("--instances", metavar="FOLDER", help="label images instead: an object's number, 0 = none")
    labels.add_argument("--semantics", metavar="FOLDER", help="and its class's number, 0 = none; needs --classes")
    labels.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes: text with one a line, a data.yaml of YOLO, or JSON; or 'scannet200': no others "
        "than those. By default those of the annotations",
    )
    labels.add_argument(
        "--unannotated",
        choices=UNANNOTATED,
        default="skip",
        help="what becomes of frames without annotations where others have some: left out (default), kept without "
        "labels, or refused",
    )
    labels.add_argument(
        "--skip_unmatched", action="store_true", help="leave annotations of images that are no frame out"
    )
    splits = parser.add_argument_group("splits")
    splits.add_argument("--val", type=float, default=0.2, help="share of the frames, the last ones, default: 0.2")
    splits.add_argument("--val_frames", metavar="FILE", help="text with the name of a frame a line, instead of --val")
    stored = parser.add_argument_group("what is stored")
    stored.add_argument("--jpeg_quality", type=int, default=95, help="of colour, 1..100; 0 = PNG. Default: 95")
    stored.add_argument("--frames_per_shard", type=int, default=100, help="of a parquet file, default: 100")
    stored.add_argument("--workers", type=int, help="processes, default: 1; on a cluster as many as it has room for")
    add_engine_options(stored)
    recording = parser.add_argument_group("the recording")
    add_recording_options(recording)
    add_camera_options(recording)
    recording.add_argument("--split", default="val", help="of a source that is a data set, default: val")
    return parser


if __name__ == "__main__":
    main()
