"""Weights of CLIP image towers (Radford et al., 2021), as open_clip and transformers store them.

The tower is transformers' `CLIPVisionModel`. Names are translated by the tables below; open_clip's packed
query-key-value matrices are cut in three. What no tensor tells, above all the activation, comes from the release's
configuration or from the caller and is never guessed: the wrong one changes every token and raises no error.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig
from transformers.activations import ACT2FN

from ..import_utils import require_package
from ..io.checkpoint_files import read_state_dict, resolve_file
from ..io.files import DataFileError
from ..io.hub_files import OPEN_CLIP_NAME
from .report import WeightLoadReport, assign, module_counts
from .vision import image_tower


ACTIVATIONS = ("quick_gelu", "gelu")
HUB_PREFIX = "hf-hub:"
# File names tried first in a folder or repository. Some hold the tower in timm's layout too, in `model.safetensors`.
FILE_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Layout:
    """How a project names a CLIP image tower's tensors.

    Args:
        anchor: A tensor that only this layout has.
        prefixes: What can stand before the tower's names: in a whole CLIP model, and in a tower saved alone.
        config_file: The configuration that lies beside the weights.
    """

    anchor: str
    prefixes: tuple[str, ...]
    config_file: str


OPEN_CLIP = Layout("class_embedding", ("visual.", ""), "open_clip_config.json")
TRANSFORMERS = Layout("embeddings.class_embedding", ("vision_model.", ""), "config.json")

# open_clip's modules and tensors -> transformers'.
OPEN_CLIP_STEM = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
}
OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
POSITIONS = "embeddings.position_embedding.weight"


@dataclass(frozen=True)
class TowerSettings:
    """What a release says about its tower beside the tensors.

    Args:
        origin: Where this is written, for messages.
        hidden_act: Activation, by its name in transformers.
        num_attention_heads: Heads of a block.
        layer_norm_eps: Epsilon of the normalisations.
    """

    origin: str
    hidden_act: str
    num_attention_heads: int
    layer_norm_eps: float


def load_clip_weights(
    model: nn.Module, source: str | Path, *, revision: str | None = None, activation: str | None = None
) -> WeightLoadReport:
    """Loads the image tower of a CLIP checkpoint into a model's image branch.

    Every tensor of the configured blocks must be there. Later blocks, the text tower and what follows the last block
    are not used. Position embeddings of another grid are interpolated to the configured one. Where the release uses
    another activation than the model, the model takes it over, in its blocks and in `vision_config.hidden_act`.
    Nothing is changed if an error is raised.

    Args:
        model: A `BiFusionForInstanceSegmentation` or `BiFusionModel` with a CLIP tower.
        source: open_clip's architecture and tag (`"ViT-B-16/openai"`, needs the extra `openclip`); a weight file or a
            folder, of open_clip or transformers; or a repository of either (`"hf-hub:org/repo"`, `"org/repo"`,
            `"org/repo:file"`).
        revision: Of the repository.
        activation: `"quick_gelu"` (OpenAI's weights) or `"gelu"` (LAION's), where the source does not tell: a weight
            file without `open_clip_config.json` or `config.json` beside it.

    Returns:
        The report. It covers the image tower; `missing` is therefore empty.

    Raises:
        ValueError: The model has no CLIP tower; the source holds none, or one of another width, patch, depth, number
            of heads or structure; the activation is unknown, or contradicts the one given.
        ImportError: An architecture and tag was given and open_clip is not installed.
        FileNotFoundError, ConnectionError, DataFileError: The source cannot be found, reached or read.
    """
    tower, place = _clip_tower(model)
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; expected one of {ACTIVATIONS}")
    location, settings = str(source).removeprefix(HUB_PREFIX), None
    named = None if Path(source).exists() else OPEN_CLIP_NAME.fullmatch(str(source))
    if named:
        location, settings = open_clip_release(*named.groups())
    path = resolve_file(location, FILE_NAMES, revision)
    state = read_state_dict(path)
    layout, prefix = find_layout(state, source)
    if settings is None:
        settings = _read_settings(location, path, layout, revision, activation)

    report = WeightLoadReport(str(source))
    hidden_act = _choose_activation(tower, settings, activation, report)
    tensors = _fit(tower, state, layout, prefix, report)
    assign(tower, tensors)
    # The configurations are mostly one object; a copy would otherwise be saved with the old activation.
    for config in (tower.config, model.config.vision_config):
        config.hidden_act = hidden_act
    for layer in tower.encoder.layers:
        layer.mlp.activation_fn = ACT2FN[hidden_act]
    report.modules = {place + name: counts for name, counts in module_counts(tower, tensors).items()}
    return report


def _clip_tower(model: nn.Module) -> tuple[nn.Module, str]:
    """The tower of a model, and what stands before its names there."""
    tower, place = image_tower(model)
    if tower.config.model_type != CLIPVisionConfig.model_type:
        raise ValueError(
            f"the model's image tower is a {tower.config.model_type!r}; load_clip_weights expects "
            f"{CLIPVisionConfig.model_type!r}, load_vision_weights takes others"
        )
    return tower, place


def open_clip_release(architecture: str, tag: str) -> tuple[str, TowerSettings]:
    """Where open_clip keeps a release, as `resolve_file` takes it, and what it says about its tower.

    Args:
        architecture: One of `open_clip.list_models()`.
        tag: One of `open_clip.list_pretrained_tags_by_model(architecture)`.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: It knows no such release, or only one outside the Hub.
    """
    open_clip = require_package("open_clip")
    # Some architectures have a twin "...-quickgelu"; the release itself says which activation it was trained with.
    release = open_clip.get_pretrained_cfg(architecture, tag)
    model_config = open_clip.get_model_config(architecture)
    if not release or model_config is None:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        known = f"its tags are {tags}" if tags else "there is no such architecture"
        raise ValueError(f"open_clip {open_clip.__version__} has no release {architecture}/{tag}: {known}")
    repository, _, file = release.get("hf_hub", "").rpartition("/")
    if not repository:
        raise ValueError(
            f"open_clip {open_clip.__version__} has {architecture}/{tag} only at {release.get('url')!r}; from 2.29 on "
            "its releases are on the Hub"
        )
    model_config = {**model_config, "quick_gelu": release.get("quick_gelu", False)}
    settings = _open_clip_settings(model_config, f"open_clip's release {architecture}/{tag}")
    return f"{repository}:{file}" if file else repository, settings


def find_layout(state: dict[str, torch.Tensor], source: str | Path) -> tuple[Layout, str]:
    """The layout of a checkpoint and what stands before its tower's names.

    Raises:
        ValueError: It holds no CLIP image tower.
    """
    for layout in (OPEN_CLIP, TRANSFORMERS):
        for prefix in layout.prefixes:
            if prefix + layout.anchor in state:
                return layout, prefix
    expected = [layout.prefixes[0] + layout.anchor for layout in (OPEN_CLIP, TRANSFORMERS)]
    found = sorted({".".join(key.split(".")[:2]) for key in state})[:10]
    raise ValueError(
        f"{source}: no tensor of a CLIP image tower was found. open_clip's have {expected[0]}, transformers' "
        f"{expected[1]}; the checkpoint has {found}"
    )


def _read_settings(
    location: str, path: Path, layout: Layout, revision: str | None, activation: str | None
) -> TowerSettings | None:
    """What the configuration beside a weight file says; None where there is none."""
    config_path = path.with_name(layout.config_file)
    if not config_path.is_file():
        if Path(location).exists():
            return None
        repository, _, file = location.partition(":")
        beside = (PurePosixPath(file).parent / layout.config_file).as_posix()
        try:
            config_path = resolve_file(f"{repository}:{beside}", revision=revision)
        except FileNotFoundError:
            return None
        except ConnectionError:
            # Offline, a repository that never had one looks the same; who gave the activation can go on.
            if activation is None:
                raise
            return None
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataFileError(config_path, f"is no JSON ({error})") from error
    if layout is TRANSFORMERS:
        return _transformers_settings(config, str(config_path))
    return _open_clip_settings(config.get("model_cfg", config), str(config_path))


def _open_clip_settings(config: dict[str, Any], origin: str) -> TowerSettings:
    vision = config.get("vision_cfg", {})
    unsupported = sorted({"timm_model_name", "act_kwargs"} & {key for key, value in vision.items() if value})
    if unsupported or "width" not in vision:
        found = {key: vision[key] for key in unsupported} or vision
        raise ValueError(f"{origin}: vision_cfg has {found}; expected CLIP's own tower")
    return TowerSettings(
        origin=origin,
        hidden_act="quick_gelu" if config.get("quick_gelu", False) else "gelu",
        # The defaults of open_clip's CLIPVisionCfg and of its LayerNorm.
        num_attention_heads=vision["width"] // vision.get("head_width", 64),
        layer_norm_eps=(vision.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def _transformers_settings(config: dict[str, Any], origin: str) -> TowerSettings:
    model_type = config.get("model_type")
    if model_type == CLIPConfig.model_type:
        vision = CLIPConfig.from_dict(config).vision_config
    elif model_type == CLIPVisionConfig.model_type:
        vision = CLIPVisionConfig.from_dict(config)
    else:
        expected = (CLIPConfig.model_type, CLIPVisionConfig.model_type)
        raise ValueError(f"{origin}: model_type is {model_type!r}; expected one of {expected}")
    if vision.hidden_act not in ACT2FN:
        raise ValueError(f"{origin}: hidden_act {vision.hidden_act!r} is unknown to transformers")
    return TowerSettings(origin, vision.hidden_act, vision.num_attention_heads, vision.layer_norm_eps)


def _choose_activation(
    tower: nn.Module, settings: TowerSettings | None, activation: str | None, report: WeightLoadReport
) -> str:
    """The release's activation, after a check of what else no tensor tells."""
    config = tower.config
    if settings is None:
        if activation is None:
            raise ValueError(
                f"{report.source}: no configuration lies beside the weights, and they don't tell their activation; "
                "give activation='quick_gelu' (OpenAI's and its descendants) or activation='gelu' (LAION's)"
            )
        report.notes.append(
            f"the source tells neither heads nor epsilon: they are the model's, {config.num_attention_heads} and "
            f"{config.layer_norm_eps}"
        )
        hidden_act, origin = activation, "the caller"
    else:
        hidden_act, origin = settings.hidden_act, settings.origin
        if activation not in (None, hidden_act):
            raise ValueError(f"activation is {activation!r}, but {origin} says {hidden_act!r}")
        for name in ("num_attention_heads", "layer_norm_eps"):
            found, expected = getattr(settings, name), getattr(config, name)
            if found != expected:
                raise ValueError(f"{origin}: {name} is {found}, the model's vision_config has {expected}")
    note = f"activation {hidden_act}, says {origin}"
    if hidden_act != config.hidden_act:
        note += f"; the tower's {config.hidden_act} was replaced, in vision_config.hidden_act too"
    report.notes.append(note)
    return hidden_act


def _fit(
    tower: nn.Module, state: dict[str, torch.Tensor], layout: Layout, prefix: str, report: WeightLoadReport
) -> dict[str, torch.Tensor]:
    """The tower's tensors by their names in it; fills the report.

    Raises:
        ValueError: A tensor of the configured blocks is missing, has another shape, or has no place in the tower.
    """
    targets = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    depth = tower.config.num_hidden_layers
    tensors: dict[str, torch.Tensor] = {}
    problems, deepest = [], 0
    for key, value in state.items():
        translated = {}
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            translated = translate_open_clip(name, value) if layout is OPEN_CLIP else {name: value}
        if not set(translated) <= set(targets) or not translated:
            report.unexpected.append(key)
            for name in translated:
                block = _block_index(name)
                deepest = max(deepest, 0 if block is None else block + 1)
                if (block is not None and block < depth) or _is_unknown_embedding(name):
                    problems.append(f"{key} has no place in CLIP's tower")
            continue
        if POSITIONS in translated and value.shape[-1:] == targets[POSITIONS][-1:]:
            translated[POSITIONS], note = resize_positions(value, targets[POSITIONS][0], key)
            report.notes += note
        wrong = [name for name, part in translated.items() if part.shape != targets[name]]
        if wrong:
            report.mismatched.append((key, tuple(value.shape), wrong[0], tuple(targets[wrong[0]])))
            continue
        report.loaded.append(key)
        tensors.update(translated)
    mismatched = {name for _, _, name, _ in report.mismatched}
    problems += [f"{a} has shape {list(b)}, {c} {list(d)}" for a, b, c, d in report.mismatched]
    problems += [f"{name} is missing" for name in targets if name not in tensors and name not in mismatched]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{report.source}: the checkpoint does not fit the image tower ({depth} blocks, width "
            f"{tower.config.hidden_size}, patch {tower.config.patch_size}): {'; '.join(problems[:5])}{more}. "
            "Nothing was loaded"
        )
    if deepest > depth:
        report.notes.append(f"the first {depth} of {deepest} blocks are loaded, as configured")
    return tensors


def translate_open_clip(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """transformers' names of a tensor of an open_clip tower, and their parts of it.

    Args:
        name: Name within the tower.
        value: The tensor; a packed query-key-value matrix gives three.

    Returns:
        Names that are in no table are kept, behind their block's.
    """
    block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if block is None:
        return {_replace_start(name, OPEN_CLIP_STEM): value}
    place, rest = f"encoder.layers.{block[1]}", block[2]
    if packed := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
        parts = zip("qkv", value.tensor_split(3), strict=True)
        return {f"{place}.self_attn.{letter}_proj.{packed[1]}": part for letter, part in parts}
    return {f"{place}.{_replace_start(rest, OPEN_CLIP_BLOCK)}": value}


def _replace_start(name: str, table: dict[str, str]) -> str:
    for start, replacement in table.items():
        if name == start or name.startswith(f"{start}."):
            return replacement + name.removeprefix(start)
    return name


def _block_index(name: str) -> int | None:
    match = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def _is_unknown_embedding(name: str) -> bool:
    # `position_ids` is a counter that older releases of transformers saved.
    return name.startswith("embeddings.") and name != "embeddings.position_ids"


def resize_positions(weight: torch.Tensor, length: int, name: str) -> tuple[torch.Tensor, list[str]]:
    """Position embeddings on another square grid, as open_clip resizes them: bicubic, antialiased, in float32.

    Args:
        weight: [1 + rows * rows, C]; the class token's comes first and is kept.
        length: 1 + new_rows * new_rows.
        name: For the message.

    Returns:
        [length, C], and a note on what was done; the same tensor and no note where the length is right.

    Raises:
        ValueError: The grid is not square.
    """
    if weight.shape[0] == length:
        return weight, []
    old, new = math.isqrt(max(weight.shape[0] - 1, 0)), math.isqrt(length - 1)
    if weight.ndim != 2 or old < 1 or old * old + 1 != weight.shape[0]:
        raise ValueError(f"{name} has shape {list(weight.shape)}; expected [1 + rows * rows, width] of a square grid")
    grid = weight[1:].float().T.reshape(1, -1, old, old)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    resized = torch.cat([weight[:1].float(), grid.flatten(2)[0].T])
    return resized, [f"position embeddings interpolated from a grid of {old}x{old} to {new}x{new}"]
