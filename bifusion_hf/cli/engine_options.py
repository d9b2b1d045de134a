"""Options of the commands whose work is made in shards, by processes of this machine or of a cluster."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ..batch import Engine


def add_engine_options(parser: argparse._ActionsContainer) -> None:
    """`--engine` and `--address`; the number of `--workers` is the command's own."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who does the work: processes of this machine (default), or a Ray cluster, where --workers is how many "
        "work at once, by default as many as there is room for",
    )
    parser.add_argument(
        "--address",
        help="of the Ray cluster: HOST:PORT, ray://HOST:PORT, or auto for the one that this machine is part of; by "
        "default one is started here",
    )


def check_engine_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends with a usage error where an address has no cluster."""
    if arguments.address is not None and arguments.engine != "ray":
        parser.error("--address needs --engine ray")


def engine_of(
    arguments: argparse.Namespace, *, preload: Sequence[str] = (), workers: int | None = None, gpu: bool = False
) -> "Engine":
    """The engine that the options name.

    Args:
        arguments: Of the command.
        preload: See `LocalEngine`.
        workers: How many work at once; None = see `open_engine`.
        gpu: Each computes on a GPU.

    Raises:
        ValueError: See `open_engine`.
        ImportError: Ray is missing.
    """
    from ..batch import open_engine

    return open_engine(arguments.engine, processes=workers, address=arguments.address, preload=preload, gpu=gpu)
