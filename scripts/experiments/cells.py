"""The cells of the rooms experiment: what recipe, seed and data each has; they differ in the network alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bifusion_hf.labels import INSTANCE_CLASS_NAMES
from bifusion_hf.old_names import rename_key
from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.rooms.dataset import SETTINGS_FILE
from bifusion_hf.rooms.photometric import PHOTOMETRIC_CLASSES


# Recipes of the cells.
CONFIG_FOLDER = Path(__file__).parent / "configs"
# What says where and how a run works, but not what comes out of it.
_NO_CONTENT = (
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "dry_run",
    "seed",
    "data.train",
    "data.val",
    "data.num_workers",
    "data.prefetch_factor",
    "data.cache_superpoints",
    "evaluation.batch_size",
    "evaluation.num_workers",
)
_NO_CONTENT_SECTIONS = ("checkpoints.", "logging.")
# Keys below `model.` that belong to the image branch and the fusion, or follow from them.
IMAGE_BRANCH_KEYS = (
    "config.freeze_tower_early_layers",
    "config.freeze_tower_embeddings",
    "config.fusion_type",
    "config.gate_warmup_steps",
    "config.hidden_size",
    "config.loss_config.balance_loss_weight",
    "config.loss_config.balance_target",
    "config.loss_config.consistency_coverage_gate",
    "config.loss_config.consistency_coverage_threshold",
    "config.loss_config.consistency_gradient_flow_ratio",
    "config.loss_config.consistency_loss_mode",
    "config.loss_config.consistency_loss_weight",
    "config.loss_config.consistency_negatives_across_batch",
    "config.loss_config.consistency_temperature",
    "config.loss_config.consistency_warmup",
    "config.loss_config.image_semantic_weight",
    "config.loss_config.noview_loss_weight",
    "config.loss_config.noview_similarity_threshold",
    "config.projection_dim",
    "config.projection_hidden_size",
    "config.spatial_k",
    "config.spatial_radius",
    "config.use_film",
    "config.use_spatial_attention",
    "config.use_tiny_sa_2d",
    "config.vision_config",
    "processor.image_mean",
    "processor.image_size",
    "processor.image_std",
)
PHOTOMETRIC, SHAPE_DISTINCT = "photometric", "shape_distinct"
_PHOTOMETRIC_NAMES = [name for names in PHOTOMETRIC_CLASSES.values() for name in names]
# The classes that only fine texture tells apart, and all others.
CLASS_GROUPS = {
    PHOTOMETRIC: _PHOTOMETRIC_NAMES,
    SHAPE_DISTINCT: [name for name in INSTANCE_CLASS_NAMES if name not in _PHOTOMETRIC_NAMES],
}


@dataclass(frozen=True)
class RoomsData:
    """A rendered data set.

    Args:
        folder: Where it is.
        sha256: Split -> hash of its frames.
        frames: Split -> number of frames.
    """

    folder: Path
    sha256: Mapping[str, str]
    frames: Mapping[str, int]

    @classmethod
    def read(cls, folder: str | Path) -> "RoomsData":
        """Reads what `bifusion-render-rooms` wrote beside the frames.

        Raises:
            ValueError: The folder holds no complete data set with training and validation frames and photometric
                classes.
        """
        folder = Path(folder).resolve()
        path = folder / SETTINGS_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {SETTINGS_FILE}; expected a data set of bifusion-render-rooms")
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [split for split in ("train", "val") if split not in content.get("sha256", {})]
        if missing:
            raise ValueError(f"{path} has no hash of {' and '.join(missing)}: the data set is not complete")
        if content.get("photometric") != PHOTOMETRIC_CLASSES:
            raise ValueError(f"{path} has other photometric classes than this version; render with --photometric")
        return cls(folder=folder, sha256=content["sha256"], frames=content["frames"])

    def identity(self) -> dict[str, Any]:
        """What a result states of its data."""
        return {"name": self.folder.name, "sha256": dict(self.sha256), "frames": dict(self.frames)}


@dataclass(frozen=True)
class Cell:
    """One run of the experiment.

    Args:
        recipe: Name of the recipe.
        arguments: The recipe with overrides, data, seed and folder of the run.
    """

    recipe: str
    arguments: TrainArguments

    @property
    def name(self) -> str:
        """Of the run's folder and result."""
        return f"{self.recipe}-s{self.arguments.seed}"

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.arguments.output_dir)


def recipe_file(recipe: str | Path) -> str | Path:
    """The file of a cell's recipe: one in `configs` by its name, anything else as it is."""
    file = CONFIG_FOLDER / f"{recipe}.yaml"
    return file if file.is_file() else recipe


def load_cells(
    recipes: Sequence[str], seeds: Sequence[int], data: RoomsData, work: str | Path, overrides: Sequence[str] = ()
) -> list[Cell]:
    """All recipes with the first seed, then all with the second, and so on.

    Args:
        recipes: Recipe files, or names of those in `configs`.
        seeds: Seeds of initial weights, order of the frames, and augmentation.
        data: Training and validation frames.
        work: Folder of the runs' folders.
        overrides: `["--section.key", "value", ...]` for all cells.

    Raises:
        ValueError: A recipe is wrong, or the cells differ in more than the network.
    """
    cells = []
    for seed in seeds:
        for recipe in recipes:
            arguments = load_arguments(recipe_file(recipe), overrides)
            name = Path(recipe).stem
            arguments.seed = seed
            arguments.data.train = arguments.data.val = str(data.folder)
            arguments.output_dir = str(Path(work) / f"{name}-s{seed}")
            # A run that was killed goes on where it was; one that was not there yet starts.
            arguments.resume_from_checkpoint = "auto"
            cells.append(Cell(name, arguments))
    check_comparable({cell.name: content_of(cell.arguments) for cell in cells})
    return cells


def content_of(arguments: TrainArguments) -> dict[str, Any]:
    """The arguments that a result depends on, by dotted name, without the folders of the machine."""
    flat = arguments.flat()
    kept = {
        name: value
        for name, value in flat.items()
        if name not in _NO_CONTENT and not name.startswith(_NO_CONTENT_SECTIONS)
    }
    for name in ("init.sv3d", "init.clip", "init.vision", "model.pretrained"):
        if Path(kept[name]).exists():
            kept[name] = Path(kept[name]).name
    return kept


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which two `content_of` differ; one that only one of them knows has its default in the other.

    Stored ones may have the names of release 0.1.
    """
    before, now = ({rename_key(key): value for key, value in content.items()} for content in (before, now))
    defaults = content_of(TrainArguments())
    keys = {**before, **now}
    return [key for key in keys if before.get(key, defaults.get(key)) != now.get(key, defaults.get(key))]


def check_comparable(contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes sure that cells differ in the image branch and the fusion alone.

    Args:
        contents: Name of a cell -> `content_of` its arguments.

    Raises:
        ValueError: They differ in something else; the message names it.
    """
    names = list(contents)
    for name in names[1:]:
        different = sorted(_other_differences(contents[names[0]], contents[name]))
        if different:
            raise ValueError(
                f"{names[0]} and {name} differ in {', '.join(different)}; cells are compared that differ in the image "
                "branch and the fusion alone"
            )


def _other_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in changed_keys(first, second):
        of_image_branch = any(f"{key}.".startswith(f"model.{name}.") for name in IMAGE_BRANCH_KEYS)
        if not (of_image_branch or key.startswith("init.") or key == "training.freeze"):
            yield key
