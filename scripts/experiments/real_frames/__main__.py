"""The real benchmark: checkpoints, boxes and the estimated up on real frames, pictures, and the card from all."""

import argparse
import hashlib
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..command import run
from .card import BOXES, GRAVITY, PREFIX, boxes_table, gravity_table, summary_table, write_card
from .folder import read_real_frames


EXAMPLES = """examples:
  python -m scripts.experiments.real_frames measure --frames real --checkpoint sample --name sample
  python -m scripts.experiments.real_frames pictures --frames real --checkpoint sample --name sample
  python -m scripts.experiments.real_frames gravity --frames real --data sample
  python -m scripts.experiments.real_frames boxes --frames real --checkpoint sample
  python -m scripts.experiments.real_frames report

The layout of the frames' folder is in scripts/experiments/real_frames/folder.py.
"""
_PACKAGES = ("bifusion_hf", "torch", "transformers", "numpy", "scipy", "scikit-image")


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
        prog="python -m scripts.experiments.real_frames",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    measure = commands.add_parser(
        "measure",
        help="measure a checkpoint on the labelled frames",
        description="Average precision, mean best IoU and the superpoints' ceiling of each group of frames: without a "
        "pose, without even estimating which way is up, and with the true up, with intervals over frames; written as "
        "JSON and printed.",
    )
    _add_checkpoint(measure)
    _add_results(measure)
    measure.add_argument("--data", help="rendered frames to measure beside: folder, id, or 'sample'")
    measure.add_argument("--split", default="val", help="of them (default: val)")
    measure.set_defaults(execute=measure_checkpoint)

    pictures = commands.add_parser(
        "pictures",
        help="draw a checkpoint's instances over all frames",
        description="Draws instances above score 0.5 over every frame, without a pose, as one mosaic a group.",
    )
    _add_checkpoint(pictures)
    pictures.add_argument("--labelled", action="store_true", help="leave the frames without labels out")
    pictures.add_argument(
        "--output", type=Path, default=Path("model_cards/real"), metavar="FOLDER", help="default: %(default)s"
    )
    pictures.set_defaults(execute=draw_checkpoint)

    gravity = commands.add_parser(
        "gravity",
        help="measure the estimated up",
        description="Angle between the up that a frame without a pose is given and the true one: on the real frames "
        "with pose_gravity.txt, and on rendered frames whose pose is taken away.",
    )
    gravity.add_argument("--frames", type=Path, required=True, metavar="FOLDER", help="of the real frames")
    gravity.add_argument("--data", default="sample", help="rendered frames: folder, id, or 'sample' (default)")
    gravity.add_argument("--split", default="val", help="default: val")
    _add_results(gravity)
    gravity.set_defaults(execute=measure_up)

    boxes = commands.add_parser(
        "boxes",
        help="measure boxes and stray parts",
        description="Errors of the extents of labelled objects that are found, and the share of segments with stray "
        "points: masks left whole and taken apart, boxes around all points and without the outermost.",
    )
    boxes.add_argument("--frames", type=Path, required=True, metavar="FOLDER", help="of the real frames")
    boxes.add_argument("--checkpoint", default="sample", help="folder, id on the Hub, or 'sample' (default)")
    boxes.add_argument("--part_gap", type=float, default=0.05, metavar="METRES", help="default: %(default)s")
    _add_results(boxes)
    boxes.set_defaults(execute=measure_extents)

    report = commands.add_parser("report", help="write the card", description="Writes the card from the JSON files.")
    _add_results(report)
    report.add_argument(
        "--output", type=Path, default=Path("model_cards/real/README.md"), metavar="FILE", help="default: %(default)s"
    )
    report.set_defaults(execute=lambda arguments: write_card(arguments.results, arguments.output))
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=Path, required=True, metavar="FOLDER", help="of the real frames")
    parser.add_argument("--checkpoint", default="sample", help="folder, id on the Hub, or 'sample' (default)")
    parser.add_argument("--name", required=True, help="of the result, for instance sample")
    parser.add_argument("--part_gap", type=float, metavar="METRES", help="as for bifusion-evaluate")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("model_cards/results"),
        metavar="FOLDER",
        help="of the JSON files (default: %(default)s)",
    )


def measure_checkpoint(arguments: argparse.Namespace) -> None:
    """`measure`."""
    from bifusion_hf.hub.pretrained import load_pretrained

    from ..running import write_json
    from .measurement import measure

    frames = list(read_real_frames(arguments.frames, labelled=True))
    model, processor = load_pretrained(arguments.checkpoint)
    if arguments.part_gap is not None:
        processor.part_gap = arguments.part_gap
    result = {
        "checkpoint": Path(arguments.checkpoint).name,
        "weights": _weights_hash(model),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in _PACKAGES},
        **measure(model.eval(), processor, frames),
    }
    if arguments.data is not None:
        result["rendered"] = _measure_rendered(model, processor, arguments.data, arguments.split)
    print(summary_table({arguments.name: result}))
    path = arguments.results / f"{PREFIX}{arguments.name}.json"
    write_json(path, result)
    print(f"-> {path}")


def _measure_rendered(model, processor, data: str, split: str) -> dict[str, Any]:
    """Class-agnostic AP on rendered frames, under their names as the real ones have them."""
    from bifusion_hf.data.dataset import FrameDataset
    from bifusion_hf.data.frames import load_frames
    from bifusion_hf.evaluation.evaluator import evaluate_model
    from bifusion_hf.evaluation.results import headline

    dataset = FrameDataset(load_frames(data, split), processor)
    found = headline(evaluate_model(model, processor, dataset, class_agnostic=True))
    names = {"ap": "all_ap", "ap50": "all_ap_50%", "ap25": "all_ap_25%"}
    return {"data": Path(data).name, "split": split, **{name: found[key] for name, key in names.items()}}


def measure_up(arguments: argparse.Namespace) -> None:
    """`gravity`."""
    from bifusion_hf.data.frames import frame_from_row, load_frames

    from ..running import write_json
    from .gravity import measure_gravity

    rendered = (frame_from_row(row) for row in load_frames(arguments.data, arguments.split))
    result = measure_gravity(read_real_frames(arguments.frames), rendered)
    print(gravity_table(result))
    path = arguments.results / f"{PREFIX}{GRAVITY}.json"
    write_json(path, {"data": Path(arguments.data).name, "split": arguments.split, **result})
    print(f"-> {path}")


def measure_extents(arguments: argparse.Namespace) -> None:
    """`boxes`."""
    from bifusion_hf.hub.pretrained import load_pretrained

    from ..running import write_json
    from .boxes import measure_boxes

    model, processor = load_pretrained(arguments.checkpoint)
    frames = list(read_real_frames(arguments.frames, labelled=True))
    result = measure_boxes(model.eval(), processor, frames, arguments.part_gap)
    print(boxes_table(result))
    path = arguments.results / f"{PREFIX}{BOXES}.json"
    write_json(path, {"checkpoint": Path(arguments.checkpoint).name, "weights": _weights_hash(model), **result})
    print(f"-> {path}")


def _weights_hash(model) -> str:
    """sha256 of all weights by name, so that a result tells which ones it is of."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().float().numpy().tobytes())
    return digest.hexdigest()


def draw_checkpoint(arguments: argparse.Namespace) -> None:
    """`pictures`."""
    from bifusion_hf.hub.pretrained import load_pretrained

    from .pictures import draw_mosaics

    model, processor = load_pretrained(arguments.checkpoint)
    if arguments.part_gap is not None:
        processor.part_gap = arguments.part_gap
    frames = read_real_frames(arguments.frames, labelled=arguments.labelled)
    for path in draw_mosaics(model.eval(), processor, frames, arguments.output, arguments.name):
        print(f"-> {path}")


if __name__ == "__main__":
    main()
