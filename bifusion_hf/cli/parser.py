"""One manner of options in all commands: dashes and underscores, `--version`, what `--device` is."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..version import __version__


DEVICE_HELP = "cpu, cuda, cuda:1, ...; a GPU if there is one by default"


class CommandParser(argparse.ArgumentParser):
    """An argument parser that takes `--some-option` and `--some_option` alike, and has `--version`.

    Args:
        prog: Name of the command.
        options: For `ArgumentParser`.
    """

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--version", action="version", version=version_line(prog))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, with every option spelled as it was added."""
        words = list(sys.argv[1:] if args is None else args)
        known = {_spelling(option): option for option in self._option_string_actions}
        for position, word in enumerate(words):
            if word == "--":
                break
            option, equals, value = word.partition("=")
            if option.startswith("--") and option not in self._option_string_actions:
                words[position] = known.get(_spelling(option), option) + equals + value
        return super().parse_known_args(words, namespace)


def _spelling(option: str) -> str:
    return option.replace("-", "_")


def version_line(prog: str) -> str:
    """What `--version` prints."""
    return f"{prog} {__version__}"


def one_of(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, name: str, others: Sequence[str], *, needed: bool
) -> None:
    """Brings a positional argument and the options that may stand for it together; ends with a usage error else.

    Args:
        parser: The parser.
        arguments: What it gave; `name` is set.
        name: Of the positional argument.
        others: Names of the options.
        needed: Whether one of them must be there.
    """
    given = [other for other in (name, *others) if getattr(arguments, other) is not None]
    if len(given) > 1 or (needed and not given):
        options = " or ".join(f"--{other.rpartition('named_')[2]}" for other in others)
        parser.error(f"expected {name.upper()}{' once' if given else ''}, by itself or as {options}")
    for other in given:
        setattr(arguments, name, getattr(arguments, other))


def use_device(device: str | None) -> None:
    """Makes Accelerate take a device, in this process; None leaves the choice to it.

    Raises:
        ValueError: Several processes were launched, each of which has a device of its own.
    """
    if device is None:
        return
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and device != "cuda":
        raise ValueError(f"--device {device}: each of the launched processes has a device of its own")
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
