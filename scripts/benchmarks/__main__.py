"""`python -m scripts.benchmarks`: what the parts of the package cost, one subcommand a part."""

import argparse
import importlib
from collections.abc import Sequence

from bifusion_hf.io.memory import keep_freed_memory


# subcommand -> what it measures; each is a module of `benchmarks` with `add_arguments(parser)` and `run(args)`.
BENCHMARKS = {
    "sparse": "sparse convolutions and the whole backbone, against spconv and the machine's peak",
    "frame": "a frame from images to instances by stage, and as a stream",
    "model": "the whole network: time and memory of a frame",
    "evaluation": "the average precision of a full validation set",
    "training": "a training run: waiting for data, the network, and the loop itself",
    "imports": "importing the package, and a first prediction",
    "parameters": "the size of every preset, part by part",
    "scenes": "whole scenes: average precision with and without merging, time and memory of a long session",
    "page_load": "the demo page under many visitors at once",
    "endurance": "memory and open files over thousands of frames",
    "scale": "preparation and prediction in shards on each engine, and the cost of millions of frames",
    "results": "measured average precision, from the files of bifusion-evaluate",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks", description="Measures the parts of the package."
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="{" + ",".join(BENCHMARKS) + "}")
    for name, measured in BENCHMARKS.items():
        module = importlib.import_module(f".{name}", __package__)
        command = commands.add_parser(name, help=measured, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    # As the commands do.
    keep_freed_memory()
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error


if __name__ == "__main__":
    main()
