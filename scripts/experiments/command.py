"""How the experiments' command lines run."""

import argparse
from collections.abc import Sequence


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Calls `execute` of the parsed arguments with them.

    Args:
        parser: Its subcommands set `execute`.
        argv: Arguments without the program's name; None = those of the process.

    Raises:
        SystemExit: An argument, a file or a package is wrong, with the reason.
    """
    arguments = parser.parse_args(argv)
    try:
        arguments.execute(arguments)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
