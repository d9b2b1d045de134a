"""bifusion-predict: object instances of RGB-D frames, as pictures, a coloured point cloud and JSON."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import assets
from ..io.images import save_png
from ..io.sanity import check_fraction
from ..io.storage import is_remote, same_kind
from ..prediction.segmenter import load_segmenter
from ..superpoints.masks import load_mask_generator, superpoints_from_mask_generator
from .engine_options import add_engine_options, check_engine_options, engine_of
from .entry import command
from .labeler_options import (
    LABELS_HELP,
    add_labeler_options,
    check_labeler_options,
    given_labels,
    labeler_arguments,
    load_labeler,
)
from .output_names import name_for_input
from .parser import DEVICE_HELP, CommandParser
from .recording_options import add_recording_options, open_source, parse_intrinsics


if TYPE_CHECKING:
    from ..data.frames import RGBDFrame
    from ..labeling import TextLabeler
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline
    from ..prediction.sources import FrameSource

EXAMPLES = """examples:
  bifusion-predict --image color.png --depth depth.png --depth_scale 1000 \\
      --intrinsics 577.9 577.9 319.5 239.5 --output out
  bifusion-predict --image color.jpg --depth depth.npy --intrinsics camera.json --pose pose.txt --output out
  bifusion-predict --data sample --split val --rows 0 1 2 --output out
  bifusion-predict --recording rgbd_dataset_freiburg2_desk --every 50 --output out
  bifusion-predict --data sample --rows 0 --labels mug keyboard chair --labeler google/siglip2-base-patch16-224 \\
      --output out
  bifusion-predict --data rooms --split val --shards parquet --workers 4 --output results
  torchrun --nproc_per_node 8 -m bifusion_hf.cli.predict --recordings recordings --shards coco --output results
"""


@command("bifusion-predict")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    if arguments.shards is not None:
        predict_many(arguments)
        return
    segmenter = load_segmenter(arguments.checkpoint, arguments.device)
    segmenter.processor.estimate_up &= not arguments.camera_up
    if arguments.part_gap is not None:
        segmenter.processor.part_gap = arguments.part_gap
    arguments.labels = given_labels(arguments.labels)
    labeler = load_labeler(arguments, segmenter.device)
    generator = None if arguments.mask_generator is None else load_mask_generator(arguments.mask_generator)
    for frame, source in read_frames(arguments):
        if generator is not None:
            frame.superpoints = superpoints_from_mask_generator(generator, frame.image, frame.depth, frame.intrinsics)
        predict(segmenter, frame, source, arguments, labeler)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-predict",
        description="Finds the object instances of RGB-D frames. Writes NAME_overlay.png (masks, labels and scores "
        "over the image), NAME.ply (all measured points, one colour an instance), NAME.json (the segments), and for "
        "data set rows with ground truth NAME_comparison.png.",
        epilog=EXAMPLES,
    )
    files = parser.add_argument_group("a frame from files")
    files.add_argument("--image", type=Path, help="colour image, registered to the depth image")
    files.add_argument(
        "--depth", type=Path, help="depth image (16-bit PNG, TIFF, ...) or .npy array; 0 = no measurement"
    )
    files.add_argument(
        "--depth_scale", type=float, help="units per metre of integer depth: 1000 for millimetres, 5000 for TUM RGB-D"
    )
    files.add_argument(
        "--intrinsics",
        nargs="+",
        metavar=("FX FY CX CY | FILE", ""),
        help="of the depth image, in pixels: four numbers; or a JSON file with fx, fy, cx, cy or a 3x3 matrix; or a "
        "text file with a 3x3 matrix",
    )
    files.add_argument("--camera_to_world", "--pose", type=Path, help="4x4 camera to world, z up (text, .npy or JSON)")
    parser.add_argument(
        "--camera_up",
        action="store_true",
        help="without a pose, take the camera's up instead of estimating which way is up from the frame",
    )
    files.add_argument(
        "--superpoints",
        type=Path,
        help="ids in a .npy (-1 = none) or 16-bit PNG (0 = none), or a folder of masks; found from the frame by "
        "default",
    )
    rows = parser.add_argument_group("frames of a data set")
    rows.add_argument("--data", help="folder with data/SPLIT-*.parquet, id on the Hub, or 'sample'")
    rows.add_argument("--split", default="val", help="default: val")
    rows.add_argument("--rows", type=int, nargs="+", help="rows to predict, default: 0; with --shards all")
    recording = parser.add_argument_group("frames of a recording, each on its own")
    recording.add_argument(
        "--recording",
        metavar="SOURCE",
        help="folders color/ depth/ (pose/), .sens, TUM RGB-D, trajectory.log, .r3d, a folder a frame, or a data set; "
        "docs/scenes.md has the layouts",
    )
    recording.add_argument(
        "--recordings",
        metavar="FOLDER",
        help="with --shards: a folder, or its address, with a recording in each entry",
    )
    add_recording_options(recording)
    many = parser.add_argument_group(
        "all frames of --data or --recordings, in shards",
        "Writes shards/NAME.parquet or .json, many frames each, and report.json. A run that was stopped goes on when "
        "it is started again. Under torchrun or accelerate launch each process takes its shards. docs/scale.md tells "
        "more.",
    )
    many.add_argument("--shards", choices=("parquet", "coco"), help="format of the results: Parquet or COCO's JSON")
    many.add_argument("--shard_size", type=int, metavar="FRAMES", help="of a shard, default: 256")
    many.add_argument("--batch_size", type=int, metavar="FRAMES", help="of one forward, default: 4")
    many.add_argument("--merge", action="store_true", help="also write all frames to one file")
    many.add_argument("--workers", type=int, help="processes, default: 1; on a cluster as many as there is room for")
    add_engine_options(many)
    parser.add_argument(
        "--checkpoint",
        default=str(assets.SAMPLE_CHECKPOINT),
        help="folder, or id on the Hub (org/name or org/name@revision); by default the checkpoint that comes with the "
        "package",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="keep instances of a higher score, default: 0.5")
    naming = parser.add_argument_group("names in your own words")
    naming.add_argument("--labels", nargs="+", metavar="LABEL", help=LABELS_HELP)
    add_labeler_options(naming)
    naming.add_argument("--top_k", type=int, default=5, help="candidates listed in NAME.json, default: 5")
    parser.add_argument(
        "--name_threshold",
        type=float,
        metavar="PROBABILITY",
        help="without --labels, call an instance by the semantic head's class from this probability on; default: "
        "processor's",
    )
    parser.add_argument(
        "--mask_generator",
        metavar="MODEL",
        help="make superpoints from the masks of this transformers mask-generation model (SAM, SAM 2)",
    )
    parser.add_argument(
        "--part_gap",
        type=float,
        metavar="METRES",
        help="parts of a mask farther apart are instances of their own, 0 leaves masks whole; default: processor's",
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument(
        "--output", type=same_kind, required=True, help="folder for the results; with --shards also its address"
    )
    return parser


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends with a usage error unless exactly one source of frames is given, in full."""
    of_files = ("image", "depth", "camera_to_world", "superpoints", "intrinsics", "depth_scale")
    sources = {"--data": of_files, "--recording": of_files[:4], "--recordings": of_files[:4]}
    given = [name for name in sources if getattr(arguments, name[2:]) is not None]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} exclude each other")
    for source in given:
        others = [f"--{name}" for name in sources[source] if getattr(arguments, name) is not None]
        if others:
            parser.error(f"{source} and {', '.join(others)} exclude each other")
    if not given:
        missing = [f"--{name}" for name in ("image", "depth", "intrinsics") if getattr(arguments, name) is None]
        if missing:
            parser.error(
                f"{', '.join(missing)} missing; a frame needs --image, --depth and --intrinsics, or --data, or "
                "--recording"
            )
    check_engine_options(parser, arguments)
    of_shards = ("shard_size", "batch_size", "workers", "merge", "recordings")
    if arguments.shards is None:
        unused = [f"--{name}" for name in of_shards if getattr(arguments, name)]
        unused += ["--engine"] if arguments.engine != "local" else []
        if unused:
            parser.error(f"{', '.join(unused)} needs --shards")
        if is_remote(arguments.output):
            parser.error(f"--output {arguments.output} needs --shards; single frames go to a folder of this machine")
    elif given not in (["--data"], ["--recordings"]) or arguments.rows is not None:
        parser.error("--shards is for all frames of --data or --recordings")
    if arguments.superpoints is not None and arguments.mask_generator is not None:
        parser.error("--superpoints and --mask_generator exclude each other")
    parse_intrinsics(parser, arguments)
    check_fraction("--threshold", arguments.threshold)
    check_fraction("--name_threshold", arguments.name_threshold)
    check_fraction("--label_floor", arguments.label_floor)
    check_labeler_options(parser, arguments, ("labels",))
    if not is_remote(arguments.output) and arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a file; expected a folder")


def predict_many(arguments: argparse.Namespace) -> None:
    """Predicts all frames of a data set or of a folder of recordings in shards."""
    from ..batch import launched_processes
    from ..prediction.shards import PRELOAD, PredictionSettings, predict_shards

    processes = launched_processes(cpu=arguments.device == "cpu")
    if processes.count > 1:
        if arguments.workers or arguments.engine != "local":
            raise ValueError(f"{processes.count} processes were launched; expected no --workers and no --engine")
        if arguments.device not in (None, "cpu", "cuda"):
            raise ValueError(f"--device {arguments.device}: each of the launched processes has a device of its own")
    settings = PredictionSettings(
        checkpoint=arguments.checkpoint,
        threshold=arguments.threshold,
        name_threshold=arguments.name_threshold,
        part_gap=arguments.part_gap,
        camera_up=arguments.camera_up,
        mask_generator=arguments.mask_generator,
        labels=given_labels(arguments.labels),
        labeler={} if arguments.labeler is None else labeler_arguments(arguments),
        top_k=arguments.top_k,
        batch_size=arguments.batch_size or 4,
    )
    report = predict_shards(
        source_of(arguments),
        settings,
        arguments.output,
        kind=arguments.shards,
        shard_size=arguments.shard_size or 256,
        merge=arguments.merge,
        device=processes.device or arguments.device,
        engine=engine_of(arguments, preload=PRELOAD, workers=arguments.workers, gpu=uses_gpu(arguments.device)),
        processes=processes,
    )
    if report is None:
        return
    print(
        f"{report['frames']} frames, {report['instances']} instances, {report['shards']} shards -> {arguments.output}"
    )
    if report["skipped"]:
        name, reason = next(iter(report["skipped"].items()))
        print(f"{len(report['skipped'])} frames could not be used, see report.json; the first: {name}: {reason}")


def uses_gpu(device: str | None) -> bool:
    """Whether a `--device` is a GPU, which several workers take in turn."""
    import torch

    return torch.cuda.is_available() if device is None else device == "cuda"


def source_of(arguments: argparse.Namespace) -> "FrameSource":
    """The frames that a prediction in shards is of."""
    from ..prediction.sources import DataSetFrames, RecordingFrames

    if arguments.data is not None:
        return DataSetFrames(arguments.data, arguments.split)
    names = ("intrinsics", "depth_scale", "up", "split", "scene", "max_difference", "every", "limit")
    options = {name: getattr(arguments, name) for name in names}
    if isinstance(options["intrinsics"], list):
        options["intrinsics"] = tuple(options["intrinsics"])
    return RecordingFrames(arguments.recordings, options)


def read_frames(arguments: argparse.Namespace) -> Iterator[tuple["RGBDFrame", str]]:
    """The frames that the arguments name, and what tells each from all others."""
    from ..data.frame_files import read_frame
    from ..data.frames import frame_from_row, load_frames

    if arguments.recording is not None:
        for frame in open_source(arguments.recording, arguments):
            yield frame, f"{_place(arguments.recording)} frame {frame.frame_id}"
        return
    if arguments.data is None:
        frame = read_frame(
            arguments.image,
            arguments.depth,
            arguments.intrinsics,
            depth_scale=arguments.depth_scale,
            pose=arguments.camera_to_world,
            superpoints=arguments.superpoints,
        )
        yield frame, f"{_place(arguments.image)}, {_place(arguments.depth)}"
        return
    data = load_frames(arguments.data, arguments.split)
    for row in [0] if arguments.rows is None else arguments.rows:
        if not 0 <= row < len(data):
            raise ValueError(f"--rows {row}: {arguments.data} has {len(data)} rows in {arguments.split!r}")
        yield frame_from_row(data[row]), f"{_place(arguments.data)} {arguments.split} row {row}"


def _place(source: str | Path) -> str:
    """A file or folder by its whole path, anything else as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def predict(
    segmenter: "RGBDInstanceSegmentationPipeline",
    frame: "RGBDFrame",
    source: str,
    arguments: argparse.Namespace,
    labeler: "TextLabeler | None" = None,
) -> None:
    """Predicts a frame, writes the results and says where.

    Args:
        segmenter: The pipeline.
        frame: The frame.
        source: What tells it from all others.
        arguments: Of the command line.
        labeler: Names the instances.
    """
    from ..visualization import draw_comparison

    naming, extra = {"name_threshold": arguments.name_threshold}, {}
    if labeler is not None:
        naming.update(candidate_labels=arguments.labels, labeler=labeler, top_k=arguments.top_k)
        extra = {"labeler": {**labeler.settings, "templates": labeler.templates}, "labels": arguments.labels}
    result = segmenter(frame, threshold=arguments.threshold, **naming)
    name = name_for_input(arguments.output, frame.frame_id, source)
    paths = list(
        result.save(
            arguments.output,
            name,
            input=source,
            checkpoint=arguments.checkpoint,
            threshold=arguments.threshold,
            **extra,
        ).values()
    )
    if frame.instance is not None:
        truth = true_segments(frame, segmenter.processor.stuff_classes)
        paths.append(arguments.output / f"{name}_comparison.png")
        save_png(draw_comparison(frame.image, (result["segmentation"], result["segments_info"]), truth), paths[-1])
    files = ", ".join(map(str, paths))
    print(f"{frame.frame_id}: {len(result['segments_info'])} instances above {arguments.threshold:g} -> {files}")


def true_segments(frame: "RGBDFrame", stuff_classes: Sequence[int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Ground truth of a frame in the form of a prediction.

    Args:
        frame: With `instance`; with `semantic` the segments are named, and stuff is left out.
        stuff_classes: Classes without instances.

    Returns:
        `segmentation` int [H, W] and `segments_info` of `id` and perhaps `label`.
    """
    from ..labels import SCANNET200_CLASS_NAMES

    segmentation, segments = frame.instance.copy(), []
    for index in np.unique(frame.instance[frame.instance >= 0]).tolist():
        segment = {"id": index}
        if frame.semantic is not None:
            classes = frame.semantic[frame.instance == index]
            label = int(np.bincount(classes[classes >= 0], minlength=1).argmax()) if (classes >= 0).any() else None
            if label is None or label in stuff_classes:
                segmentation[segmentation == index] = -1
                continue
            segment["label"] = SCANNET200_CLASS_NAMES[label]
        segments.append(segment)
    return segmentation, segments


if __name__ == "__main__":
    main()
