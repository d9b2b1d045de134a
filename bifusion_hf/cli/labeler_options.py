"""Options of the commands that name instances by text."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..labeling import TextLabeler

LABELS_HELP = (
    "names to choose from: words, or a text file with one a line, or 'scannet200' for its 198 classes of things; "
    "needs --labeler"
)


def add_labeler_options(parser: argparse._ActionsContainer) -> None:
    """What model names, and how; the labels themselves are the command's."""
    parser.add_argument(
        "--labeler",
        metavar="MODEL",
        help="image-text model: folder or Hub id of a CLIP, SigLIP, ... of transformers, or open_clip's "
        "ARCHITECTURE/TAG",
    )
    parser.add_argument(
        "--labeler_mode",
        choices=("crops", "dense"),
        help="crops: each instance is cut out at three scales, default; dense: the model sees each frame once",
    )
    parser.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="sentences with {} for the label, one a line; default: a photo of",
    )
    parser.add_argument("--label_floor", type=float, metavar="SCORE", help="what scores no higher is 'unknown'")


def check_labeler_options(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, uses: tuple[str, ...]
) -> None:
    """Ends with a usage error where a labeler has nothing to do, or what needs one has none.

    Args:
        parser: The parser.
        arguments: What it gave.
        uses: Names of the options that a labeler is for.
    """
    given = [f"--{name}" for name in uses if getattr(arguments, name) is not None]
    options = " or ".join(f"--{name}" for name in uses)
    if given and arguments.labeler is None:
        parser.error(f"{', '.join(given)} needs --labeler")
    if arguments.labeler is not None and not given:
        parser.error(f"--labeler needs {options}")
    if arguments.labeler is None:
        unused = [
            name for name in ("labeler_mode", "templates", "label_floor") if getattr(arguments, name) is not None
        ]
        if unused:
            parser.error(f"{', '.join(f'--{name}' for name in unused)} needs --labeler")


def given_labels(words: list[str] | None) -> list[str] | None:
    """The labels of an option with one or more words; see `labeling.read_labels`.

    Raises:
        ValueError: They are malformed.
    """
    from ..labeling import read_labels

    if words is None:
        return None
    return read_labels(words[0] if len(words) == 1 else words)


def load_labeler(arguments: argparse.Namespace, device: Any = None) -> "TextLabeler | None":
    """The labeler of the options; None without `--labeler`.

    Raises:
        ValueError: An option is malformed, or the model has no text tower.
        OSError: There is no such model.
    """
    if arguments.labeler is None:
        return None
    from ..labeling import TextLabeler

    return TextLabeler(**labeler_arguments(arguments), device=device)


def labeler_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say to `TextLabeler`."""
    return {
        "model": arguments.labeler,
        "mode": arguments.labeler_mode or "crops",
        "templates": arguments.templates,
        "floor": 0.0 if arguments.label_floor is None else arguments.label_floor,
    }
