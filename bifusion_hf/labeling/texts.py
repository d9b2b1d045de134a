"""Candidate labels and the sentences that they are put into."""

from collections.abc import Sequence
from pathlib import Path

from ..io.files import DataFileError
from ..labels import INSTANCE_CLASS_NAMES


# The classes of ScanNet200 that have instances, by one word.
SCANNET200_LABELS = "scannet200"
# What an instance is called that none of the candidates fits.
UNKNOWN = "unknown"
# ImageNet has 1000 classes, LVIS 1203. Far longer lists are files of something else.
MAX_LABELS = 5000
TEMPLATES = ("a photo of a {}.",)
# What says nothing of a thing (canonical phrases of LERF, Kerr et al., ICCV 2023): a label has to fit better.
NONE_TEXTS = ("object", "things", "stuff", "texture")


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Candidate labels, checked.

    Args:
        labels: The labels; or `"scannet200"`; or a text file, one a line; or labels with commas between them.

    Raises:
        ValueError: There is none, one is blank or not text, one stands twice, or there are more than `MAX_LABELS`.
        DataFileError: The file cannot be read.
    """
    source = "candidate_labels"
    if isinstance(labels, str | Path):
        if str(labels) == SCANNET200_LABELS:
            return list(INSTANCE_CLASS_NAMES)
        if _is_file(labels):
            source, labels = str(labels), read_lines(labels)
        elif isinstance(labels, Path):
            raise DataFileError(labels, "is no file of labels: there is none")
        else:
            labels = labels.split(",") if labels.strip() else []
    labels = list(labels)
    strange = [label for label in labels if not isinstance(label, str)]
    if strange:
        raise ValueError(f"{source} has {strange[0]!r}, a {type(strange[0]).__name__}; expected text")
    names = [" ".join(label.split()) for label in labels]
    if not names:
        raise ValueError(f"{source} has no label; expected at least one")
    if "" in names:
        raise ValueError(f"{source} has an empty label, number {names.index('') + 1} of {len(names)}; expected words")
    if len(names) > MAX_LABELS:
        raise ValueError(f"{source} has {len(names)} labels; expected at most {MAX_LABELS}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source} has {twice!r} more than once")
    return names


def read_templates(templates: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Sentences with a place `{}` for the label.

    Args:
        templates: The sentences; or a text file, one a line; or one sentence; None = `TEMPLATES`.

    Raises:
        ValueError: There is none, or one has not exactly one place for the label.
        DataFileError: The file cannot be read.
    """
    source = "templates"
    if templates is None:
        return TEMPLATES
    if isinstance(templates, Path) or (isinstance(templates, str) and "{}" not in templates):
        source, templates = str(templates), read_lines(templates)
    elif isinstance(templates, str):
        templates = [templates]
    templates = tuple(templates)
    if not templates:
        raise ValueError(f"{source} has no template; expected sentences with a place {{}} for the label")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1 or template.count("{") != 1:
            raise ValueError(f"{source} has {template!r}; expected a sentence with one place {{}} for the label")
    return templates


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank, and no comments (`#`).

    Raises:
        DataFileError: It is missing, or no text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(path, f"cannot be read as text ({error})") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _is_file(text: str | Path) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # Longer than a file's name can be.
        return False
