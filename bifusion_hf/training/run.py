"""From a recipe to a trainer: model, weights to start from, processor, frames."""

import hashlib
import inspect
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedConfig

from ..configuration_bifusion import BiFusionConfig, BiFusionLossConfig
from ..data.augmentation import AugmentationConfig, JointAugmentation
from ..data.collator import BiFusionCollator
from ..data.dataset import FrameDataset
from ..data.frames import encode_png16, frame_from_row, load_frames
from ..data.mixture import load_rows
from ..data.recordings.rows import RowScenes
from ..data.windows import Scenes, WindowCollator, WindowDataset
from ..evaluation import evaluate_model, headline
from ..evaluation.scene_evaluator import evaluate_scenes
from ..io.hub_files import pinned_name
from ..layers.image_encoder import UNUSED_TOWER_OPTIONS
from ..modeling_bifusion import BiFusionForInstanceSegmentation
from ..presets import PRESETS
from ..processing_bifusion import BiFusionProcessor
from ..recipe.arguments import (
    DataArguments,
    EvaluationArguments,
    InitArguments,
    ModelArguments,
    TrainArguments,
    check_names,
)
from ..superpoints import segmentation as superpoints
from .data_loading import StreamedFrames
from .label_set import read_label_set
from .run_folder import choose_start, find_checkpoint
from .setup import build_accelerator
from .sharding import read_sharding
from .trainer import BiFusionTrainer


logger = logging.getLogger(__name__)
# What depends on the number of labels and of semantic classes.
LABEL_HEADS = ("decoder.class_head.", "decoder.semantic_head.", "image_classifier.")
# What the over-segmentation is made of.
SUPERPOINTS = Path(superpoints.__file__).parent


def build_model(
    arguments: ModelArguments, seed: int, checkpoint: Path | None = None
) -> BiFusionForInstanceSegmentation:
    """The network of a recipe, with the weights that it starts from.

    Args:
        arguments: Section of the recipe.
        seed: Of the initial weights.
        checkpoint: The run's own, which it goes on from; its weights are for the trainer to load.

    Raises:
        ValueError: `model.config` has a field that the configuration does not have, or weights do not fit.
    """
    check_names("model.config", arguments.config, [*BiFusionConfig.__dataclass_fields__, "num_labels"])
    # The same initial weights in every process and every run of a seed.
    set_seed(seed)
    if checkpoint is not None:
        return BiFusionForInstanceSegmentation(_resumed_config(arguments, checkpoint)).float()
    if arguments.pretrained is not None:
        return _from_pretrained(arguments)
    return BiFusionForInstanceSegmentation(build_config(arguments)).float()


def _from_pretrained(arguments: ModelArguments) -> BiFusionForInstanceSegmentation:
    """The network of `model.pretrained`; with labels of the recipe's own, heads of other sizes start new.

    Raises:
        ValueError: Something else than a head has another size.
    """
    source, pinned = pinned_name(arguments.pretrained)
    if arguments.labels is None:
        return BiFusionForInstanceSegmentation.from_pretrained(source, **pinned, **arguments.config).float()
    model, loading = BiFusionForInstanceSegmentation.from_pretrained(
        source, **pinned, **_config_fields(arguments), ignore_mismatched_sizes=True, output_loading_info=True
    )
    new = sorted(entry[0] if isinstance(entry, tuple) else entry for entry in loading["mismatched_keys"])
    strange = [name for name in new if not name.startswith(LABEL_HEADS)]
    if strange:
        raise ValueError(f"model.pretrained {arguments.pretrained}: {strange} have other shapes than the recipe's")
    for name in new:
        logger.info("model.labels: %s starts new", name)
    return model.float()


def _config_fields(arguments: ModelArguments) -> dict[str, Any]:
    """The fields of the configuration that the recipe sets: by its labels, and by `model.config`."""
    labels = {} if arguments.labels is None else read_label_set(arguments.labels).config_fields()
    return {**labels, **arguments.config}


def build_config(arguments: ModelArguments) -> BiFusionConfig:
    """The configuration of a recipe's network: that of its checkpoint or preset, with what the recipe changes."""
    if arguments.pretrained is not None:
        source, pinned = pinned_name(arguments.pretrained)
        return BiFusionConfig.from_pretrained(source, **pinned, **_config_fields(arguments))
    preset = PRESETS.get(arguments.preset, {})
    overrides = {name: _merge(preset.get(name), value) for name, value in _config_fields(arguments).items()}
    return BiFusionConfig.from_preset(arguments.preset, **overrides)


def _merge(preset: Any, value: Any) -> Any:
    """A part of a sub-configuration changes only that part, unless it is one of another kind."""
    if not (isinstance(preset, dict) and isinstance(value, dict)):
        return value
    is_other = value.get("model_type", preset.get("model_type")) != preset.get("model_type")
    return value if is_other else {**preset, **value}


def _resumed_config(arguments: ModelArguments, checkpoint: Path) -> BiFusionConfig:
    """The checkpoint's configuration, which may differ from the recipe's in what `init.clip` has set: the activation.

    Raises:
        ValueError: The recipe describes another network or other losses than the checkpoint.
    """
    saved, recipe = BiFusionConfig.from_pretrained(checkpoint), build_config(arguments)
    different = [name for name in BiFusionConfig.__dataclass_fields__ if name not in _NO_SETTINGS]
    different = _differences({name: getattr(saved, name) for name in different}, recipe)
    if different:
        raise ValueError(
            f"model.config: the recipe and {checkpoint} differ in {', '.join(different)}; a run goes on as it began. "
            f"To start a new one from its weights, set model.pretrained to {checkpoint}"
        )
    return saved


def _differences(saved: Mapping[str, Any], recipe: PreTrainedConfig) -> list[str]:
    """Names of the fields that differ; those of the losses one by one."""
    found = []
    for name, value in saved.items():
        other = getattr(recipe, name)
        if isinstance(value, BiFusionLossConfig):
            fields = {field: getattr(value, field) for field in value.own_fields()}
            found += [f"{name}.{field}" for field in _differences(fields, other)]
        elif _plain(value) != _plain(other):
            found.append(name)
    return found


# What saving adds to a configuration.
_NO_SETTINGS = {"transformers_version", "architectures", "dtype", "return_dict"}
# What building and loading a tower sets in its own configuration.
_TOWER_SETS = {*_NO_SETTINGS, "hidden_act", "_name_or_path"}
_TOWER_SETS.update(name for options in UNUSED_TOWER_OPTIONS.values() for name in options)


def _plain(value: Any) -> Any:
    """A field as JSON would give it back."""
    if isinstance(value, PreTrainedConfig):
        return {name: _plain(item) for name, item in value.to_dict().items() if name not in _TOWER_SETS}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def load_initial_weights(model: BiFusionForInstanceSegmentation, init: InitArguments) -> list[str]:
    """Loads `init.sv3d` and `init.clip` or `init.vision`, and returns the reports; not called when a run resumes."""
    reports = []
    if init.sv3d is not None:
        from ..weights import load_sv3d_weights

        reports.append(f"init.sv3d {init.sv3d}\n{load_sv3d_weights(model, init.sv3d)}")
    if init.clip is not None:
        from ..weights import load_clip_weights

        report = load_clip_weights(model, init.clip, activation=init.clip_activation)
        reports.append(f"init.clip {init.clip}\n{report}")
    if init.vision is not None:
        from ..weights import load_vision_weights

        reports.append(f"init.vision {init.vision}\n{load_vision_weights(model, init.vision)}")
    return reports


def name_initial_weights(init: InitArguments) -> list[str]:
    """What `load_initial_weights` would load, for a plan, which needs no weights."""
    sources = {"init.sv3d": init.sv3d, "init.clip": init.clip, "init.vision": init.vision}
    return [f"{key} {source}: loaded when the run starts" for key, source in sources.items() if source is not None]


def build_processor(
    arguments: ModelArguments, config: BiFusionConfig, checkpoint: Path | None = None
) -> BiFusionProcessor:
    """The processor of the preset, or the one saved with `model.pretrained`, with what the recipe changes.

    Args:
        arguments: Section of the recipe.
        config: Of the network.
        checkpoint: The run's own, which it goes on from.

    Raises:
        ValueError: The run resumes with another processor than it began with.
    """
    check_names("model.processor", arguments.processor, inspect.signature(BiFusionProcessor).parameters)
    labels = {} if arguments.labels is None else read_label_set(arguments.labels).processor_fields(config)
    if arguments.pretrained is None:
        processor = BiFusionProcessor.from_preset(arguments.preset, config, **{**labels, **arguments.processor})
    else:
        source, pinned = pinned_name(arguments.pretrained)
        # `model.config` may rename the labels.
        names = {"label_names": [config.id2label[label] for label in range(config.num_labels)]}
        processor = BiFusionProcessor.from_pretrained(source, **pinned, **{**names, **labels, **arguments.processor})
    if checkpoint is not None:
        saved = BiFusionProcessor.from_pretrained(checkpoint).to_dict()
        different = [name for name, value in processor.to_dict().items() if saved.get(name) != value]
        if different:
            raise ValueError(
                f"model.processor: the recipe and {checkpoint} differ in {', '.join(different)}; a run goes on as it "
                f"began. To start a new one from its weights, set model.pretrained to {checkpoint}"
            )
    return processor


def build_trainer(arguments: TrainArguments) -> BiFusionTrainer:
    """Everything that a recipe names.

    Raises:
        ValueError: The recipe does not fit itself, the data or the machine; the message names the key.
    """
    accelerator = build_accelerator(
        arguments.training, arguments.output_dir, arguments.logging.trackers, arguments.deterministic
    )
    # Before anything that takes time.
    read_sharding(arguments, accelerator.num_processes)
    start = (arguments.output_dir, arguments.resume_from_checkpoint)
    checkpoint = find_checkpoint(*start) if arguments.dry_run else choose_start(*start, arguments.overwrite_output_dir)
    model = build_model(arguments.model, arguments.seed, checkpoint)
    processor = build_processor(arguments.model, model.config, checkpoint)
    if arguments.data.window_frames is not None and processor.reference_depth:
        # What is trained could not be used: scenes refuse it.
        raise ValueError(
            f"the processor's reference_depth is {processor.reference_depth}; the frames of a window are compared in "
            "metres, so with data.window_frames model.processor.reference_depth must be 0"
        )
    # The last moment before the weights are copied, wrapped or resumed.
    bring_weights = name_initial_weights if arguments.dry_run else partial(load_initial_weights, model)
    for report in bring_weights(arguments.init) if checkpoint is None else []:
        accelerator.print(report)
    frames = build_train_dataset(
        arguments.data, processor, accelerator, batch_size=arguments.training.batch_size, seed=arguments.seed
    )
    evaluate = build_evaluation(arguments.data, arguments.evaluation, processor, accelerator)
    return BiFusionTrainer(
        arguments,
        model,
        processor,
        frames,
        BiFusionCollator(processor) if arguments.data.window_frames is None else WindowCollator(processor),
        evaluate=evaluate,
        accelerator=accelerator,
    )


def build_train_dataset(
    data: DataArguments, processor: BiFusionProcessor, accelerator: Accelerator, *, batch_size: int, seed: int
) -> FrameDataset | StreamedFrames:
    """Training frames, augmented as the recipe says.

    Args:
        data: Section of the recipe.
        processor: Samples the points.
        accelerator: Of the run.
        batch_size: Frames of one forward, by which a stream is shared among its readers.
        seed: Of the draws and of a stream's order.
    """
    augmentation = None
    if data.augment:
        check_names("data.augmentation", data.augmentation, AugmentationConfig.__dataclass_fields__)
        augmentation = JointAugmentation(AugmentationConfig(**data.augmentation))
    if data.streaming:
        rows = load_frames(data.train, data.train_split, streaming=True)
        rows = rows if data.max_train_frames is None else rows.take(data.max_train_frames)
    else:

        def prepare(rows: Any) -> Any:
            rows = _select(rows, data.max_train_frames, data, processor, accelerator)
            return rows if data.window_frames is None else Scenes(rows)

        rows = load_rows(data.train, data.train_split, prepare)
    options = {"augmentation": augmentation, "seed": seed, "skip_broken": data.skip_broken_rows}
    if data.window_frames is not None:
        return WindowDataset(rows, processor, data.window_frames, **options)
    frames = FrameDataset(rows, processor, training=True, **options)
    if data.streaming:
        return StreamedFrames(
            rows,
            frames.prepare_streamed,
            batch_size,
            seed=seed,
            shuffle_buffer=data.shuffle_buffer,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
    return frames


def build_evaluation(
    data: DataArguments, evaluation: EvaluationArguments, processor: BiFusionProcessor, accelerator: Accelerator
) -> Any:
    """A function from a model to the numbers of the validation frames, or of their scenes where the network is trained
    on windows; None without validation data.
    """
    if data.val is None:
        return None
    rows = load_frames(data.val, data.val_split)
    rows = _select(rows, data.max_val_frames, data, processor, accelerator)
    if data.window_frames is not None:
        scenes = RowScenes(data.val, rows)
        return lambda model: headline(evaluate_scenes(model, processor, scenes, accelerator=accelerator))
    dataset = FrameDataset(rows, processor, skip_broken=data.skip_broken_rows)

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        results = evaluate_model(
            model,
            processor,
            dataset,
            batch_size=evaluation.batch_size,
            num_workers=evaluation.num_workers,
            accelerator=accelerator,
        )
        return headline(results)

    return evaluate


def _select(
    rows: Any, limit: int | None, data: DataArguments, processor: BiFusionProcessor, accelerator: Accelerator
) -> Any:
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    if data.cache_superpoints:
        with accelerator.main_process_first():
            rows = cache_superpoints(rows, processor, data.num_workers)
    return rows


def cache_superpoints(rows: "datasets.Dataset", processor: BiFusionProcessor, num_workers: int) -> "datasets.Dataset":
    """Adds the processor's over-segmentation to frames that carry none.

    The result is kept in the cache of `datasets`, so that it is computed once for a data set, not in every epoch.

    Args:
        rows: Of `load_frames`.
        processor: Says how many superpoints.
        num_workers: Worker processes.

    Returns:
        The rows, with `superpoints` filled where a frame can be read.
    """
    if rows[0].get("superpoints") is not None:
        return rows
    sources = [path for path in SUPERPOINTS.rglob("*") if path.suffix in (".py", ".c")]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()
    found = rows.map(
        _segment_row,
        # The cache is found by these: a change in the segmentation must not find what the old one left.
        fn_kwargs={
            "num_superpoints": processor.num_superpoints,
            "color_blur": processor.superpoint_color_blur,
            "code": code,
        },
        remove_columns=rows.column_names,
        features=datasets.Features({"superpoints": datasets.Image(decode=False)}),
        num_proc=num_workers if num_workers > 1 and len(rows) > 64 else None,
        desc="superpoints",
    )
    others = rows.remove_columns("superpoints") if "superpoints" in rows.column_names else rows
    return datasets.concatenate_datasets([others, found], axis=1)


def _segment_row(row: Mapping[str, Any], num_superpoints: int, color_blur: float, code: str) -> dict[str, Any]:
    try:
        frame = frame_from_row(row)
    except Exception:
        # The data set names broken rows when it comes to them, or skips them if it is told to.
        return {"superpoints": None}
    labels = frame.superpoints
    if labels is None:
        labels = superpoints.segment_superpoints(
            frame.image, frame.depth, frame.intrinsics, num_segments=num_superpoints, color_blur=color_blur
        )
    return {"superpoints": encode_png16(np.asarray(labels) + 1)}
