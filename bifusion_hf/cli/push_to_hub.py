"""bifusion-push-to-hub: releases a checkpoint, or a data set of frames, on the Hub."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import assets
from .entry import command
from .parser import CommandParser


EXAMPLES = """examples:
  bifusion-evaluate runs/simple/best --data org/rooms --output results.json
  bifusion-push-to-hub runs/simple/best org/bifusion-rooms --metrics results.json --dry_run release/
  bifusion-push-to-hub runs/simple/best org/bifusion-rooms --metrics results.json --tag v1.0
  bifusion-push-to-hub data/rooms org/rooms --type dataset --tag v1.0

The token is that of `hf auth login`, or HF_TOKEN; it is never an argument.
"""
# Options of one kind of release alone.
MODEL_OPTIONS = (
    "metrics",
    "recipe",
    "picture",
    "base_model",
    "training_data",
    "training_data_license",
    "training_data_id",
    "evaluation_data",
    "evaluation_data_license",
    "evaluation_data_id",
)
DATASET_OPTIONS = ("name", "origin")


@command("bifusion-push-to-hub")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    foreign = DATASET_OPTIONS if arguments.type == "model" else MODEL_OPTIONS
    given = [f"--{name}" for name in foreign if getattr(arguments, name) is not None]
    if given:
        parser.error(f"{', '.join(given)}: not for --type {arguments.type}")
    if arguments.type == "model" and arguments.metrics is None:
        parser.error("--metrics is missing: the JSON file of bifusion-evaluate --output")

    from ..hub.release import publish

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.dry_run or Path(temporary) / "release"
        write_release(folder, arguments)
        if arguments.dry_run is not None:
            print(f"{folder}: the release, not uploaded")
            return
        published = publish(
            folder,
            arguments.repo,
            repo_type=arguments.type,
            private=not arguments.public,
            tag=arguments.tag,
            message=arguments.message,
        )
    version = f", tag {published.tag}" if published.tag else ""
    print(f'{published.url}: revision="{published.commit}"{version}')


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-push-to-hub",
        description="Writes a release (weights, processor, metrics, recipe, card) and uploads it in one commit.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder or id of a model, 'sample' for that of the package; or the folder of a data set",
    )
    parser.add_argument("repo", metavar="REPO", help="owner/name on the Hub")
    parser.add_argument("--type", choices=("model", "dataset"), default="model", help="default: model")
    parser.add_argument("--dry_run", type=Path, metavar="FOLDER", help="write the release there and upload nothing")
    parser.add_argument("--tag", help="name of the version, such as v1.0; tags never move")
    parser.add_argument("--public", action="store_true", help="by default the repository is private")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--license", help="of the weights (default: apache-2.0), or of a data set without a card")
    parser.add_argument("--template", type=Path, metavar="FILE", help="card template; by default that of model_cards/")
    model = parser.add_argument_group("models")
    model.add_argument("--metrics", type=Path, metavar="FILE", help="of bifusion-evaluate --output")
    model.add_argument("--recipe", type=Path, metavar="FILE", help="by default recipe.yaml beside the checkpoint")
    model.add_argument("--picture", type=Path, metavar="FILE", help="by default the instances of a sample frame")
    model.add_argument("--base_model", metavar="ID", help="model on the Hub that training started from")
    for kind, source in (("training", "the recipe"), ("evaluation", "the metrics")):
        title = f"name of the {kind} data; by default from the card of the data set that {source} name"
        model.add_argument(f"--{kind}_data", metavar="NAME", help=title)
        model.add_argument(f"--{kind}_data_license", metavar="LICENCE", help="by default from the same card")
        model.add_argument(f"--{kind}_data_id", metavar="ID", help="where that data set is on the Hub")
    data = parser.add_argument_group("data sets without a card")
    data.add_argument("--name", help="for readers")
    data.add_argument("--origin", help="where the frames come from, and whose they are")
    return parser


def write_release(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes the release that the arguments name.

    Raises:
        ValueError: Something is missing or malformed.
        OSError: A file cannot be read.
    """
    from ..evaluation.results import load_results
    from ..hub.model_card import describe_data
    from ..hub.release import write_dataset_release, write_model_release
    from ..recipe.reading import load_arguments

    if arguments.type == "dataset":
        write_dataset_release(
            folder,
            Path(arguments.checkpoint),
            repo_id=arguments.repo,
            private=not arguments.public,
            name=arguments.name,
            license=arguments.license,
            origin=arguments.origin,
            template=arguments.template,
        )
        return
    checkpoint = str(assets.SAMPLE_CHECKPOINT) if arguments.checkpoint == "sample" else arguments.checkpoint
    results = load_results(arguments.metrics)
    recipe = load_arguments(arguments.recipe or find_recipe(checkpoint))
    write_model_release(
        folder,
        checkpoint,
        repo_id=arguments.repo,
        results=results,
        recipe=recipe,
        training_data=describe_data(
            recipe.data.train,
            name=arguments.training_data,
            license=arguments.training_data_license,
            hub_id=arguments.training_data_id,
        ),
        evaluation_data=describe_data(
            results.get("protocol", {}).get("data", "unknown"),
            name=arguments.evaluation_data,
            license=arguments.evaluation_data_license,
            hub_id=arguments.evaluation_data_id,
        ),
        license=arguments.license or "apache-2.0",
        base_model=arguments.base_model,
        tag=arguments.tag,
        picture=arguments.picture,
        template=arguments.template,
    )


def find_recipe(checkpoint: str) -> Path:
    """`recipe.yaml` in the checkpoint's folder or the one above, where training writes it.

    Raises:
        ValueError: It is in neither.
    """
    for folder in (Path(checkpoint), Path(checkpoint).parent):
        if (folder / "recipe.yaml").is_file():
            return folder / "recipe.yaml"
    raise ValueError(f"no recipe.yaml in {checkpoint} or the folder above; name it with --recipe")


if __name__ == "__main__":
    main()
