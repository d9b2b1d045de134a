"""Provokes every kind of mistake and writes the table: `python -m scripts.mistakes [docs/mistakes.md]`."""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bifusion_hf.cli.entry import EXPECTED
from bifusion_hf.io.atomic import write_text
from bifusion_hf.io.sanity import collected_doubts

from .bench import Bench
from .kinds import GROUPS, Kind


DOCUMENT = Path("docs/mistakes.md")
_INTRODUCTION = """# Mistakes, and what is said to them

What users do, found by trying, and from public reports about programs of this kind. *Refused* means an error (a
command ends with it in one line and status 1, or 2 for its arguments); *warned* means that the result is given, with a
word of doubt; the rest simply works. This page is made by `python -m scripts.mistakes`, which does each of these, and
a test compares it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the table.

    Args:
        argv: The document, `DOCUMENT` by default.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    document = Path(words[0]) if words else DOCUMENT
    write_text(document, page())
    print(f"-> {document}")


def page() -> str:
    """The document; every kind is provoked."""
    sections = [_INTRODUCTION]
    for name, kinds in GROUPS.items():
        rows = [f"| {kind[0]} | {_cell(answer(kind))} |" for kind in kinds]
        sections.append("\n".join([f"## {name}", "", "| what was done | what is said |", "| --- | --- |", *rows, ""]))
    return "\n".join(sections)


def answer(kind: Kind) -> str:
    """What the package says to a kind of mistake: "refused: ...", "warned: ...", or what it made of it."""
    with tempfile.TemporaryDirectory() as name, _at(Path(name)), collected_doubts() as doubts:
        try:
            result = kind[1](Bench(Path(name)))
        except SystemExit as error:
            text = _printed(error)
        except EXPECTED as error:
            text = f"refused: {error}"
        else:
            text = result if isinstance(result, str) else "taken without a word"
            text = f"warned: {'; '.join(doubts)}" if doubts else text
        # Places in memory and on this machine are no part of an answer.
        text = re.sub(r" object at 0x[0-9a-f]+", "", text.replace(f"{name}/", "").replace(name, "."))
        return " ".join(text.split())


_usage = io.StringIO()


def _printed(error: SystemExit) -> str:
    """What a command ends with: its own line, or that of argparse."""
    return f"refused: {error.code if isinstance(error.code, str) else _usage.getvalue().strip().splitlines()[-1]}"


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[None]:
    """In the folder, with what argparse prints kept."""
    before = Path.cwd()
    _usage.seek(0)
    _usage.truncate()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(_usage):
            yield
    finally:
        os.chdir(before)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
