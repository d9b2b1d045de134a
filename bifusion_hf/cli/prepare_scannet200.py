"""bifusion-prepare-scannet200: the ScanNet download, or data prepared for ESAM, as a data set of RGB-D frames."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.esam import prepare_esam
from ..data.scannet.mesh_labels import MAX_DISTANCE, NEAR_RANGE
from ..data.scannet.preparation import prepare_scannet200, report_summary
from ..data.scannet.shards import PRELOAD
from ..data.scannet.source import LABEL_SOURCES
from ..io.storage import Folder, same_kind
from .engine_options import add_engine_options, check_engine_options, engine_of
from .entry import command
from .parser import CommandParser


EXAMPLES = """examples:
  bifusion-prepare-scannet200 --scans scannet/scans --output scannet200 --label_map scannetv2-labels.combined.tsv \\
      --split train=scannetv2_train.txt --split val=scannetv2_val.txt --workers 8
  bifusion-prepare-scannet200 --esam ESAM/data/scannet200-sv --output scannet200-esam --split train --split val

An interrupted run goes on where it stopped when it is started again with the same arguments.
"""


@command("bifusion-prepare-scannet200")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: With a message where the arguments or files are malformed, with 1 where scans failed.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    report = prepare(parser, arguments)
    print(report_summary(report), end="")
    print(f"settings and skipped frames: {Folder(arguments.output).place('report.txt')}")
    failed = [scan for part in report["splits"].values() for scan in part["failed"]]
    if failed:
        raise SystemExit(f"{len(failed)} scans failed; mend their files and start again: only their shards are remade")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-prepare-scannet200",
        description="Writes parquet shards of RGB-D frames with instance and semantic images, a card and a report of "
        "skipped frames.",
        epilog=EXAMPLES,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--scans",
        type=same_kind,
        help="folder, or its address, with a folder for each scan: <scan>.sens, or exported color/ depth/ pose/ "
        "intrinsic/; mesh and annotation files or 2D label images beside them",
    )
    source.add_argument("--esam", type=Path, help="folder of data prepared for ESAM (SV or MV), instead of --scans")
    parser.add_argument("--output", "--out", type=same_kind, required=True, help="of the data set: folder or address")
    parser.add_argument(
        "--split",
        action="append",
        required=True,
        metavar="NAME=LIST",
        help="a split and its list file, a scan (the official scannetv2_train.txt) or a frame (scene0000_00_200) a "
        "line; may be repeated. With --esam the name alone, of an infos file",
    )
    parser.add_argument("--workers", type=int, help="processes (default 1; on a cluster as many as it has room for)")
    add_engine_options(parser)
    parser.add_argument(
        "--scans_per_shard", type=int, default=16, help="scans of a parquet file (default 16): what a stop may cost"
    )
    parser.add_argument(
        "--jpeg_quality", type=int, help="of the stored colour images, 1..100; 0 = PNG (default 95; with --esam 0)"
    )
    scannet = parser.add_argument_group("with --scans")
    scannet.add_argument("--label_map", type=Path, help="scannetv2-labels.combined.tsv; needed for labels of the mesh")
    scannet.add_argument(
        "--labels",
        choices=LABEL_SOURCES,
        default="auto",
        help="from the annotated mesh, from the 2D label images, or none; auto (default): for each scan the mesh "
        "where its files are there, else the 2D images where they are",
    )
    scannet.add_argument(
        "--frame_interval", type=int, default=200, help="every how manieth frame of the stream (default 200, as ESAM)"
    )
    scannet.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        metavar=("WIDTH", "HEIGHT"),
        help="of colour, depth and labels; the depth camera's by default",
    )
    scannet.add_argument("--axis_align", action="store_true", help="turn the poses by the scan's axisAlignment")
    scannet.add_argument(
        "--max_label_distance",
        type=float,
        default=MAX_DISTANCE,
        help="metres between a pixel's point and the mesh sample that labels it "
        f"(default {MAX_DISTANCE}; beyond {NEAR_RANGE:g} m from the camera it grows in proportion)",
    )
    scannet.add_argument(
        "--sequences",
        action="store_true",
        help="add scene_id, object_ids and object_boxes of the mesh's objects, for training on windows of frames and "
        "whole scenes; with --frame_interval 40 the frames of ESAM's online stage",
    )
    scannet.add_argument(
        "--assume_registered",
        action="store_true",
        help="take colour as registered to depth although the extrinsics of a .sens differ",
    )
    return parser


def prepare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict:
    """Prepares the data set; gives its report."""
    check_engine_options(parser, arguments)
    engine = engine_of(arguments, preload=PRELOAD, workers=arguments.workers)
    options = {"scans_per_shard": arguments.scans_per_shard, "engine": engine}
    if arguments.esam is not None:
        options["jpeg_quality"] = arguments.jpeg_quality or None
        return prepare_esam(arguments.esam, arguments.output, arguments.split, **options)
    lists = dict(item.partition("=")[::2] for item in arguments.split)
    if len(lists) != len(arguments.split) or not all(lists.values()):
        parser.error(f"--split is {arguments.split}; expected NAME=LIST, each name once")
    quality = 95 if arguments.jpeg_quality is None else arguments.jpeg_quality
    return prepare_scannet200(
        arguments.scans,
        arguments.output,
        lists,
        label_map=arguments.label_map,
        labels=arguments.labels,
        frame_interval=arguments.frame_interval,
        image_size=None if arguments.image_size is None else tuple(arguments.image_size),
        axis_align=arguments.axis_align,
        max_label_distance=arguments.max_label_distance,
        jpeg_quality=quality or None,
        assume_registered=arguments.assume_registered,
        sequences=arguments.sequences,
        **options,
    )


if __name__ == "__main__":
    main()
