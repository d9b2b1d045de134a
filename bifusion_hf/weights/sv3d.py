"""Weights of the 3D baseline ("sv3d", the ESAM single-view network) and of its relatives.

The names of the tensors are translated by the tables below and nothing else: no guessing by order or shape. Kernels
are stored here as MinkowskiEngine stores them, so none is permuted; only the packed query-key-value matrices of the
attention layers are cut in three.
"""

import re
from pathlib import Path

import torch
from torch import nn

from ..io.checkpoint_files import read_state_dict, resolve_file
from ..modeling_bifusion import BiFusionForInstanceSegmentation, BiFusionModel
from .report import WeightLoadReport, assign, module_counts


# File names tried first in a folder or repository.
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")

# What stands before the U-Net's names in the checkpoints of other projects, the most specific first.
BACKBONE_PREFIXES = {
    "bi_encoder.backbone3d.": "the original BiFusion",
    "model.backbone.": "Mask3D",
    "backbone.": "ESAM, OneFormer3D",
}

# U-Net: first parts of a name -> ours, under encoder.point_encoder.
BACKBONE = {
    "conv0p1s1": "stem",
    "bn0": "stem_norm",
    **{f"conv{level}p{2 ** (level - 1)}s2": f"down_convs.{level - 1}" for level in (1, 2, 3, 4)},
    **{f"bn{level}": f"down_norms.{level - 1}" for level in (1, 2, 3, 4)},
    **{f"block{level}": f"down_blocks.{level - 1}" for level in (1, 2, 3, 4)},
    **{f"convtr{level}p{2 ** (8 - level)}s2": f"up_convs.{level - 4}" for level in (4, 5, 6, 7)},
    **{f"bntr{level}": f"up_norms.{level - 4}" for level in (4, 5, 6, 7)},
    **{f"block{level}": f"up_blocks.{level - 5}" for level in (5, 6, 7, 8)},
}
BLOCK = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_norm"}

# Frame adapters of an online checkpoint ("memory"), under encoder.point_encoder.frame_adapters.LEVEL.
ADAPTER = {
    ("conv_d1", "0"): "conv_near",
    ("conv_d1", "1"): "norm_near",
    ("conv_d3", "0"): "conv_far",
    ("conv_d3", "1"): "norm_far",
    ("conv_convert", "0"): "conv_mix",
    ("conv_convert", "1"): "norm_mix",
}

POOLING = {
    "pts_proj1.0": "shape_in",
    "pts_proj1.1": "shape_in_norm",
    "pts_proj1.3": "shape_out",
    "pts_proj1.4": "shape_out_norm",
    "pts_proj2.0": "weight_in",
    "pts_proj2.1": "weight_in_norm",
    "pts_proj2.3": "weight_out",
}

DECODER = {
    "input_proj.0": "key_proj",
    "input_proj.1": "key_norm",
    "query_proj.0": "query_proj.hidden",
    "query_proj.2": "query_proj.out",
    "x_mask.0": "superpoint_mask_proj.hidden",
    "x_mask.2": "superpoint_mask_proj.out",
    "x_pts_mask.0": "point_mask_proj.hidden",
    "x_pts_mask.2": "point_mask_proj.out",
    "out_norm": "out_norm",
    "out_cls.0": "class_head.hidden",
    "out_cls.2": "class_head.out",
    "out_sem": "semantic_head",
    "out_reg.0": "box_head.hidden",
    "out_reg.2": "box_head.out",
}
MERGE_HEAD = {"net.0": "hidden", "net.1": "hidden_norm", "net.3": "out", "net.4": "out_norm"}
# What begins so is the instance model's, everything else lies in its base.
HEADS = ("decoder.", "merge_head.")
# Decoder layers: (kind, rest of the name) -> ours, under decoder.layers.LAYER.
DECODER_LAYER = {
    ("cross_attn", "attn.out_proj"): "cross_attention.out_proj",
    ("cross_attn", "norm"): "cross_attention_norm",
    ("self_attn", "attn.out_proj"): "self_attention.out_proj",
    ("self_attn", "norm"): "self_attention_norm",
    ("ffn", "net.0"): "ffn_in",
    ("ffn", "net.3"): "ffn_out",
    ("ffn", "norm"): "ffn_norm",
}
PACKED_ATTENTION = {"cross_attn": "cross_attention", "self_attn": "self_attention"}

# What online checkpoints hold beside: tracking between frames needs it, a single frame does not.
UNUSED = {
    "merge_head.": "merges instances between frames (use_merge_head)",
    "decoder.out_reg.": "boxes for merging between frames (use_box_head)",
}
POINT_ENCODER = "encoder.point_encoder."
# A checkpoint of this package has such names.
OWN_LAYOUT = r"(model\.)?encoder\.point_encoder\."


def load_sv3d_weights(
    model: nn.Module, source: str | Path, *, revision: str | None = None, strict_backbone: bool = True
) -> WeightLoadReport:
    """Loads what a baseline checkpoint holds for a model.

    The U-Net must load as a whole. Pooling and decoder load where names and shapes agree: all of them with
    `fusion_type` `"none"` and `"residual"`, those of the decoder's width with the others. What does not fit is
    reported and stays as it was. Nothing is changed if an error is raised.

    Args:
        model: A `BiFusionForInstanceSegmentation` or `BiFusionModel`.
        source: A `.pth` or `.safetensors` file, a folder, `"org/repo"` or `"org/repo:file"`: a single-view or online
            ESAM checkpoint, a backbone of OneFormer3D or Mask3D, a checkpoint of the original BiFusion, or one of
            this package.
        revision: Of the repository.
        strict_backbone: False allows a U-Net that is incomplete or of another shape, and frame adapters on one side
            only.

    Returns:
        The report; print it, or keep it with `report.save(path)`.

    Raises:
        ValueError: No tensor of the U-Net was found; or, with `strict_backbone`, one is missing or has another shape,
            or only one side has frame adapters. The message names them.
        FileNotFoundError, ConnectionError, DataFileError: The source cannot be found, reached or read.
    """
    if not isinstance(model, (BiFusionForInstanceSegmentation, BiFusionModel)):
        raise ValueError(
            f"model is a {type(model).__name__}; expected BiFusionForInstanceSegmentation or BiFusionModel"
        )
    path = resolve_file(source, FILE_NAMES, revision)
    state = read_state_dict(path)
    targets = {name: tensor.shape for name, tensor in model.state_dict().items()}
    base = "" if isinstance(model, BiFusionModel) else f"{model.base_model_prefix}."

    report, tensors = WeightLoadReport(str(source)), {}
    is_own = any(re.match(OWN_LAYOUT, key) for key in state)
    backbone_prefix = find_backbone_prefix(state)
    for key, value in state.items():
        translated = _own_names(key, value) if is_own else translate(key, value, backbone_prefix)
        names = {name if name.startswith(HEADS) else base + name: part for name, part in translated.items()}
        wrong = [name for name, part in names.items() if name in targets and targets[name] != part.shape]
        if not names or not set(names) <= set(targets):
            report.unexpected.append(key)
        elif wrong:
            report.mismatched.append((key, tuple(value.shape), wrong[0], tuple(targets[wrong[0]])))
        else:
            report.loaded.append(key)
            tensors.update(names)
    report.missing = [name for name in targets if name not in tensors and not name.startswith(f"{base}training_")]
    report.modules = module_counts(model, tensors)
    for prefix, reason in UNUSED.items():
        if any(key.startswith(prefix) for key in report.unexpected):
            report.notes.append(f"{prefix}* is not used: {reason}")
    _check_backbone(report, tensors, base + POINT_ENCODER, state, strict_backbone)
    assign(model, tensors)
    return report


def find_backbone_prefix(state: dict[str, torch.Tensor]) -> str | None:
    """What stands before the U-Net's names in a checkpoint, or None without a U-Net of another project.

    The original BiFusion's checkpoints hold a second U-Net, `backbone.`, that its network never used.
    """
    return next((prefix for prefix in BACKBONE_PREFIXES if any(key.startswith(prefix) for key in state)), None)


def has_frame_adapters(state: dict[str, torch.Tensor]) -> bool:
    """Whether a checkpoint is of an online network, whose U-Net was trained together with frame adapters."""
    return any(key.startswith("memory.") or ".frame_adapters." in key for key in state)


def translate(key: str, value: torch.Tensor, backbone_prefix: str | None) -> dict[str, torch.Tensor]:
    """Our names of a checkpoint's tensor and their parts of it; empty for one that has no place here.

    Args:
        key: Its name in a checkpoint of another project.
        value: The tensor.
        backbone_prefix: What stands before the U-Net's names there.

    Returns:
        Names within `BiFusionModel`, or `decoder.` and `merge_head.` of the instance model.
    """
    # MinkowskiEngine keeps a BatchNorm1d inside each of its normalisations.
    name = re.sub(r"\.bn\.(?=[a-z_]+$)", ".", key)
    if backbone_prefix is not None and name.startswith(backbone_prefix):
        own = _replace_start(name.removeprefix(backbone_prefix), BACKBONE)
        return {} if own is None else {POINT_ENCODER + _replace_block(own): value}
    if match := re.fullmatch(r"memory\.(\w+)\.(\d)\.(\d)\.(\w+)", name):
        kind, level, index, leaf = match.groups()
        part = ADAPTER.get((kind, index))
        return {} if part is None else {f"{POINT_ENCODER}frame_adapters.{level}.{part}.{leaf}": value}
    if name.startswith("pool."):
        own = _replace_start(name.removeprefix("pool."), POOLING)
        return {} if own is None else {f"superpoint_pooling.{own}": value}
    if name.startswith("merge_head."):
        own = _replace_start(name.removeprefix("merge_head."), MERGE_HEAD)
        return {} if own is None else {f"merge_head.{own}": value}
    if name.startswith("decoder."):
        return _translate_decoder(name.removeprefix("decoder."), value)
    return {}


def _own_names(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """`translate` for a checkpoint of this package: how far its training was is not taken over."""
    name = key.removeprefix("model.")
    return {} if name.startswith("training_") else {name: value}


def _translate_decoder(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    match = re.fullmatch(r"(cross_attn|self_attn|ffn)_layers\.(\d+)\.(.+)", name)
    if match is None:
        own = _replace_start(name, DECODER)
        return {} if own is None else {f"decoder.{own}": value}
    kind, layer, rest = match.groups()
    if packed := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        place = f"decoder.layers.{layer}.{PACKED_ATTENTION[kind]}"
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{place}.{letter}_proj.{packed[1]}": part for letter, part in parts}
    module, _, leaf = rest.rpartition(".")
    part = DECODER_LAYER.get((kind, module))
    return {} if part is None else {f"decoder.layers.{layer}.{part}.{leaf}": value}


def _replace_start(name: str, table: dict[str, str]) -> str | None:
    """The name with its first parts replaced by the table; None where it has no entry."""
    for start, replacement in table.items():
        if name.startswith(f"{start}."):
            return replacement + name.removeprefix(start)
    return None


def _replace_block(name: str) -> str:
    for start, replacement in BLOCK.items():
        name = name.replace(f".{start}.", f".{replacement}.")
    return name


def _check_backbone(
    report: WeightLoadReport, tensors: dict, place: str, state: dict[str, torch.Tensor], strict: bool
) -> None:
    """Refuses a load that would leave the U-Net at its random start, or change its features."""
    if not any(name.startswith(place) for name in tensors):
        found = sorted({key.split(".")[0] for key in state})[:10]
        raise ValueError(
            f"{report.source}: no tensor of the U-Net was found. Names must begin with one of "
            f"{', '.join(BACKBONE_PREFIXES)}; the checkpoint has {found}"
        )
    problems = [
        f"{key} has shape {list(shape)}, {name} {list(expected)}"
        for key, shape, name, expected in report.mismatched
        if name.startswith(place)
    ]
    adapters = has_frame_adapters(state)
    model_adapters = any(name.startswith(f"{place}frame_adapters.") for name in (*tensors, *report.missing))
    if adapters and not model_adapters:
        problems.append(
            "the checkpoint is of an online network with frame adapters (memory.*), the model has none: "
            "features would differ; configure point_config.use_frame_adapters=True"
        )
    problems += [f"{name} is missing in the checkpoint" for name in report.missing if name.startswith(place)]
    if problems and strict:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{report.source}: the U-Net does not fit: {'; '.join(problems[:5])}{more}. Nothing was loaded; "
            "strict_backbone=False loads what fits"
        )
    report.notes += problems[:5]
