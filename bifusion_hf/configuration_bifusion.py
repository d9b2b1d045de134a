"""Configuration of the BiFusion network and its losses.

What belongs to the frames (number of points, size and statistics of the image, post-processing) is the processor's.
"""

import copy
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .io.hub_files import checkpoint_place, naming
from .labels import INSTANCE_CLASS_NAMES, SCANNET200_CLASS_NAMES
from .old_names import MOVED_FIELDS, PROCESSOR_FIELDS, UNUSED_FIELDS, rename_fields
from .presets import PRESETS, clip_tower
from .version import __version__, check_checkpoint_version


# End of a field's name -> the largest size that is taken; the first that fits counts.
SIZE_LIMITS = {
    "layers": 500,
    "blocks": 500,
    "depths": 500,
    "heads": 500,
    "vocab_size": 2**20,
    "size": 8192,
    "sizes": 8192,
    "dim": 8192,
    "channels": 8192,
    "planes": 8192,
}


@strict
class BiFusionPointConfig(PreTrainedConfig):
    r"""The sparse-convolution U-Net of the point branch; the defaults are Res16UNet34C of sv3d.

    Args:
        in_channels (`int`): Channels of a voxel: the normalised colour.
        stem_channels (`int`): Width of the 5x5x5 stem.
        planes (`list[int]`): Width of the four encoder and the four decoder levels.
        blocks (`list[int]`): Residual blocks of each of the eight levels.
        stem_kernel_size (`int`): Kernel of the stem.
        use_frame_adapters (`bool`): Add the adapters ("memory") that online ESAM checkpoints carry between encoder and
            decoder; without a `frame_memory` they run in the mode of a first frame.
        batch_norm_eps (`float`): Epsilon of the batch normalisations.
        batch_norm_momentum (`float`): Momentum of the stem, down, up and shortcut normalisations. Those inside the
            blocks use 0.1, as in the original.
    """

    model_type = "bifusion_point"
    base_config_key = "point_config"

    in_channels: int = 3
    stem_channels: int = 32
    planes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)
    blocks: list[int] | tuple[int, ...] = (2, 3, 4, 6, 2, 2, 2, 2)
    stem_kernel_size: int = 5
    use_frame_adapters: bool = False
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.02

    @property
    def out_channels(self) -> int:
        """Channels of a point feature."""
        return self.planes[-1]

    def validate_architecture(self):
        """Part of `@strict` validation."""
        if len(self.planes) != 8 or len(self.blocks) != 8:
            raise ValueError(f"planes and blocks need 8 entries each, got {len(self.planes)} and {len(self.blocks)}")
        if min(self.planes) < 1 or min(self.blocks) < 1:
            raise ValueError(f"planes {self.planes} and blocks {self.blocks} must be positive")
        if self.stem_kernel_size not in (3, 5):
            raise ValueError(f"stem_kernel_size must be 3 or 5, got {self.stem_kernel_size}")


@strict
class BiFusionLossConfig(PreTrainedConfig):
    r"""What the network is trained for: weights and settings of the loss terms, handed whole to the criterion.

    A weight of 0 switches a term off. The consistency loss is `loss_clip`: it ties the point branch to the image
    branch, whatever its tower.

    Args:
        no_object_weight (`float`): Weight of "no object" in the classification loss.
        class_weight, mask_weight (`float`): Weights of the instance losses of every head.
        dice_weight (`float` or `list[float]`): Weight of the Dice loss, of all heads or one for each head.
        semantic_weight (`float`): Weight of the semantic loss.
        image_semantic_weight (`float`): Weight of the semantic loss of the image features alone, through a linear
            classifier that is only there for it. A tower that starts from scratch needs it.
        consistency_loss_weight (`float`): Weight of the consistency loss.
        consistency_loss_mode (`str`): `"contrastive"`, or `"positive"` for the original form without negatives.
        consistency_temperature (`float`): Its temperature.
        consistency_gradient_flow_ratio (`float`): Fraction of its gradient that reaches the image branch.
        consistency_negatives_across_batch (`bool`): Take negatives from the whole batch instead of from the sample.
        consistency_coverage_gate (`str`): How the consistency loss of a sample follows the share of its points that
            are visible: `"none"`, `"soft"` (in proportion, up to the threshold) or `"hard"` (all or nothing).
        consistency_coverage_threshold (`float`): Share of visible points at which that gate is open.
        consistency_warmup (`list[float]`): Start and length of a linear warm-up of its weight, as fractions of
            training.
        spatial_loss_weight (`float`): Weight of the spatial consistency loss.
        noview_loss_weight (`float`): Weight of the no-view supervision.
        noview_similarity_threshold (`float`): Cosine below which a point without a view has no teacher.
        balance_loss_weight (`float`): Weight of the fusion balance loss.
        balance_target (`float`): Mean gate weight that the balance loss asks for.
        box_weight (`float`): Weight of the box loss of every head; it needs `use_box_head`.
        merge_weight (`float`): Weight of the contrastive loss of the merge embeddings; it needs `use_merge_head`.
        merge_temperature (`float`): Its temperature.
        stage_schedule (`str`): `"bifusion"`, `"original"` or `"none"`: how loss weights follow progress.
    """

    model_type = "bifusion_loss"
    base_config_key = "loss_config"

    no_object_weight: float | int = 0.1
    class_weight: float | int = 0.5
    mask_weight: float | int = 1.0
    dice_weight: float | int | list[float] | tuple[float, ...] = 1.0
    semantic_weight: float | int = 0.5
    image_semantic_weight: float | int = 0.0
    consistency_loss_weight: float | int = 0.02
    consistency_loss_mode: Literal["contrastive", "positive"] = "contrastive"
    consistency_temperature: float | int = 0.07
    consistency_gradient_flow_ratio: float | int = 0.01
    consistency_negatives_across_batch: bool = False
    consistency_coverage_gate: Literal["none", "soft", "hard"] = "soft"
    consistency_coverage_threshold: float | int = 0.6
    consistency_warmup: list[float] | tuple[float, float] = (0.0, 0.0)
    spatial_loss_weight: float | int = 0.02
    noview_loss_weight: float | int = 0.01
    noview_similarity_threshold: float | int = 0.8
    balance_loss_weight: float | int = 0.0
    balance_target: float | int = 0.4
    box_weight: float | int = 0.0
    merge_weight: float | int = 0.0
    merge_temperature: float | int = 0.07
    stage_schedule: Literal["bifusion", "original", "none"] = "bifusion"

    def __post_init__(self, **kwargs):
        # transformers would keep any other name, and nothing would ever read it.
        unknown = sorted(name for name in kwargs if name not in _PLAIN_ENTRIES)
        if unknown:
            raise ValueError(f"loss_config has no {', '.join(unknown)}; there are {sorted(self.own_fields())}")
        super().__post_init__(**kwargs)

    @classmethod
    def own_fields(cls) -> list[str]:
        """Names of the settings, without what every configuration of transformers has."""
        return [name for name in cls.__dataclass_fields__ if name not in PreTrainedConfig.__dataclass_fields__]

    def validate_values(self):
        """Part of `@strict` validation: ranges."""
        for name in self.own_fields():
            value = getattr(self, name)
            if name.endswith("_weight") and min([value] if isinstance(value, (int, float)) else value) < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name in ("consistency_temperature", "merge_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.consistency_gradient_flow_ratio <= 1:
            raise ValueError(
                f"consistency_gradient_flow_ratio must lie in [0, 1], got {self.consistency_gradient_flow_ratio}"
            )
        if not 0 < self.consistency_coverage_threshold <= 1:
            raise ValueError(
                f"consistency_coverage_threshold must lie in (0, 1], got {self.consistency_coverage_threshold}"
            )
        if len(self.consistency_warmup) != 2 or min(self.consistency_warmup) < 0:
            raise ValueError(f"consistency_warmup must be a start and a length, got {self.consistency_warmup}")


# What a sub-configuration's `to_dict` and `from_dict` hold beside its fields.
_PLAIN_ENTRIES = {"model_type", "_name_or_path", "name_or_path", "output_attentions", "attn_implementation"}


@strict
class BiFusionConfig(PreTrainedConfig):
    r"""Configuration of [`BiFusionModel`] and [`BiFusionForInstanceSegmentation`].

    The names follow the original training recipe where it names a thing. `BiFusionConfig.from_preset` gives the
    published variants; the defaults are those of the preset `simple`.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*): Image tower: any vision backbone that `AutoModel`
            builds and that yields patch tokens (ViT) or one map of features (ResNet, ConvNeXt). `None` with
            `fusion_type="none"`; otherwise `None` means CLIP ViT-B/16 with 4 blocks.
        point_config (`dict` or `BiFusionPointConfig`, *optional*): Sparse U-Net of the point branch.
        loss_config (`dict` or `BiFusionLossConfig`, *optional*): Weights and settings of the losses.
        voxel_size (`float`): Edge of a voxel in metres.
        sparse_backend (`str`): `"auto"`, `"torch"`, `"compiled"`, `"spconv"` or `"triton"`.
        hidden_size (`int`): Width of the fused point features, input of pooling and decoder. `none` and `residual`
            keep the point branch's own width.
        projection_dim (`int`): Width of the space that both branches share before the gate.
        projection_hidden_size (`int`): Hidden width of the 2D projection head.
        decoder_size (`int`): Width of the query decoder.
        decoder_layers (`int`): Layers of the query decoder.
        decoder_attention_heads (`int`): Attention heads of the query decoder.
        decoder_intermediate_size (`int`): Hidden width of its feed-forward blocks.
        decoder_mask_levels (`list[str]`): What each head's masks are over (`"superpoint"` or `"point"`), one entry
            more than there are layers.
        fusion_type (`str`): `"none"`, `"lite_gate"`, `"enhanced_gate"` or `"residual"`.
        use_film (`bool`): Modulate both branches by the geometric encoding.
        use_spatial_attention (`bool`): Spatial term of the enhanced gate.
        spatial_k (`int`): Largest number of neighbours of a point in the enhanced gate.
        spatial_radius (`float`): Radius in metres in which they are looked for.
        use_tiny_sa_2d (`bool`): Self-attention over the image tokens before sampling.
        use_tiny_sa_3d (`bool`): Local self-attention over the point features before fusion.
        tiny_sa_radius (`float`): Radius in metres of the 3D form.
        gate_warmup_steps (`int`): Optimizer updates during which the gate is held at 0.5.
        freeze_tower_early_layers (`bool`): Freeze the first 3 blocks of the tower.
        freeze_tower_embeddings (`bool`): Freeze patch, position and class embedding and the norm behind them.
        semantic_id2label (`dict`, *optional*): Names of the semantic classes; ScanNet200's by default.
        num_semantic_labels (`int`): Classes of the semantic head (a background class is added).
        use_box_head (`bool`): Predict an axis-aligned box with each query: that of the whole object, seen or not.
        use_merge_head (`str`, *optional*): Predict an embedding with each query by which the instances of different
            frames are merged; the kind of its norms, `"layer"` or `"batch"`.
        min_query_fraction (`float`): In training a random part of the superpoints, at least this, become queries.
    """

    model_type = "bifusion"
    sub_configs_defaults: ClassVar = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model", optional=True),
        "point_config": BiFusionPointConfig,
        "loss_config": BiFusionLossConfig,
    }
    attribute_map: ClassVar = {"clip_num_layers": "tower_num_layers"}
    # What a `config.json` of release 0.1 holds for the processor; `BiFusionProcessor.from_config` takes it.
    old_processor_fields: ClassVar[dict[str, Any]] = {}

    vision_config: dict | PreTrainedConfig | None = None
    point_config: dict | PreTrainedConfig | None = None
    loss_config: dict | PreTrainedConfig | None = None

    voxel_size: float = 0.02
    sparse_backend: Literal["auto", "torch", "compiled", "spconv", "triton"] = "auto"
    hidden_size: int = 256
    projection_dim: int = 256
    projection_hidden_size: int = 512

    decoder_size: int = 256
    decoder_layers: int = 3
    decoder_attention_heads: int = 8
    decoder_intermediate_size: int = 1024
    decoder_mask_levels: list[str] | tuple[str, ...] = ("superpoint", "superpoint", "point", "point")

    fusion_type: Literal["none", "lite_gate", "enhanced_gate", "residual"] = "lite_gate"
    use_film: bool = True
    use_spatial_attention: bool = False
    spatial_k: int = 16
    spatial_radius: float = 0.1
    use_tiny_sa_2d: bool = False
    use_tiny_sa_3d: bool = False
    tiny_sa_radius: float = 0.2
    gate_warmup_steps: int = 3000
    freeze_tower_early_layers: bool = True
    freeze_tower_embeddings: bool = True

    use_box_head: bool = False
    use_merge_head: Literal["layer", "batch"] | None = None

    num_semantic_labels: int = 200
    semantic_id2label: dict | None = None
    min_query_fraction: float | int = 0.5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        _refuse_processor_fields(kwargs)
        old = {name: kwargs.pop(name) for name in MOVED_FIELDS if name in kwargs}
        fields = rename_fields({**old, **({} if self.loss_config is None else {"loss_config": self.loss_config})})
        for name, value in fields.items():
            if name != "loss_config" and getattr(self, name) not in (value, self.__dataclass_fields__[name].default):
                raise ValueError(f"{name} is given under its old name too, with another value; expected the new one")
            setattr(self, name, value)
        if self.vision_config is None and self.fusion_type != "none":
            self.vision_config = clip_tower(4)
        if self.id2label is None:  # type: ignore[has-type]
            names = {1: ("object",), len(INSTANCE_CLASS_NAMES): INSTANCE_CLASS_NAMES}.get(kwargs.get("num_labels", 1))
            if names is not None:
                self.id2label = dict(enumerate(names))
                self.label2id = {name: label for label, name in enumerate(names)}
        super().__post_init__(**kwargs)
        if self.semantic_id2label is None and self.num_semantic_labels == 200:
            self.semantic_id2label = dict(enumerate(SCANNET200_CLASS_NAMES))
        elif self.semantic_id2label is not None:
            self.semantic_id2label = {int(key): name for key, name in self.semantic_id2label.items()}

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "BiFusionConfig":
        """The configuration of a named variant.

        Args:
            name: `"sv3d"`, `"simple"`, `"full"`, `"residual"` or `"tiny"`.
            overrides: Fields that replace the preset's; a dict as `loss_config` only those that it has.

        Raises:
            ValueError: There is no preset, or no field, of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {sorted(PRESETS)}")
        _refuse_processor_fields(overrides)
        overrides = rename_fields(overrides)
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__) - {"num_labels"})
        if unknown:
            raise ValueError(f"BiFusionConfig has no {', '.join(unknown)}")
        preset = copy.deepcopy(PRESETS[name])
        if isinstance(overrides.get("loss_config"), dict):
            overrides["loss_config"] = {**preset.get("loss_config", {}), **overrides["loss_config"]}
        return cls(**{**preset, **overrides})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict]:
        """As in transformers, and `"sample"` is the checkpoint that the package carries."""
        return super().get_config_dict(checkpoint_place(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "BiFusionConfig":
        """As in transformers.

        Raises:
            ValueError: A value is none that the field can have; the message begins with the checkpoint's name.
        """
        with naming(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "BiFusionConfig":
        """The configuration of a checkpoint's `config.json`.

        Args:
            config_dict: Content of the file, of this release or of 0.1; what 0.1 kept here for the processor is handed
                on by `BiFusionProcessor.from_config`.
            kwargs: As in `PreTrainedConfig.from_dict`; `id2label` alone is enough for other classes.

        Raises:
            ValueError: A later release of the package wrote it, or `kwargs` has a field of the processor.
        """
        _refuse_processor_fields(kwargs)
        # First of all: an unknown value of a later release would raise a message that explains nothing.
        check_checkpoint_version(config_dict.get("bifusion_hf_version"))
        # Where the code comes from belongs to a release, not to the checkpoints that are made of it.
        left_out = ("bifusion_hf_version", "auto_map", *PROCESSOR_FIELDS, *UNUSED_FIELDS)
        values = rename_fields({key: value for key, value in config_dict.items() if key not in left_out})
        if kwargs.get("id2label") is not None:
            # All at once: transformers would hold the new number of labels against the names of the old ones.
            values["id2label"] = kwargs.pop("id2label")
            values["label2id"] = {name: label for label, name in values["id2label"].items()}
            kwargs.pop("label2id", None)
        loaded = super().from_dict(values, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        old = {name: config_dict[name] for name in PROCESSOR_FIELDS if name in config_dict}
        if old:
            # Masks stayed whole then.
            config.old_processor_fields = {**old, "part_gap": 0.0}
        # What `kwargs` changed was set field by field, and may contradict the rest.
        config.validate()
        return loaded

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> "BiFusionConfig":
        """The configuration in a file; see `from_dict`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is not there.
        if name not in MOVED_FIELDS:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return attrgetter(MOVED_FIELDS[name])(self)

    def __setattr__(self, name: str, value: Any) -> None:
        # A processor's field would be kept, and nothing would ever read it.
        _refuse_processor_fields((name,))
        section, _, field = MOVED_FIELDS.get(name, name).rpartition(".")
        if section:
            setattr(getattr(self, section), field, value)
        else:
            super().__setattr__(field, value)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the version of the package."""
        values = super().to_dict()
        values.pop("old_processor_fields", None)
        return {**values, "bifusion_hf_version": __version__}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: releases carry `hub/remote_code_shim.py`, not copies of the package's modules."""

    @property
    def tower_num_layers(self) -> int:
        """Blocks of the image tower, stages of one whose resolution falls; 0 without one."""
        return 0 if self.vision_config is None else tower_depth(self.vision_config)

    @property
    def image_patch_size(self) -> tuple[int, int]:
        """Rows and columns of pixels for one feature of the image tower; (1, 1) without one."""
        if self.vision_config is None:
            return 1, 1
        # A ResNet's first convolution and pooling halve the image twice, and it has no field for that.
        patch_size = getattr(self.vision_config, "patch_size", 4)
        rows, columns = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        # Each stage after the first halves the map; a ViT has none.
        halvings = len(getattr(self.vision_config, "depths", [0])) - 1
        halvings += bool(getattr(self.vision_config, "downsample_in_first_stage", False))
        return rows * 2**halvings, columns * 2**halvings

    @property
    def num_hidden_layers(self) -> int:
        """Layers whose states `output_hidden_states` returns: those of the query decoder."""
        return self.decoder_layers

    def validate_architecture(self):
        """Part of `@strict` validation: fields that contradict each other."""
        width = self.point_config.out_channels
        if self.fusion_type == "none" and self.vision_config is not None:
            raise ValueError("fusion_type 'none' has no image branch: vision_config must be None")
        if self.fusion_type != "none" and self.vision_config is None:
            raise ValueError(f"fusion_type {self.fusion_type!r} needs a vision_config")
        if self.fusion_type in ("none", "residual") and self.hidden_size != width:
            raise ValueError(
                f"fusion_type {self.fusion_type!r} keeps the point branch's width: hidden_size must be {width}, "
                f"not {self.hidden_size}"
            )
        if self.fusion_type in ("lite_gate", "enhanced_gate") and self.hidden_size != self.projection_dim:
            raise ValueError(
                f"fusion_type {self.fusion_type!r} mixes the projected branches: hidden_size {self.hidden_size} "
                f"must equal projection_dim {self.projection_dim}"
            )
        if self.fusion_type != "enhanced_gate" and self.use_spatial_attention:
            raise ValueError("use_spatial_attention belongs to fusion_type 'enhanced_gate'")
        if self.fusion_type == "none" and (self.use_film or self.use_tiny_sa_2d):
            raise ValueError("use_film and use_tiny_sa_2d need an image branch, fusion_type is 'none'")
        if self.fusion_type == "none" and self.loss_config.image_semantic_weight:
            raise ValueError("loss_config.image_semantic_weight needs an image branch, fusion_type is 'none'")
        if self.loss_config.box_weight and not self.use_box_head:
            raise ValueError("loss_config.box_weight needs use_box_head, which is False")
        if self.loss_config.merge_weight and self.use_merge_head is None:
            raise ValueError("loss_config.merge_weight needs use_merge_head, which is None")
        if self.decoder_size % self.decoder_attention_heads:
            raise ValueError(
                f"decoder_size {self.decoder_size} is not a multiple of decoder_attention_heads "
                f"{self.decoder_attention_heads}"
            )
        heads = self.decoder_layers + 1
        if len(self.decoder_mask_levels) != heads or set(self.decoder_mask_levels) - {"superpoint", "point"}:
            raise ValueError(
                f"decoder_mask_levels needs {heads} entries 'superpoint' or 'point', got {self.decoder_mask_levels}"
            )
        if self.decoder_mask_levels[-1] != "point":
            raise ValueError("the last head's masks are the result: decoder_mask_levels must end with 'point'")
        dice_weight = self.loss_config.dice_weight
        if not isinstance(dice_weight, (int, float)) and len(dice_weight) != heads:
            raise ValueError(f"loss_config.dice_weight needs one number or {heads}, got {dice_weight}")
        if not 0 < self.min_query_fraction <= 1:
            raise ValueError(f"min_query_fraction must lie in (0, 1], got {self.min_query_fraction}")
        if not self.voxel_size > 0:
            raise ValueError(f"voxel_size must be positive, got {self.voxel_size}")
        _check_sizes(self)


def _check_sizes(config: PreTrainedConfig, place: str = "") -> None:
    """Refuses sizes that no network has: what comes from a file could ask for more memory than there is."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _check_sizes(value, f"{place}{name}.")
        limit = next((limit for end, limit in SIZE_LIMITS.items() if name.endswith(end)), None)
        for size in value if isinstance(value, list | tuple) else [value]:
            if limit is not None and type(size) is int and not 0 <= size <= limit:
                raise ValueError(f"{place}{name} is {value}; expected at most {limit}, and not below 0")


def _refuse_processor_fields(names: Iterable[str]) -> None:
    found = [name for name in names if name in PROCESSOR_FIELDS]
    if found:
        raise ValueError(
            f"{', '.join(found)}: no field of BiFusionConfig but of BiFusionProcessor; give it to the processor "
            "(`BiFusionProcessor.from_config(config, ...)`; in a recipe `model.processor`)"
        )


def tower_depth(vision_config: PreTrainedConfig) -> int:
    """Blocks of an image tower, or stages of one whose resolution falls."""
    return getattr(vision_config, "num_hidden_layers", None) or len(vision_config.depths)


def tower_width(vision_config: PreTrainedConfig) -> int:
    """Channels of an image tower's features."""
    return getattr(vision_config, "hidden_size", None) or vision_config.hidden_sizes[-1]
