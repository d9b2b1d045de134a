"""Names measured on held-out rooms: by the semantic head, and by a small CLIP made here."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bifusion_hf import RGBDFrame
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.io.atomic import write_text
from bifusion_hf.io.hub_files import checkpoint_place
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline

from ..command import run


RESULTS = Path("model_cards/results")
EXAMPLES = """examples:
  python -m scripts.experiments.names semantic --data rooms_fresh sample
  python -m scripts.experiments.names speed
  python -m scripts.experiments.names train_clip --data rooms --output small_clip
  python -m scripts.experiments.names measure_clip --labeler small_clip --data rooms_fresh --scenes walks
  bifusion-train finetune && bifusion-evaluate outputs/finetune/best --data sample \
      --output model_cards/results/finetune_sample_val.json
  python -m scripts.experiments.names report
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: An argument or a frame is wrong, with the reason.
    """
    run(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.names",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    semantic = commands.add_parser(
        "semantic",
        help="names by the semantic head",
        description="The share of found instances that the semantic head names right. The threshold from which on "
        "names are shown is chosen on the first data set and measured on all.",
    )
    semantic.add_argument("--checkpoint", default="sample")
    semantic.add_argument("--data", nargs="+", required=True, help="data sets with a split val")
    semantic.add_argument("--limit", type=int, help="first frames of each data set only")
    semantic.add_argument("--output", type=Path, default=RESULTS / "semantic_names.json")
    semantic.add_argument(
        "--set", action="store_true", help="write the threshold into the processor_config.json of the checkpoint"
    )
    semantic.set_defaults(execute=measure_semantic)
    train = commands.add_parser("train_clip", help="train a small CLIP on crops of rendered instances")
    train.add_argument("--data", required=True, help="data set with a split train")
    train.add_argument("--output", type=Path, required=True, help="folder for the model")
    train.add_argument("--updates", type=int, default=8000)
    train.set_defaults(execute=train_clip)
    measure = commands.add_parser(
        "measure_clip",
        help="names by an image-text model",
        description="The share of found instances that an image-text model names right, of 198 labels and with none "
        "of these left out, beside chance and the semantic head: crops and dense, one view and several; and the time "
        "that a frame of 20 instances takes.",
    )
    measure.add_argument("--labeler", required=True, help="folder of train_clip, or any model that a labeler takes")
    measure.add_argument("--checkpoint", default="sample")
    measure.add_argument("--data", required=True, help="data set with a split val")
    measure.add_argument("--scenes", help="data set of walks with a split val, for one view against several")
    measure.add_argument("--limit", type=int, help="first frames only")
    measure.add_argument("--scene_limit", type=int, help="first scenes only")
    measure.add_argument("--output", type=Path, default=RESULTS / "small_clip_names.json")
    measure.set_defaults(execute=measure_clip)
    speed = commands.add_parser("speed", help="seconds of naming a frame of 20 instances by a CLIP ViT-B/16")
    speed.add_argument("--data", default="sample")
    speed.add_argument("--output", type=Path, default=RESULTS / "naming_speed.json")
    speed.set_defaults(execute=measure_speed)
    report = commands.add_parser("report", help="fill in the tables of docs/naming.md from the stored results")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--document", type=Path, default=Path("docs/naming.md"))
    report.set_defaults(execute=write_report)
    return parser


def read_frames(data: str, split: str = "val", limit: int | None = None) -> Iterator[RGBDFrame]:
    """The frames of a data set."""
    rows = load_frames(data, split)
    for index in range(len(rows) if limit is None else min(limit, len(rows))):
        yield frame_from_row(rows[index])


def load_segmenter(checkpoint: str) -> RGBDInstanceSegmentationPipeline:
    """The pipeline of a checkpoint, on the CPU."""
    model, processor = load_pretrained(checkpoint)
    return RGBDInstanceSegmentationPipeline(model=model, processor=processor, device=torch.device("cpu"))


def measure_semantic(arguments: argparse.Namespace) -> None:
    """Writes and prints what the semantic head's names are worth."""
    from .matching import FOUND_IOU, MOSTLY, at_threshold, choose_threshold, frames_named, shares

    segmenter = load_segmenter(arguments.checkpoint)
    found = {data: frames_named(segmenter, read_frames(data, limit=arguments.limit)) for data in arguments.data}
    threshold = choose_threshold(found[arguments.data[0]][0])
    content: dict[str, Any] = {
        "protocol": {
            "checkpoint": arguments.checkpoint,
            "found": f"pipeline's instances above 0.5 with an IoU above {FOUND_IOU} over the measured pixels",
            "right": "the very class of the true instance, of 198",
            "threshold": f"lowest step of 0.05 with {MOSTLY:.0%} of the names right on {Path(arguments.data[0]).name}",
            "limit": arguments.limit,
        },
        "name_threshold": threshold,
        "data": {
            Path(data).name: {
                "true_instances": total,
                **shares(named),
                "above_the_threshold": at_threshold(named, threshold),
                "curve": [at_threshold(named, step / 10) for step in range(10)],
            }
            for data, (named, total) in found.items()
        },
    }
    write_text(arguments.output, json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))
    if arguments.set:
        path = Path(checkpoint_place(arguments.checkpoint)) / "processor_config.json"
        values = {**json.loads(path.read_text(encoding="utf-8")), "name_threshold": threshold}
        write_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def measure_clip(arguments: argparse.Namespace) -> None:
    """Writes and prints what an image-text model's names are worth."""
    from .by_text import measure

    content = measure(
        load_segmenter(arguments.checkpoint),
        arguments.labeler,
        list(read_frames(arguments.data, limit=arguments.limit)),
        arguments.scenes,
        arguments.scene_limit,
    )
    training = Path(arguments.labeler) / "training.json"
    content["protocol"] = {
        "checkpoint": arguments.checkpoint,
        "labeler": Path(arguments.labeler).name,
        "training": json.loads(training.read_text(encoding="utf-8")) if training.is_file() else None,
        "data": Path(arguments.data).name,
        "scenes": arguments.scenes and Path(arguments.scenes).name,
        "limit": arguments.limit,
        "scene_limit": arguments.scene_limit,
        **content["protocol"],
    }
    write_text(arguments.output, json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


def measure_speed(arguments: argparse.Namespace) -> None:
    """Writes and prints how long naming a frame takes."""
    from .speed import full_size

    content = full_size(next(read_frames(arguments.data)))
    write_text(arguments.output, json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


def write_report(arguments: argparse.Namespace) -> None:
    """Fills in the tables."""
    from .report import write_tables

    write_tables(arguments.results, arguments.document)


def train_clip(arguments: argparse.Namespace) -> None:
    """Trains the small CLIP and says on what."""
    from .small_clip import train

    content = train(arguments.data, arguments.output, updates=arguments.updates)
    write_text(arguments.output / "training.json", json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
