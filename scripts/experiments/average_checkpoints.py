"""The mean of the weights of checkpoints of one network, as a checkpoint of its own."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from bifusion_hf.io.atomic import new_folder
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.training.checkpoints import EMA_FILE


EXAMPLES = """examples:
  python -m scripts.experiments.average_checkpoints outputs/mean sample outputs/tiny_world/final
  python -m scripts.experiments.average_checkpoints outputs/at_800 outputs/tiny_world/checkpoints/checkpoint-0000800

A checkpoint of a run in progress stands for the moving average that the run keeps of its weights, where it keeps one.
Configuration and processor are those of the last checkpoint.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: With a message where the checkpoints cannot be averaged.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        average_checkpoints(arguments.checkpoints, arguments.dest, arguments.weights)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{parser.prog}: error: {error}") from error
    print(f"written: {arguments.dest}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.average_checkpoints",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder to write; must not exist")
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="folder, repository, or sample")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="one a checkpoint (default: equal)")
    return parser


def average_checkpoints(checkpoints: Sequence[str], dest: Path, weights: Sequence[float] | None = None) -> None:
    """Writes the weighted mean of checkpoints.

    Statistics of normalisation layers are averaged as the weights are; whole numbers, as the progress of a training,
    are those of the last checkpoint.

    Args:
        checkpoints: What `from_pretrained` takes.
        dest: Folder that does not exist yet.
        weights: One for each checkpoint, positive; equal ones by default.

    Raises:
        ValueError: The checkpoints' tensors differ in names or sizes, or the weights do not fit.
        FileExistsError: `dest` exists.
    """
    weights = [1.0] * len(checkpoints) if weights is None else list(weights)
    if len(weights) != len(checkpoints) or min(weights) <= 0:
        raise ValueError(f"--weights: {weights} for {len(checkpoints)} checkpoints; expected one each, above 0")

    mean: dict[str, torch.Tensor] = {}
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        model = BiFusionForInstanceSegmentation.from_pretrained(checkpoint)
        average = Path(checkpoint, EMA_FILE)
        if average.is_file():
            model.load_state_dict(_network_of(load_file(average)))
        tensors = model.state_dict()
        if mean and _sizes(tensors) != _sizes(mean):
            differing = sorted(dict(_sizes(tensors) ^ _sizes(mean)))
            raise ValueError(f"{checkpoint}: {len(differing)} tensors unlike {checkpoints[0]}'s: {differing[:3]}...")
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                # Summed in float64, so that the mean of equal weights is them to the bit.
                mean[name] = mean.get(name, 0) + tensor.double() * (weight / sum(weights))
            else:
                mean[name] = tensor
    model.load_state_dict(mean)
    with new_folder(dest) as partial:
        model.save_pretrained(partial)
        BiFusionProcessor.from_pretrained(checkpoints[-1]).save_pretrained(partial)


def _network_of(average: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network's tensors within those of torch's `AveragedModel`, which counts its updates too."""
    return {name.removeprefix("module."): tensor for name, tensor in average.items() if name.startswith("module.")}


def _sizes(tensors: dict[str, torch.Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
