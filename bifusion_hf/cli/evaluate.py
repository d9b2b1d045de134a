"""bifusion-evaluate: average precision of a checkpoint, or of saved predictions, over a labelled data set."""

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io.sanity import check_fraction
from .entry import command
from .labeler_options import add_labeler_options, check_labeler_options, load_labeler
from .parser import DEVICE_HELP, CommandParser, one_of, use_device


EXAMPLES = """examples:
  bifusion-evaluate sample --data sample --split val
  bifusion-evaluate runs/simple/best --data data/scannet200 --output results.json --save_predictions val.parquet
  bifusion-evaluate --predictions val.parquet --data data/scannet200
  bifusion-evaluate sample --data rooms --candidate_labels scannet200 --labeler google/siglip2-base-patch16-224
  accelerate launch -m bifusion_hf.cli.evaluate runs/simple/best --data data/scannet200 --mixed_precision bf16
"""


@command("bifusion-evaluate")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    one_of(parser, arguments, "checkpoint", ["named_checkpoint"], needed=False)
    use_device("cpu" if arguments.cpu else arguments.device)
    if (arguments.checkpoint is None) == (arguments.predictions is None):
        parser.error("expected either a CHECKPOINT or --predictions")
    check_fraction("--threshold", arguments.threshold)
    check_fraction("--label_floor", arguments.label_floor)
    check_labeler_options(parser, arguments, ("candidate_labels",))
    if arguments.candidate_labels and (arguments.predictions or arguments.class_agnostic):
        parser.error("--candidate_labels and --predictions, --class_agnostic exclude each other")
    if (arguments.meshes is None) != (arguments.label_map is None) or (arguments.meshes and not arguments.scenes):
        parser.error("--meshes needs --scenes and --label_map, and --label_map --meshes")
    if arguments.scenes and (arguments.predictions or arguments.save_predictions):
        parser.error("--scenes and --predictions, --save_predictions exclude each other")
    if arguments.shard_size is not None and arguments.save_predictions is None:
        parser.error("--shard_size needs --save_predictions")
    if arguments.predictions is not None:
        given = [
            f"--{name}" for name in ("save_predictions", "seed", "part_gap") if getattr(arguments, name) is not None
        ]
        if given:
            parser.error(f"{', '.join(given)} and --predictions exclude each other")
    results, is_main = run(arguments)
    if is_main:
        report(results, arguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-evaluate",
        description="Measures instance average precision by the ScanNet protocol, and mean IoU of semantic classes, "
        "over the points sampled from each frame. A class-aware model gets class-aware and class-agnostic numbers.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="folder, id on the Hub (org/name or org/name@revision), or 'sample' for the checkpoint that comes with "
        "the package",
    )
    parser.add_argument("--checkpoint", dest="named_checkpoint", help="the same as CHECKPOINT")
    parser.add_argument("--data", required=True, help="folder with data/SPLIT-*.parquet, id on the Hub, or 'sample'")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--class_agnostic", action="store_true", help="leave the labels of a class-aware model out")
    parser.add_argument(
        "--include_95",
        action="store_true",
        help="add AP50:95 with COCO's ten thresholds, which does not compare with published ScanNet numbers",
    )
    scenes = parser.add_argument_group("whole scenes")
    scenes.add_argument(
        "--scenes",
        action="store_true",
        help="merge the frames of each scene of the data set into objects, and measure those and how steady their ids "
        "are; --limit then counts scenes",
    )
    scenes.add_argument("--merging", choices=("learned", "geometric", "none"), help="see bifusion-scan")
    scenes.add_argument("--threshold", type=float, default=0.3, help="of the instances of a frame, default: 0.3")
    scenes.add_argument("--voxel_size", type=float, default=0.04, help="metres, of a scene's map, default: 0.04")
    scenes.add_argument(
        "--meshes",
        type=Path,
        metavar="FOLDER",
        help="with a folder for each scan: measure over the vertices of ScanNet's meshes, masks voted by segment",
    )
    scenes.add_argument("--label_map", type=Path, metavar="FILE", help="scannetv2-labels.combined.tsv, for --meshes")
    naming = parser.add_argument_group("names by text")
    naming.add_argument(
        "--candidate_labels",
        nargs="+",
        metavar="LABEL",
        help="name the instances of a class-agnostic checkpoint by text and measure them with their classes: "
        "'scannet200', or names of the data's classes; instances of other classes are left out",
    )
    add_labeler_options(naming)
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="evaluate these instead of running a model")
    parser.add_argument("--save_predictions", type=Path, metavar="FILE", help="keep the predictions (Parquet)")
    parser.add_argument(
        "--shard_size",
        type=int,
        metavar="FRAMES",
        help="with --save_predictions: keep them in shards until all are there, so that a run that was stopped goes "
        "on; default with several processes: 256",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--batch_size", type=int, default=4, help="frames of one forward, default: 4")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that prepare frames, default: 0")
    parser.add_argument("--limit", type=int, help="evaluate the first frames only")
    parser.add_argument(
        "--part_gap",
        type=float,
        metavar="METRES",
        help="parts of a mask farther apart are instances of their own, 0 leaves masks whole; default: processor's",
    )
    parser.add_argument("--seed", type=int, help="of the point sampling; the processor's by default")
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), help="default: Accelerate's setting")
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    return parser


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Evaluates what the arguments name.

    Returns:
        The result in the form of `bifusion_hf.evaluation.results`, and whether this is the main process.

    Raises:
        ValueError: The data set, the predictions or the options do not fit.
    """
    from ..data.frames import load_frames

    rows = load_frames(arguments.data, arguments.split)
    if arguments.limit is not None:
        if arguments.limit < 1:
            raise ValueError(f"--limit is {arguments.limit}; expected at least 1")
        if not arguments.scenes:
            rows = rows.select(range(min(arguments.limit, len(rows))))
    options = {"class_agnostic": arguments.class_agnostic, "include_95": arguments.include_95}
    if arguments.predictions is not None:
        from ..evaluation import PredictionFile, evaluate_predictions

        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched > 1:
            raise ValueError(f"--predictions needs one process; {launched} were launched")
        predictions = PredictionFile(arguments.predictions)
        names = predictions.processor().label_names, predictions.semantic_names
        has_same_classes = compare_classes(arguments, *names)
        results, is_main = evaluate_predictions(predictions, rows, **options), True
        source = {"predictions": str(arguments.predictions)}
        if not has_same_classes:
            results.pop("semantic", None)
    else:
        results, is_main = evaluate_checkpoint(arguments, rows, options)
        source = {"checkpoint": arguments.checkpoint, "superpoints": superpoint_source(rows)}
    where = {"data": arguments.data, "split": arguments.split, "limit": arguments.limit}
    results["protocol"] = {**source, **where, **results["protocol"]}
    return results, is_main


def evaluate_checkpoint(
    arguments: argparse.Namespace, rows: Any, options: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Runs a checkpoint on the rows; see `run`."""
    from ..batch.processes import group_options
    from ..hub.pretrained import load_pretrained
    from ..training.setup import launched_accelerator

    cpu = arguments.cpu or arguments.device == "cpu"
    accelerator = launched_accelerator(arguments.mixed_precision, cpu=cpu, kwargs_handlers=[group_options()])
    model, processor = load_pretrained(arguments.checkpoint)
    has_same_classes = compare_classes(arguments, processor.label_names, model.config.semantic_id2label)
    model = model.eval().to(accelerator.device)
    if arguments.seed is not None:
        processor.sampling_seed = arguments.seed
    if arguments.part_gap is not None:
        processor.part_gap = arguments.part_gap
    if arguments.candidate_labels is not None:
        from ..data.class_names import read_classes
        from ..evaluation.open_vocabulary import OpenVocabulary

        words = arguments.candidate_labels
        options["vocabulary"] = OpenVocabulary(
            load_labeler(arguments, accelerator.device),
            words[0] if len(words) == 1 else words,
            processor,
            dict(enumerate(read_classes(arguments.data))),
            compare_semantics=has_same_classes,
        )
    measure = _measure_scenes if arguments.scenes else _measure_frames
    results = measure(model, processor, rows, accelerator, arguments, options)
    results["protocol"]["mixed_precision"] = accelerator.mixed_precision
    if not has_same_classes:
        results.pop("semantic", None)
    is_main = accelerator.is_main_process
    accelerator.end_training()
    return results, is_main


def compare_classes(
    arguments: argparse.Namespace, label_names: Sequence[str], semantic_names: Mapping[int, str] | None
) -> bool:
    """Whether the numbers in the data set's class images mean what they mean to the network.

    Args:
        arguments: Of the command.
        label_names: Of the network's instances.
        semantic_names: Of its semantic classes; None = it does not say.

    Raises:
        ValueError: They do not, and the labels of instances were to be compared.
    """
    from ..data.class_names import read_classes

    classes = read_classes(arguments.data)
    if semantic_names is None or dict(enumerate(classes)) == dict(semantic_names):
        return True
    known = [semantic_names[index] for index in sorted(semantic_names)]
    theirs, ours = (f"{len(names)} ({', '.join(names[2:5])}, ...)" for names in (classes, known))
    told = f"{arguments.data} has {theirs} classes of its own, the network {ours}"
    if len(label_names) > 1 and not arguments.class_agnostic:
        raise ValueError(f"{told}; --class_agnostic measures the instances without their labels")
    print(f"{told}: semantic classes are not compared")
    return False


def _measure_frames(model, processor, rows, accelerator, arguments, options) -> dict[str, Any]:
    from ..data.dataset import FrameDataset
    from ..evaluation import PredictionWriter, evaluate_model

    vocabulary, naming, truth_processor = options.pop("vocabulary", None), {}, processor
    if vocabulary is not None:
        truth_processor = vocabulary.processor
        naming = {
            "name_instances": vocabulary.namer(rows),
            "truth_processor": truth_processor,
            "extra_protocol": vocabulary.protocol,
        }
    loading = {"batch_size": arguments.batch_size, "num_workers": arguments.num_workers, **naming, **options}
    if arguments.save_predictions is not None and (accelerator.num_processes > 1 or arguments.shard_size is not None):
        return _measure_in_shards(model, processor, truth_processor, rows, accelerator, arguments, loading)
    with contextlib.ExitStack() as stack:
        on_prediction = None
        if arguments.save_predictions is not None:
            writer = PredictionWriter(arguments.save_predictions, truth_processor, model.config.semantic_id2label)
            on_prediction = stack.enter_context(writer).write
        return evaluate_model(
            model,
            processor,
            FrameDataset(rows, truth_processor),
            accelerator=accelerator,
            progress=True,
            on_prediction=on_prediction,
            **loading,
        )


def _measure_in_shards(
    model, processor, truth_processor, rows, accelerator, arguments, loading: dict[str, Any]
) -> dict[str, Any]:
    """Writes the predictions in shards, and measures the file that they become."""
    from ..batch import Processes
    from ..data.dataset import FrameDataset
    from ..evaluation import PredictionFile, evaluate_model, evaluate_predictions
    from ..evaluation.prediction_shards import write_in_shards
    from ..io.hub_files import weights_digest

    def predict(places: Sequence[int], writer) -> None:
        frames = FrameDataset(rows.select(places), truth_processor)
        with accelerator.autocast():
            evaluate_model(model, processor, frames, on_prediction=writer.write, **loading)

    processes = Processes(accelerator.process_index, accelerator.num_processes)
    names = ("checkpoint", "data", "split", "batch_size", "part_gap", "seed", "candidate_labels", "labeler")
    names = (*names, "labeler_mode", "label_floor")
    settings = {name: getattr(arguments, name) for name in names}
    settings |= {"mixed_precision": accelerator.mixed_precision, "templates": str(arguments.templates)}
    write_in_shards(
        arguments.save_predictions,
        len(rows),
        predict,
        truth_processor,
        model.config.semantic_id2label,
        {**settings, "weights_sha256": weights_digest(arguments.checkpoint)},
        shard_size=arguments.shard_size or 256,
        processes=processes,
    )
    results = None
    if processes.is_main:
        measured = {name: loading[name] for name in ("class_agnostic", "include_95")}
        results = evaluate_predictions(PredictionFile(arguments.save_predictions), rows, **measured)
        results["protocol"].update(loading.get("extra_protocol", {}))
    return processes.gather(results)[0]


def _measure_scenes(model, processor, rows, accelerator, arguments, options) -> dict[str, Any]:
    from ..data.recordings.rows import RowScenes
    from ..data.scannet.scan_mesh import ScanMeshes
    from ..evaluation.scene_evaluator import evaluate_scenes

    meshes = None if arguments.meshes is None else ScanMeshes(arguments.meshes, arguments.label_map)
    return evaluate_scenes(
        model,
        processor,
        RowScenes(arguments.data, rows, arguments.limit),
        merging=arguments.merging,
        threshold=arguments.threshold,
        voxel_size=arguments.voxel_size,
        meshes=meshes,
        accelerator=accelerator,
        progress=True,
        **options,
    )


def superpoint_source(rows: Any) -> str:
    """Where the superpoints of a data set's frames come from."""
    given = 0
    if "superpoints" in rows.column_names:
        column = rows.select_columns(["superpoints"]).with_format("arrow")[:].column("superpoints")
        given = len(column) - column.null_count
    if given == 0:
        return "segmented from each frame by the processor"
    return "data set" if given == len(rows) else f"data set in {given} of {len(rows)} frames, else segmented"


def report(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints a result and writes it where `--output` says."""
    from ..evaluation import format_results, headline, save_results

    print(format_results(results))
    print()
    for name, value in headline(results).items():
        print(f"{name}: {value:.4f}")
    if arguments.output is not None:
        save_results(results, arguments.output)
        print(f"-> {arguments.output}")


if __name__ == "__main__":
    main()
