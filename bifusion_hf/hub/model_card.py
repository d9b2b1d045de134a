"""The cards (README.md) of released models and data sets, from the templates in `model_cards/`."""

import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import DatasetCardData, ModelCard, ModelCardData

from .. import assets
from ..configuration_bifusion import BiFusionConfig
from ..evaluation.results import format_results, model_index_entries
from ..recipe.arguments import ModelArguments, TrainArguments, TrainingArguments
from ..version import __version__


MODEL_TEMPLATE = "model_card_template.md"
DATASET_TEMPLATE = "dataset_card_template.md"
# Packages whose versions can change numbers.
ENVIRONMENT = ("torch", "transformers", "accelerate", "datasets", "numpy", "scipy", "scikit-image")
FUSION_TEXTS = {
    "none": "It sees the coloured points alone; there is no image branch.",
    "lite_gate": "A light gate mixes the image features into those of the points.",
    "enhanced_gate": "A gate with spatial and geometric terms mixes the image features into those of the points.",
    "residual": "The gated image features are added to those of the points.",
}


@dataclass(frozen=True)
class DataDescription:
    """A data set in the words of a card.

    Args:
        name: For readers.
        license: Its licence, as the Hub abbreviates it, or in words.
        hub_id: `"org/name"` where it is on the Hub.
        packaged: It is the sample that comes with the package.
    """

    name: str
    license: str
    hub_id: str | None = None
    packaged: bool = False

    @property
    def reference(self) -> str:
        """How commands and `model-index` name it."""
        return self.hub_id or ("sample" if self.packaged else self.name)

    def sentence(self) -> str:
        """Name, place and licence."""
        place = f" ([{self.hub_id}](https://huggingface.co/datasets/{self.hub_id}))" if self.hub_id else ""
        return f"{self.name}{place}, licence: {self.license}"


def describe_data(
    source: str | Path | Mapping[str, float],
    *,
    name: str | None = None,
    license: str | None = None,
    hub_id: str | None = None,
) -> DataDescription:
    """Describes a data set by its own card, where it has one, and by what is given.

    Args:
        source: What a recipe or a result names: a folder, `"sample"`, or an id on the Hub; or weights by such names.
        name: Replaces the card's `pretty_name`.
        license: Replaces the card's `license`.
        hub_id: Where it is on the Hub.

    Raises:
        ValueError: Name or licence are neither given nor in a card.
    """
    if isinstance(source, Mapping):
        parts = [describe_data(part, name=name, license=license) for part in source]
        words = ([part.name for part in parts], [part.license for part in parts])
        return DataDescription(*(" and ".join(dict.fromkeys(each)) for each in words), hub_id)
    packaged = str(source) == "sample"
    folder = assets.SAMPLE_FRAMES if packaged else Path(source)
    card = read_front_matter(folder / "README.md") if (folder / "README.md").is_file() else {}
    name = name or card.get("pretty_name")
    license = license or card.get("license_name") or card.get("license")
    missing = [what for what, value in (("name", name), ("licence", license)) if not value]
    if missing:
        raise ValueError(f"data set {str(source)!r}: no card tells its {' and '.join(missing)}; give them")
    return DataDescription(f"{name} (sample frames of bifusion_hf)" if packaged else name, license, hub_id, packaged)


def read_front_matter(card: Path) -> dict[str, Any]:
    """The YAML block at the top of a card; {} where there is none.

    Raises:
        ValueError: The block is not YAML.
    """
    text = card.read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        content = yaml.safe_load(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: the block between the lines '---' is not YAML ({error})") from error
    return content if isinstance(content, dict) else {}


def find_template(name: str) -> Path:
    """A card template: of the checkout, or of the installed package.

    Raises:
        FileNotFoundError: It is in neither place.
    """
    package = Path(__file__).parents[1]
    # `share` lies beside the package after `pip install --target`, else three folders above it, in whatever prefix.
    installed = [folder / "share" / "bifusion_hf" / "model_cards" / name for folder in package.parents]
    for path in (package.parent / "model_cards" / name, *installed):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no card template {name} in model_cards of the checkout or share/bifusion_hf/model_cards in any folder above "
        f"{package}; name one with --template"
    )


def model_card(
    *,
    repo_id: str,
    config: BiFusionConfig,
    num_parameters: int,
    num_points: int,
    results: Mapping[str, Any],
    recipe: TrainArguments,
    training_data: DataDescription,
    evaluation_data: DataDescription,
    license: str,
    base_model: str | None = None,
    tag: str | None = None,
    template: Path | None = None,
) -> str:
    """The card of a model.

    Args:
        repo_id: `"org/name"` on the Hub.
        config: Of the model.
        num_parameters: Of the model.
        num_points: Points a frame, of its processor.
        results: In the form of `bifusion_hf.evaluation.results`.
        recipe: What it was trained with.
        training_data: What it was trained on.
        evaluation_data: What `results` were measured on.
        license: Of the weights, as the Hub abbreviates it.
        base_model: Id of the model that training started from.
        tag: Version that the card belongs to.
        template: File to use instead of the one in `model_cards/`.

    Raises:
        ValueError: The template has a placeholder that there is no value for.
    """
    protocol = results.get("protocol", {})
    split = str(protocol.get("split", "val"))
    data = ModelCardData(
        model_name=repo_id.split("/")[-1],
        license=license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["bifusion", "rgb-d", "3d", "point-cloud", "instance-segmentation"],
        datasets=sorted({data.hub_id for data in (training_data, evaluation_data) if data.hub_id}) or None,
        base_model=base_model,
        eval_results=model_index_entries(
            results,
            dataset_name=evaluation_data.name,
            dataset_id=evaluation_data.reference,
            dataset_split=split,
        ),
    )
    data_argument = shlex.quote(evaluation_data.reference)
    command = f"bifusion-evaluate {repo_id} --data {data_argument} --split {shlex.quote(split)}"
    if config.num_labels > 1 and "class_aware" not in results:
        command += " --class_agnostic"
    table = format_results(results, per_class=False)
    values = {
        "metadata": data.to_yaml().strip(),
        "model_name": data.model_name,
        "repo_id": repo_id,
        "revision_argument": f', revision="{tag}"' if tag else "",
        "summary": _summary(config),
        "description": _description(config, num_parameters, num_points),
        "label_limit": _label_limit(config),
        "data_limit": f"Trained on {training_data.name}; expect less on frames of other cameras and places.",
        "training_data": f"{training_data.sentence()}.",
        "training_summary": _training_summary(recipe.model, recipe.training),
        "results": f"On {evaluation_data.name}, split `{split}`:\n\n```\n{table}\n```",
        "reproduction": command,
        "environment": describe_environment(),
        "license_text": f"Weights: {license}. Training data: {training_data.license}. Package: Apache-2.0.",
        "url": f"https://huggingface.co/{repo_id}",
    }
    return _fill(template or find_template(MODEL_TEMPLATE), values)


def dataset_card(
    *,
    repo_id: str,
    name: str,
    license: str,
    origin: str,
    splits: Mapping[str, tuple[int, int]],
    template: Path | None = None,
) -> str:
    """The card of a data set that brings none.

    Args:
        repo_id: `"org/name"` on the Hub.
        name: For readers.
        license: As the Hub abbreviates it.
        origin: Where the frames come from, and whose they are.
        splits: Frames and files of each split.
        template: File to use instead of the one in `model_cards/`.

    Raises:
        ValueError: The template has a placeholder that there is no value for.
    """
    data = DatasetCardData(
        pretty_name=name,
        license=license,
        task_categories=["image-segmentation"],
        tags=["rgb-d", "3d", "instance-segmentation"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    )
    values = {
        "metadata": data.to_yaml().strip(),
        "dataset_name": name,
        "repo_id": repo_id,
        "splits": "\n".join(f"| {split} | {frames} | {files} |" for split, (frames, files) in splits.items()),
        "first_split": next(iter(splits)),
        "origin": f"{origin}\n\nLicence: {license}.",
    }
    return _fill(template or find_template(DATASET_TEMPLATE), values)


def describe_environment() -> str:
    """Versions of Python and of the packages that compute, as a list."""
    versions = {"bifusion_hf": __version__, "Python": platform.python_version()}
    versions.update({name: metadata.version(name) for name in ENVIRONMENT})
    return "\n".join(f"- {name} {version}" for name, version in versions.items())


def _fill(template: Path, values: Mapping[str, str]) -> str:
    try:
        text = Template(template.read_text(encoding="utf-8")).substitute(values)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{template}: placeholder {error}; there are {sorted(values)}") from error
    # Parses the block at the top, so that a broken one is found here and not by the Hub.
    ModelCard(text)
    return text


def _summary(config: BiFusionConfig) -> str:
    labels = "class-agnostic object instances" if config.num_labels == 1 else f"{config.num_labels} classes of objects"
    return f"RGB-D frame in, 3D object instances out ({labels}), by BiFusion."


def _description(config: BiFusionConfig, num_parameters: int, num_points: int) -> str:
    parts = [f"A sparse-convolution U-Net on {config.voxel_size * 100:g} cm voxels of {num_points} points."]
    if config.vision_config is not None:
        parts.append(
            f"An image tower of type `{config.vision_config.model_type}` with {config.tower_num_layers} "
            f"{'stages' if hasattr(config.vision_config, 'depths') else 'blocks'}."
        )
    parts.append(FUSION_TEXTS[config.fusion_type])
    parts.append(f"A decoder with a query for each superpoint. {num_parameters / 1e6:.2f} M parameters.")
    return " ".join(parts)


def _label_limit(config: BiFusionConfig) -> str:
    if config.num_labels == 1:
        return "It finds objects but does not name them; walls and floors are not objects."
    return "It knows the classes in `config.json` (`id2label`) alone and gives every object one of them."


def _training_summary(model: ModelArguments, training: TrainingArguments) -> str:
    length = f"{training.max_updates} updates" if training.max_updates else f"{training.epochs} epochs"
    start = model.pretrained or f"preset `{model.preset}`"
    return f"{start}, {length} of batches of {training.batch_size * training.accumulation}"
