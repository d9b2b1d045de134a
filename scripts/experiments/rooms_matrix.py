"""Does the image help? Cells of the rooms experiment, their comparison and their pictures."""

import argparse
import traceback
from collections.abc import Sequence
from pathlib import Path

from bifusion_hf.cli.openmp import restart_with_passive_threads


EXAMPLES = """examples:
  python -m scripts.experiments.rooms_matrix run --data rooms --recipes rooms_none rooms_residual --seeds 0 \\
      --work outputs/matrix
  python -m scripts.experiments.rooms_matrix run --data rooms --recipes rooms_none rooms_residual --seeds 0 1 \\
      --work outputs/matrix --training.epochs 6 --training.batch_size 4
  python -m scripts.experiments.rooms_matrix report --work outputs/matrix
  python -m scripts.experiments.rooms_matrix report
  python -m scripts.experiments.rooms_matrix pictures --data rooms --work outputs/matrix --cells rooms_residual-s0

Stop it at any time and start it again: finished cells are skipped, the others go on at their latest checkpoint.
Started twice at once with the same words, the two processes share the cells.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: An argument is wrong, with the reason, or a cell failed.
    """
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if overrides and arguments.command != "run":
        parser.error(f"unknown arguments {' '.join(overrides)}")
    if argv is None and arguments.command == "run":
        restart_with_passive_threads()
    try:
        arguments.execute(arguments, overrides)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.rooms_matrix",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,report,pictures}")

    run = commands.add_parser(
        "run",
        help="train and evaluate cells",
        description="Trains each recipe with each seed and evaluates it on all validation frames: as they are, with "
        "images exchanged between frames, and with the image branch off. Writes one JSON file a cell.",
        epilog="Every key of a recipe can be given for all cells, as for bifusion-train: --training.epochs 6",
        allow_abbrev=False,
    )
    run.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="data set of render_rooms.py")
    run.add_argument("--recipes", nargs="+", required=True, metavar="RECIPE", help="rooms_none, rooms_residual, ...")
    run.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="default: 0")
    run.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for checkpoints and detections")
    _add_results(run)
    run.set_defaults(execute=run_cells)

    report = commands.add_parser(
        "report",
        help="tables, intervals and plots",
        description="Writes the card: AP50 by cell and group of classes with mean and spread over seeds, differences "
        "with bootstrap intervals, controls, classes, runs, plots. With --work the intervals are computed from the "
        "detections of the runs and kept as comparison.json; without it that file is enough. AP50 in every bootstrap "
        "draw is kept beside each result, so that cells can be added after the folders of earlier runs are gone.",
        allow_abbrev=False,
    )
    _add_results(report)
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the card; pictures are written beside it (default: README.md beside the results)",
    )
    report.add_argument("--work", type=Path, metavar="FOLDER", help="of `run`: compute the intervals anew")
    report.set_defaults(execute=report_cells)

    pictures = commands.add_parser(
        "pictures",
        help="alpha maps and failures",
        description="Draws, for trained cells, the frames in which most is missed, of another class or invented, and "
        "the gate's weights over the image; `report` takes them into the card.",
        allow_abbrev=False,
    )
    pictures.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="data set of render_rooms.py")
    pictures.add_argument("--cells", nargs="+", required=True, metavar="CELL", help="rooms_residual-s0, ...")
    pictures.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="of `run`")
    pictures.add_argument("--count", type=int, default=3, help="frames of each kind (default: %(default)s)")
    pictures.add_argument("--threshold", type=float, default=0.3, help="lowest score looked at (default: %(default)s)")
    pictures.add_argument("--limit", type=int, help="look at the first frames only")
    _add_results(pictures)
    pictures.set_defaults(execute=draw_cells)
    return parser


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("model_cards/rooms"),
        metavar="FOLDER",
        help="of the JSON files (default: %(default)s)",
    )


def run_cells(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """`run`: all cells in turn; one that fails does not stop the others.

    Raises:
        ValueError: A recipe or the data set is wrong.
        SystemExit: Cells failed.
    """
    from .cells import RoomsData, load_cells

    data = RoomsData.read(arguments.data)
    cells = load_cells(arguments.recipes, arguments.seeds, data, arguments.work.resolve(), overrides)

    # Late, so that a mistake in a recipe is told at once.
    from .running import run_cell

    failed = []
    for cell in cells:
        print(f"{cell.name}: begins", flush=True)
        try:
            print(f"{cell.name}: {run_cell(cell, data, arguments.results)}", flush=True)
        # Whatever stops one cell, hours of others must not be lost.
        except Exception:
            traceback.print_exc()
            failed.append(cell.name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def report_cells(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """`report`.

    Raises:
        ValueError: Results or detections are missing.
    """
    from .report import write_report

    output = arguments.output or arguments.results / "README.md"
    write_report(arguments.results, output, arguments.work)
    print(f"-> {output}")


def draw_cells(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """`pictures`.

    Raises:
        ValueError: A cell is not trained.
    """
    from .cells import RoomsData
    from .pictures import draw_cell

    data = RoomsData.read(arguments.data)
    for name in arguments.cells:
        entries = draw_cell(
            name,
            data,
            arguments.work.resolve(),
            arguments.results,
            count=arguments.count,
            threshold=arguments.threshold,
            limit=arguments.limit,
        )
        for entry in entries:
            print(f"-> {arguments.results / entry['file']}: {entry['caption']}")


if __name__ == "__main__":
    main()
