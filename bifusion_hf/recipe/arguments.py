"""The recipe of a training run: dataclasses, their keys and the check of values. `recipes` reads them from files.

A key that does not exist is refused with the nearest one that does, and a value of the wrong type is refused with the
type that was expected. What a run was started with is written beside its checkpoints.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from ..io.atomic import write_text
from ..old_names import rename_recipe


@dataclass
class ModelArguments:
    """Which network.

    Args:
        preset: `BiFusionConfig.from_preset` name.
        config: Fields of `BiFusionConfig` that differ from the preset.
        processor: Arguments of `BiFusionProcessor` that differ from the preset's and from the configuration's.
        labels: Labels of one's own, `{seat: [chair, couch], table: [table, desk]}`, each with its classes of the data;
            or a YAML or JSON file with such a mapping, or with the list of the data's classes by number
            (docs/release.md). Heads of other sizes than those of `pretrained` start new. null = those of the network.
        pretrained: Folder, or Hub id `org/name` or `org/name@revision`, of a bifusion checkpoint to start from; its
            own configuration and processor replace the preset's and may still be changed by `config` and `processor`.
    """

    preset: str = "tiny"
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    labels: str | dict[str, Any] | None = None
    pretrained: str | None = None


@dataclass
class InitArguments:
    """Foreign weights, loaded once at update 0 and never again on resume.

    Args:
        sv3d: Source for `load_sv3d_weights`: a file, `"org/repo"` or `"org/repo:file"`.
        clip: Source for `load_clip_weights`: an open_clip `architecture/tag`, a file, or a Hub id.
        clip_activation: `"quick_gelu"` or `"gelu"`, needed only where the source does not tell.
        vision: Source for `load_vision_weights`, for towers of another type than CLIP: a folder or Hub id of
            transformers.
    """

    sv3d: str | None = None
    clip: str | None = None
    clip_activation: Literal["quick_gelu", "gelu"] | None = None
    vision: str | None = None


@dataclass
class DataArguments:
    """Where frames come from and how they reach the network.

    Args:
        train: Folder with `data/train-*.parquet`, `"sample"` for the frames that the package carries, or a Hub id,
            `org/name` or `org/name@revision`. Or several of them with weights, `{rooms: 1, org/name: 2}`: a source's
            share of the frames of an epoch, which has as many as all sources together (docs/data.md).
        val: The same for the frames that are evaluated during training; null switches evaluation off.
        train_split, val_split: The split that is taken from it.
        max_train_frames, max_val_frames: Use only so many of its first frames; of each source where there are several.
        augment: Joint augmentation of points and image.
        augmentation: Fields of `AugmentationConfig` that differ from its defaults.
        num_workers: Worker processes of the training loader, for each training process.
        prefetch_factor: Batches that each worker prepares ahead.
        cache_superpoints: Compute the over-segmentation of frames that carry none once, before the first update,
            instead of every time that a frame is read.
        streaming: Read rows in order from the source instead of by index; needs `training.max_updates`, and the
            cadence of evaluations and checkpoints in updates.
        shuffle_buffer: Rows among which a streamed data set is shuffled.
        skip_broken_rows: Leave a row that cannot be read out of its batch (reported by name) instead of stopping.
        window_frames: Train on windows of so many consecutive frames of a scene (docs/scenes.md). An epoch has one
            window of each scene, batch sizes are of windows, and whole scenes are evaluated. null = single frames.
    """

    train: str | dict[str, float] = "sample"
    val: str | None = "sample"
    train_split: str = "train"
    val_split: str = "val"
    max_train_frames: int | None = None
    max_val_frames: int | None = None
    augment: bool = True
    augmentation: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 2
    prefetch_factor: int = 2
    cache_superpoints: bool = True
    streaming: bool = False
    shuffle_buffer: int = 256
    skip_broken_rows: bool = False
    window_frames: int | None = None

    @property
    def unit(self) -> str:
        """What batch sizes count."""
        return "frames" if self.window_frames is None else f"windows of {self.window_frames} frames"


@dataclass
class OptimizerArguments:
    """AdamW and its schedule.

    Args:
        learning_rate: Peak learning rate.
        tower_learning_rate_scale: Factor on it for the blocks and embeddings of the image tower.
        weight_decay: Decoupled decay; none on biases, norms and other tensors of one dimension.
        betas, epsilon: Of Adam.
        max_grad_norm: L2 norm to which gradients are clipped.
        schedule: `"poly"`: (1 - progress) ** power; `"constant"`. Both count optimizer updates.
        power: Exponent of `"poly"`.
        warmup_updates: Linear warm-up from 0.
    """

    learning_rate: float = 1e-4
    tower_learning_rate_scale: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_grad_norm: float = 10.0
    schedule: Literal["poly", "constant"] = "poly"
    power: float = 0.9
    warmup_updates: int = 0


@dataclass
class TrainingArguments:
    """The loop.

    Args:
        epochs: Passes over the training frames.
        max_updates: Stop after this many optimizer updates, whatever `epochs` says; the schedule ends there too.
        batch_size: Frames of one forward in one process.
        accumulation: Forwards per optimizer update. Frames per update = batch_size x accumulation x processes.
        find_batch_size: Take the largest batch that fits memory, not above `batch_size`, and keep the frames per
            update by accumulation.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"` (fp16 needs a GPU).
        gradient_checkpointing: Recompute activations of the U-Net's blocks, the image tower and the decoder in the
            backward pass.
        compile: `torch.compile` the image tower and the decoder layers.
        ema_decay: Keep an exponential moving average of the weights with this decay; it is what is evaluated and
            saved as `best` and `final`.
        sync_batch_norm: With several GPU processes, share batch statistics.
        empty_cache_every: Release cached GPU memory every this many updates; 0 = never.
        max_nonfinite_updates: Stop after so many skipped updates in a row.
        freeze: Module name prefixes whose parameters do not train, beside what `model.config` freezes.
        unfreeze_at: Module name prefix -> progress in [0, 1] at which its frozen parameters start to train.
        audit_window: Updates with eligible elements after which a trainable tensor or loss without gradient stops
            the run.
        audit_exempt: Regular expressions of parameter names that the audit reports but does not stop for.
    """

    epochs: int = 128
    max_updates: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    find_batch_size: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema_decay: float | None = None
    sync_batch_norm: bool = True
    empty_cache_every: int = 0
    max_nonfinite_updates: int = 10
    freeze: list[str] = field(default_factory=list)
    unfreeze_at: dict[str, float] = field(default_factory=dict)
    audit_window: int = 50
    audit_exempt: list[str] = field(default_factory=list)


@dataclass
class EvaluationArguments:
    """Evaluation during training; it always runs after the last update too.

    Args:
        every_epochs: Epochs between evaluations; 0 = only at the end.
        every_updates: Updates between evaluations, in place of `every_epochs`.
        at_start: Evaluate before the first update too.
        batch_size: Frames of one forward.
        num_workers: Worker processes.
        metric: What makes a checkpoint the best one.
    """

    every_epochs: int = 1
    every_updates: int | None = None
    at_start: bool = False
    batch_size: int = 4
    num_workers: int = 2
    metric: str = "all_ap_50%"


@dataclass
class CheckpointArguments:
    """Checkpoints from which a run resumes; one is always written after the last update.

    Args:
        every_epochs: Epochs between checkpoints; 0 = only at the end.
        every_updates: Updates between checkpoints, in place of `every_epochs`.
        keep: How many to keep, the newest first.
    """

    every_epochs: int = 1
    every_updates: int | None = None
    keep: int = 2


@dataclass
class LoggingArguments:
    """What is shown and written.

    Args:
        every_updates: Updates between lines of `metrics.jsonl` and tracker calls.
        progress_bar: Show a progress bar.
        trackers: Any of the trackers of Accelerate by name: `tensorboard`, `trackio`, `wandb`, ...
        project: Project name for the trackers.
    """

    every_updates: int = 10
    progress_bar: bool = True
    trackers: list[str] = field(default_factory=list)
    project: str = "bifusion"


@dataclass
class TrainArguments:
    """A whole recipe.

    Args:
        output_dir: Folder of checkpoints, logs and the final model.
        overwrite_output_dir: Start anew in a folder that holds a run, which is moved aside; for the command line
            alone, a recipe file must not say so.
        resume_from_checkpoint: A checkpoint folder; `"latest"` of `output_dir`, an error where there is none; or
            `"auto"`, the latest or a new run.
        seed: Of everything random.
        deterministic: Use deterministic algorithms of PyTorch, an error where there is none; slower on a GPU.
        dry_run: Print the plan and stop; needs the data, and none of the weights that `init` names.
    """

    model: ModelArguments = field(default_factory=ModelArguments)
    init: InitArguments = field(default_factory=InitArguments)
    data: DataArguments = field(default_factory=DataArguments)
    optimizer: OptimizerArguments = field(default_factory=OptimizerArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    checkpoints: CheckpointArguments = field(default_factory=CheckpointArguments)
    logging: LoggingArguments = field(default_factory=LoggingArguments)
    output_dir: str = "outputs/train"
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    seed: int = 42
    deterministic: bool = False
    dry_run: bool = False

    def __post_init__(self):
        positive = {
            "training.epochs": self.training.epochs,
            "training.batch_size": self.training.batch_size,
            "training.accumulation": self.training.accumulation,
            "training.audit_window": self.training.audit_window,
            "training.max_nonfinite_updates": self.training.max_nonfinite_updates,
            "evaluation.batch_size": self.evaluation.batch_size,
            "checkpoints.keep": self.checkpoints.keep,
            "logging.every_updates": self.logging.every_updates,
            "optimizer.max_grad_norm": self.optimizer.max_grad_norm,
        }
        updates = ("training.max_updates", "evaluation.every_updates", "checkpoints.every_updates")
        for name in (*updates, "data.window_frames"):
            section, key = name.split(".")
            if getattr(getattr(self, section), key) is not None:
                positive[name] = getattr(getattr(self, section), key)
        if isinstance(self.data.train, dict):
            if self.data.streaming or not self.data.train:
                raise ValueError(f"data.train is {self.data.train}; expected sources to mix, and no data.streaming")
            positive.update({f"data.train.{name}": weight for name, weight in self.data.train.items()})
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.training.ema_decay is not None and not 0 < self.training.ema_decay < 1:
            raise ValueError(f"training.ema_decay must lie in (0, 1), got {self.training.ema_decay}")
        for name, progress in self.training.unfreeze_at.items():
            if not 0 <= progress <= 1:
                raise ValueError(f"training.unfreeze_at.{name} must be a progress in [0, 1], got {progress}")
        if self.init.clip is not None and self.init.vision is not None:
            raise ValueError("init.clip and init.vision both fill the image tower: give one of them")
        if self.data.streaming:
            self._check_stream()

    def _check_stream(self):
        if self.training.max_updates is None:
            raise ValueError("data.streaming has no known length: set training.max_updates")
        if self.data.window_frames is not None:
            raise ValueError("data.window_frames needs rows by index, data.streaming has none")
        if self.training.find_batch_size:
            raise ValueError("training.find_batch_size needs rows by index, data.streaming has none")
        cadences = {"checkpoints": self.checkpoints}
        if self.data.val is not None:
            cadences["evaluation"] = self.evaluation
        for name, cadence in cadences.items():
            if cadence.every_updates is None and cadence.every_epochs > 0:
                raise ValueError(
                    f"{name}.every_epochs is {cadence.every_epochs}, and data.streaming has no epochs: set "
                    f"{name}.every_updates, or {name}.every_epochs 0 for the last update alone"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainArguments":
        """Builds and checks a recipe.

        Raises:
            ValueError: An unknown key (the message has the nearest valid one), a wrong type, or a value out of range.
        """
        return _build(cls, rename_recipe(values) if isinstance(values, Mapping) else values, "")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, as YAML holds it."""
        values = dataclasses.asdict(self)
        values["optimizer"]["betas"] = list(values["optimizer"]["betas"])
        return values

    def flat(self) -> dict[str, Any]:
        """Dotted names and plain values, as trackers take them."""

        def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
            result = {}
            for name, value in values.items():
                if isinstance(value, Mapping):
                    result.update(flatten(value, f"{prefix}{name}."))
                else:
                    result[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
            return result

        return flatten(self.to_dict(), "")

    def to_yaml(self) -> str:
        """The recipe as a file holds it: without what says how this one run was started."""
        values = {**self.to_dict(), "overwrite_output_dir": False, "resume_from_checkpoint": None}
        return yaml.safe_dump(values, sort_keys=False)

    def save(self, path: str | Path):
        """Writes the recipe as YAML; see `to_yaml`."""
        write_text(path, self.to_yaml())


def valid_keys(section: type = TrainArguments, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every key -> its type."""
    keys = {}
    for name, kind in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            keys.update(valid_keys(kind, f"{prefix}{name}."))
        else:
            keys[f"{prefix}{name}"] = kind
    return keys


def split_key(key: str) -> list[str]:
    """Parts of a dotted key; what is below a mapping of numbers is one name, dots included."""
    for name, kind in valid_keys().items():
        if is_open(kind) and typing.get_args(kind)[1] is not Any and key.startswith(f"{name}."):
            return [*name.split("."), key.removeprefix(f"{name}.")]
    return key.split(".")


def is_open(kind: Any) -> bool:
    """Whether a key takes free names below it (`model.config`, `training.unfreeze_at`)."""
    return typing.get_origin(kind) is dict


def check_names(key: str, values: Mapping[str, Any], valid: Sequence[str]):
    """Refuses names below an open key that its owner does not have.

    Raises:
        ValueError: With the nearest valid name.
    """
    for name in values:
        if name not in valid:
            raise ValueError(f"unknown key '{key}.{name}'{_suggestion(name, valid)}")


def check_key(key: str):
    """Refuses a dotted key that no recipe has.

    Raises:
        ValueError: With the nearest valid key.
    """
    keys = valid_keys()
    if key in keys or any(is_open(kind) and key.startswith(f"{name}.") for name, kind in keys.items()):
        return
    raise ValueError(f"unknown key {key!r}{_suggestion(key, keys)}")


def _suggestion(key: str, candidates: Any) -> str:
    candidates = list(candidates)
    # A key given without, or with a wrong, section is found by its last part.
    close = [name for name in candidates if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = close or difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def _build(section: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'recipe'}: expected a mapping, got {values!r}")
    kinds = typing.get_type_hints(section)
    built = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            raise ValueError(f"unknown key {key!r}{_suggestion(key, [*valid_keys(), *section_names()])}")
        kind = kinds[name]
        built[name] = _build(kind, value, f"{key}.") if dataclasses.is_dataclass(kind) else _check(kind, value, key)
    return section(**built)


def section_names() -> list[str]:
    """Names of the sections of a recipe."""
    return [name for name, kind in typing.get_type_hints(TrainArguments).items() if dataclasses.is_dataclass(kind)]


def _check(kind: Any, value: Any, key: str) -> Any:
    """The value as `kind`, or ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        # Of a plain value and a mapping, the value tells which is meant.
        (kind,) = [kind for kind in kinds if is_open(kind) == isinstance(value, Mapping)] if len(kinds) > 1 else kinds
        return _check(kind, value, key)
    if kind is Any:
        return value
    # YAML reads "no" as False, and Accelerate calls full precision "no".
    if origin is Literal:
        value = "no" if value is False and "no" in arguments else value
        if value in arguments:
            return value
        raise ValueError(f"{key} must be one of {list(arguments)}, got {value!r}")
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _check(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [_check(arguments[0], item, key) for item in items]
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
        return tuple(_check(argument, item, key) for argument, item in zip(arguments, value, strict=True))
    if kind is float:
        # YAML 1.1 reads 1e-4, without a dot, as text.
        try:
            if not isinstance(value, bool):
                return float(value)
        except (TypeError, ValueError):
            pass
    elif kind is str and isinstance(value, Path):
        return str(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    name = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise ValueError(f"{key} must be {name}, got {value!r} ({type(value).__name__})")
